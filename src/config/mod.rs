//! What an operator can set: the configuration file, overridden by flags, as one immutable [`Config`].
//!
//! The file is `/etc/rt/config.toml` or what `RT_CONFIG` names; a missing default file means the defaults. An
//! unknown key is an error with its line: a setting is never ignored in silence.

mod guest;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use guest::{Guest, GuestKind};

use crate::hypervisor::Kind;

/// Where the configuration is looked for unless `RT_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/rt/config.toml";

/// All settings, with their defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub hypervisor: Hypervisor,
    pub agent: Agent,
    pub cgroup: Cgroup,
}

/// `[hypervisor]`: the virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hypervisor {
    /// `kvm`, `qemu`, or absent: the best that works on this host.
    pub kind: Option<Kind>,
    /// An uncompressed ELF kernel; absent: the one that came with rt.
    pub kernel: Option<PathBuf>,
    /// The initramfs that goes with the kernel.
    pub initramfs: Option<PathBuf>,
    /// Appended to the guest's kernel command line.
    pub kernel_parameters: String,
    /// Virtual CPUs, 1 to 32; a container whose limits allow more gets more.
    pub vcpus: u8,
    /// Memory in MiB of the virtual machine of a container without a memory limit, 48 to 65,536.
    pub memory_mib: u32,
    /// What a virtual machine gets beyond its container's memory limit, for kernel and agent, in MiB, 48 to 4,096.
    pub memory_overhead_mib: u32,
    /// Logs the guest's whole console rather than its warnings only.
    pub console: bool,
    /// The QEMU binary; absent: `qemu-system-x86_64` in PATH.
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
            memory_mib: 256,
            memory_overhead_mib: 96,
            console: false,
            qemu: None,
        }
    }
}

/// `[agent]`: patience with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// How long a guest may take to boot and answer, in milliseconds; four times that where it is emulated.
    pub timeout_ms: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Self { timeout_ms: 30_000 }
    }
}

/// `[cgroup]`: what a sandbox may use on the host beyond its container's limits, where linux.cgroupsPath names a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// For VMM, file server and monitor beyond the machine's memory, in MiB.
    pub memory_overhead_mib: u32,
    /// Percent of one processor.
    pub cpu_overhead_percent: u32,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { memory_overhead_mib: 256, cpu_overhead_percent: 100 }
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
    #[error("cannot use the configuration {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("{setting} is {value} in {path}, but has to be {range}")]
    Range { path: PathBuf, setting: &'static str, value: String, range: &'static str },
    #[error(
        "no guest kernel and initramfs found in {}; run `make build` in rt's source, or set \
         hypervisor.kernel and hypervisor.initramfs in {DEFAULT_PATH}",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoGuest(Vec<PathBuf>),
    #[error(
        "hypervisor.kernel and hypervisor.initramfs belong together, but only {0} is set; set the other too"
    )]
    HalfGuest(&'static str),
}

impl Config {
    /// Reads the configuration file.
    ///
    /// # Errors
    /// [`Error`]: an unreadable file, invalid TOML, an unknown key or a value out of range.
    pub fn load() -> Result<Self, Error> {
        match std::env::var_os("RT_CONFIG") {
            Some(path) => Self::read(Path::new(&path)),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    Ok(Self::default())
                }
                other => other,
            },
        }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)
            .map_err(|error| Error::Parse { path: path.into(), reason: error.to_string().trim().into() })?;
        let range = |setting, value: String, range| Error::Range { path: path.into(), setting, value, range };
        let hypervisor = &config.hypervisor;
        if !(1..=32).contains(&hypervisor.vcpus) {
            return Err(range("hypervisor.vcpus", hypervisor.vcpus.to_string(), "from 1 to 32"));
        }
        if !(48..=65_536).contains(&hypervisor.memory_mib) {
            return Err(range(
                "hypervisor.memory_mib",
                hypervisor.memory_mib.to_string(),
                "from 48 to 65536",
            ));
        }
        if !(48..=4096).contains(&hypervisor.memory_overhead_mib) {
            let value = hypervisor.memory_overhead_mib.to_string();
            return Err(range("hypervisor.memory_overhead_mib", value, "from 48 to 4096"));
        }
        if !(100..=3_600_000).contains(&config.agent.timeout_ms) {
            let value = config.agent.timeout_ms.to_string();
            return Err(range("agent.timeout_ms", value, "from 100 to 3600000"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_file_means_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn unknown_key_is_an_error_that_names_it_and_its_line() {
        let error = parse("[hypervisor]\nmemory = 3\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("`memory`"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let error = parse("[hypervisor]\nvcpus = 33\n").unwrap_err();
        assert_eq!(error, "hypervisor.vcpus is 33 in c.toml, but has to be from 1 to 32");
    }

    #[test]
    fn hypervisor_kind_is_checked() {
        assert_eq!(parse("hypervisor.kind = 'qemu'").unwrap().hypervisor.kind, Some(Kind::Qemu));
        assert!(parse("hypervisor.kind = 'xen'").unwrap_err().contains("xen"));
    }
}
