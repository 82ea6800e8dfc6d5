//! What an operator can set, as one immutable [`Config`].
//!
//! Five layers, each later one wins: the file `/etc/rt/config.toml` (or what `RT_CONFIG` names), the drop-ins in
//! `config.d` beside it, `RT_SECTION_KEY` in the environment, flags, and annotations of the bundle that the
//! operator allows ([`Config::annotated`]). [`SETTINGS`] is the one list of what there is: files, environment,
//! `rt config` and the reference are made from it. A setting is never ignored in silence: an unknown key, a wrong type
//! and a contradiction are errors that say where.

mod annotations;
mod cache;
mod guest;
mod import;
mod layers;
mod packed;
mod reference;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use guest::{Guest, GuestKind};
pub use import::import;
pub use layers::Flag;
pub use reference::{annotations_page, reference};
pub use settings::{SETTINGS, Setting};

use crate::hypervisor::Kind;
use crate::log;

/// Where the configuration is looked for unless `RT_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/rt/config.toml";

/// All settings, with their defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub hypervisor: Hypervisor,
    pub agent: Agent,
    pub share: Share,
    pub cgroup: Cgroup,
    pub jail: Jail,
    pub network: Network,
    pub snapshot: Snapshot,
    pub runtime: Runtime,
    /// Where each value comes from that is not a default, by its setting.
    pub origins: BTreeMap<String, String>,
}

/// `[hypervisor]`: the virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hypervisor {
    /// `None`: the best that works on this host.
    pub kind: Option<Kind>,
    /// An uncompressed ELF kernel; `None`: the one that came with rt.
    pub kernel: Option<PathBuf>,
    /// The initramfs that goes with the kernel.
    pub initramfs: Option<PathBuf>,
    /// Appended to the guest's kernel command line.
    pub kernel_parameters: String,
    /// Virtual CPUs; a container whose limits allow more gets more.
    pub vcpus: u8,
    /// The most that any virtual machine gets.
    pub max_vcpus: u8,
    /// To how many a running virtual machine can grow; `None`: as its role asks for.
    pub grow_vcpus: Option<u8>,
    /// Memory of the virtual machine of a container without a memory limit.
    pub memory_mib: u32,
    /// The most that any virtual machine gets.
    pub max_memory_mib: u32,
    /// To how much a running virtual machine can grow; `None`: as its role asks for.
    pub grow_memory_mib: Option<u32>,
    /// What a virtual machine gets beyond its container's memory limit, for kernel and agent.
    pub memory_overhead_mib: u32,
    /// A virtio-rng device.
    pub entropy: bool,
    /// The host gets back what the guest has freed.
    pub page_reporting: bool,
    /// Logs the guest's whole console rather than its warnings only.
    pub console: bool,
    /// `rt debug` gives a shell in the guest.
    pub debug_console: bool,
    /// A static executable for it; `None`: busybox.
    pub debug_shell: Option<PathBuf>,
    /// The QEMU binary; `None`: `qemu-system-x86_64` in PATH.
    pub qemu: Option<PathBuf>,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            kind: None,
            kernel: None,
            initramfs: None,
            kernel_parameters: String::new(),
            vcpus: 1,
            max_vcpus: 32,
            grow_vcpus: None,
            memory_mib: 256,
            max_memory_mib: 65_536,
            grow_memory_mib: None,
            memory_overhead_mib: 96,
            entropy: true,
            page_reporting: true,
            console: false,
            debug_console: false,
            debug_shell: None,
            qemu: None,
        }
    }
}

/// `[agent]`: patience with the guest, and how much its agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// How long a guest may take to boot and greet; four times that where it is emulated.
    pub boot_timeout_ms: u64,
    /// How long its agent may take to answer a call; four times that for a container's creation where it is emulated.
    pub timeout_ms: u64,
    pub log_level: AgentLog,
}

impl Default for Agent {
    fn default() -> Self {
        Self { boot_timeout_ms: 30_000, timeout_ms: 30_000, log_level: AgentLog::Warning }
    }
}

/// What the agent writes to the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentLog {
    Warning,
    Debug,
}

/// `[snapshot]`: starting from a template instead of booting, where rt's own VMM carries the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshot {
    pub enabled: bool,
    /// So many templates are kept, of about 24 MiB of memory each.
    pub keep: u8,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { enabled: true, keep: 4 }
    }
}

/// `[share]`: the host's files in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    pub cache: Cache,
    /// A window into the host's page cache; refused, this build has none.
    pub dax: bool,
}

/// What the guest may keep of the host's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Contents also when a file is opened again, while it has not changed.
    #[default]
    Always,
    /// Contents while a file is open.
    Auto,
    /// Nothing: each access asks the host.
    Never,
}

/// `[cgroup]`: the sandbox in the host's cgroups, where linux.cgroupsPath names a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// For VMM, file server and monitor beyond the machine's memory.
    pub memory_overhead_mib: u32,
    /// Percent of one processor.
    pub cpu_overhead_percent: u32,
    /// cgroupsPath has systemd's form.
    pub systemd: bool,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { memory_overhead_mib: 256, cpu_overhead_percent: 100, systemd: false }
    }
}

/// `[runtime]`: rt itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Directory of the containers' state; `None`: by user.
    pub root: Option<PathBuf>,
    /// `None`: errors to standard error.
    pub log: Option<PathBuf>,
    pub log_format: log::Format,
    pub debug: bool,
    /// The last parts of the names of Kata's annotations that bundles may use.
    pub enable_annotations: Vec<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            root: None,
            log: None,
            log_format: log::Format::Text,
            debug: false,
            enable_annotations: annotations::HARMLESS.map(str::to_owned).to_vec(),
        }
    }
}

/// `[jail]`: bounds of the processes that serve a guest. None of it can be opened wider than rt does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jail {
    /// Of the file server: one for each file that the guest knows of.
    pub open_files: u64,
    /// The file server may remember files by handle, where the host's limit is too low for a descriptor each.
    pub file_handles: bool,
}

impl Default for Jail {
    fn default() -> Self {
        Self { open_files: 1_000_000, file_handles: true }
    }
}

/// `[network]`: how a container's network namespace becomes its virtual machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub model: NetworkModel,
    /// What becomes of a container that asks for the host's network.
    pub host: HostNetwork,
    /// Uses the kernel's vhost-net where the host has it.
    pub vhost: bool,
    /// Guest and TAP device leave checksums and segmentation to each other.
    pub offloads: bool,
}

/// How an interface of the namespace is tied to one of the virtual machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkModel {
    /// By a TAP device, with traffic control's redirection in both directions.
    #[default]
    TcFilter,
    /// By a macvtap device on top of it.
    MacVtap,
    /// Not at all: the virtual machine has a loopback only.
    None,
}

/// What becomes of a container that asks for the host's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostNetwork {
    /// An error that says so.
    #[default]
    Refuse,
    /// It gets a network namespace of its own, with nothing in it.
    Empty,
}

impl Default for Network {
    fn default() -> Self {
        Self { model: NetworkModel::default(), host: HostNetwork::default(), vhost: true, offloads: true }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}:{line}:{column}: this is no TOML: {reason}")]
    Syntax { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("{origin}: there is no setting {key}; {hint}")]
    Unknown { origin: String, key: String, hint: String },
    #[error("{origin}: {key} is {value}, but has to be {wanted}")]
    Value { origin: String, key: String, value: String, wanted: String },
    #[error("{}; {mend}", .settings.join(", but "))]
    Contradiction { settings: Vec<String>, mend: &'static str },
    #[error("{setting}, but this build of rt has not got {what}; {mend}")]
    NotThere { setting: String, what: &'static str, mend: &'static str },
    #[error("the annotation {name} is not allowed here{mend}")]
    Annotation { name: String, mend: String },
    #[error(
        "no guest kernel and initramfs found in {}; run `make build` in rt's source, or set \
         hypervisor.kernel and hypervisor.initramfs in {DEFAULT_PATH}",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoGuest(Vec<PathBuf>),
    #[error("{origin}: cannot use the {what} {path}: {reason}; {mend}")]
    GuestFile { origin: String, what: &'static str, path: PathBuf, reason: String, mend: &'static str },
    #[error(transparent)]
    Packed(#[from] cache::Error),
    #[error("settings do not fit together: {0}")]
    Shape(String),
}

/// A setting as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    pub key: &'static str,
    pub value: toml::Value,
    /// `default`, or where the value comes from.
    pub origin: String,
}

impl Config {
    /// Reads file, drop-ins and environment, and puts the flags on top.
    ///
    /// # Errors
    /// [`Error`], with the place of what is wrong.
    pub fn load(flags: &[Flag]) -> Result<Self, Error> {
        let named = std::env::var_os("RT_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self::load_from(named.as_deref(), flags)
    }

    /// The same with this file in place of the usual one, where there is one.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(named: Option<&Path>, flags: &[Flag]) -> Result<Self, Error> {
        let mut layers = layers::Layers::new()?;
        match named {
            Some(path) => layers.file(path)?,
            None => layers.file_if_any(Path::new(DEFAULT_PATH))?,
        }
        layers.drop_ins(named.unwrap_or(Path::new(DEFAULT_PATH)))?;
        layers.environment(std::env::vars_os())?;
        layers.flags(flags)?;
        layers.finish()
    }

    /// Every setting with its value and where that comes from, in the order of the reference.
    pub fn entries(&self) -> Vec<Entry> {
        let table = layers::table(self);
        let entry = |setting: &'static Setting| Entry {
            key: setting.key,
            value: setting.shown(layers::get(&table, setting.key)),
            origin: self.origin(setting.key),
        };
        SETTINGS.iter().map(entry).collect()
    }

    /// Where the value of a setting comes from.
    pub fn origin(&self, key: &str) -> String {
        self.origins.get(key).cloned().unwrap_or_else(|| "default".into())
    }

    /// What each value alone does not tell: whether they fit together.
    fn check(self) -> Result<Self, Error> {
        let hypervisor = &self.hypervisor;
        let told = |key: &'static str, value: &dyn std::fmt::Display| {
            format!("{key} is {value} ({})", self.origin(key))
        };
        let contradiction =
            |settings: [String; 2], mend| Err(Error::Contradiction { settings: settings.into(), mend });
        if hypervisor.vcpus > hypervisor.max_vcpus {
            return contradiction(
                [
                    told("hypervisor.vcpus", &hypervisor.vcpus),
                    told("hypervisor.max_vcpus", &hypervisor.max_vcpus),
                ],
                "lower the first or raise the second",
            );
        }
        if hypervisor.memory_mib > hypervisor.max_memory_mib {
            return contradiction(
                [
                    told("hypervisor.memory_mib", &hypervisor.memory_mib),
                    told("hypervisor.max_memory_mib", &hypervisor.max_memory_mib),
                ],
                "lower the first or raise the second",
            );
        }
        let half = |set: (&'static str, &Path), unset: &'static str| {
            contradiction(
                [told(set.0, &set.1.display()), format!("{unset} is not set")],
                "a kernel and its initramfs belong together: set both or neither",
            )
        };
        if self.share.dax {
            return Err(Error::NotThere {
                setting: told("share.dax", &true),
                what: "a DAX window",
                mend: "leave it out: the guest keeps files in its own page cache, as share.cache says",
            });
        }
        match (&hypervisor.kernel, &hypervisor.initramfs) {
            (Some(kernel), None) => half(("hypervisor.kernel", kernel), "hypervisor.initramfs"),
            (None, Some(initramfs)) => half(("hypervisor.initramfs", initramfs), "hypervisor.kernel"),
            _ => Ok(self),
        }
    }
}
