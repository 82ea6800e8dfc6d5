//! `rt kata-env`: what this rt and its host are made of, with the sections and keys of `kata-runtime kata-env` 1.x.
//!
//! Of what rt has not got (proxy, image, network monitor) the sections say so, since programs look for them.

use std::path::PathBuf;

use serde::Serialize;

use super::{Host, Live};
use crate::config::Config;
use crate::hypervisor::Kind;

/// Of the format, not of rt: Kata raises it when keys change.
const FORMAT: &str = "1.0.24";

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Environment {
    meta: Version,
    runtime: Runtime,
    hypervisor: Hypervisor,
    image: PathOnly,
    kernel: Kernel,
    initrd: PathOnly,
    proxy: Proxy,
    shim: Shim,
    agent: Agent,
    host: HostFacts,
    netmon: Netmon,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Runtime {
    debug: bool,
    path: String,
    version: RuntimeVersion,
    config: PathOnly,
}

#[derive(Debug, Serialize)]
struct RuntimeVersion {
    #[serde(rename = "Semver")]
    semver: &'static str,
    #[serde(rename = "Commit")]
    commit: &'static str,
    #[serde(rename = "OCI")]
    oci: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PathOnly {
    path: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Hypervisor {
    /// `kvm` or `qemu`; empty where none works.
    #[serde(rename = "Type")]
    kind: &'static str,
    accelerator: &'static str,
    machine_type: &'static str,
    version: String,
    path: String,
    #[serde(rename = "DefaultVCPUs")]
    vcpus: u8,
    #[serde(rename = "DefaultMemoryMiB")]
    memory_mib: u32,
    #[serde(rename = "SharedFS")]
    shared_fs: &'static str,
    debug: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kernel {
    path: String,
    version: String,
    kind: &'static str,
    parameters: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Proxy {
    #[serde(rename = "Type")]
    kind: &'static str,
    path: String,
    debug: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shim {
    #[serde(rename = "Type")]
    kind: &'static str,
    path: String,
    debug: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Agent {
    #[serde(rename = "Type")]
    kind: &'static str,
    protocol: u32,
    debug: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostFacts {
    kernel: String,
    architecture: String,
    #[serde(rename = "VMContainerCapable")]
    capable: bool,
    #[serde(rename = "SupportVSocks")]
    vsock: bool,
    distro: Distro,
    #[serde(rename = "CPU")]
    cpu: Cpu,
    memory: Memory,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Distro {
    name: String,
    version: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cpu {
    vendor: String,
    model: String,
    #[serde(rename = "CPUs")]
    cpus: usize,
}

/// In KiB, as /proc/meminfo.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Memory {
    total: u64,
    free: u64,
    available: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Netmon {
    enable: bool,
    path: String,
}

/// What rt is called and was built from.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    pub version: &'static str,
    pub commit: &'static str,
    pub oci: &'static str,
}

impl Environment {
    /// Of this rt, with a configuration that could be read, and a host.
    pub fn new(build: Build, config: &Config, host: &Host, live: &Live, capable: bool) -> Self {
        let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("rt")).display().to_string();
        let guest = live.guest.as_ref().ok();
        let backend = live.backend.as_ref().ok();
        let qemu = live.qemu.as_ref().ok();
        let (kind, version, path) =
            match backend.map(|backend| config.hypervisor.kind.unwrap_or(backend.kind)) {
                Some(Kind::Kvm) => ("kvm", build.version.to_owned(), binary.clone()),
                Some(Kind::Qemu) => (
                    "qemu",
                    qemu.map(|qemu| qemu.version.clone()).unwrap_or_default(),
                    qemu.map(|qemu| qemu.path.clone()).unwrap_or_default(),
                ),
                None => ("", String::new(), String::new()),
            };
        let memory = host.memory();
        let kib = |bytes: Option<u64>| bytes.unwrap_or(0) >> 10;
        let none = || PathOnly { path: String::new() };
        Self {
            meta: Version { version: FORMAT },
            runtime: Runtime {
                debug: config.runtime.debug,
                path: binary.clone(),
                version: RuntimeVersion { semver: build.version, commit: build.commit, oci: build.oci },
                config: PathOnly { path: config_path() },
            },
            hypervisor: Hypervisor {
                kind,
                accelerator: backend.map_or("", |backend| backend.accelerator),
                machine_type: if kind == "qemu" { "q35" } else { "" },
                version,
                path,
                vcpus: config.hypervisor.vcpus,
                memory_mib: config.hypervisor.memory_mib,
                shared_fs: "virtio-fs",
                debug: config.hypervisor.console,
            },
            image: none(),
            kernel: Kernel {
                path: guest.map(|guest| guest.kernel.clone()).unwrap_or_default(),
                version: guest.map(|guest| guest.release.clone()).unwrap_or_default(),
                kind: guest.map_or("", |guest| guest.kind),
                parameters: config.hypervisor.kernel_parameters.clone(),
            },
            initrd: PathOnly { path: guest.map(|guest| guest.initramfs.clone()).unwrap_or_default() },
            proxy: Proxy { kind: "noProxy", path: String::new(), debug: false },
            shim: Shim { kind: "monitor", path: binary, debug: config.runtime.debug },
            agent: Agent {
                kind: "rt",
                protocol: rt_proto::PROTOCOL_VERSION,
                debug: config.agent.log_level == crate::config::AgentLog::Debug,
            },
            host: HostFacts {
                kernel: host.release().unwrap_or_default(),
                architecture: host.machine.clone(),
                capable,
                vsock: live
                    .accelerators
                    .iter()
                    .any(|(device, result)| device.ends_with("vsock") && result.is_ok()),
                distro: distro(host),
                cpu: Cpu {
                    vendor: host
                        .processor("vendor_id")
                        .or_else(|| host.processor("CPU implementer"))
                        .unwrap_or_default(),
                    model: host.processor("model name").unwrap_or_default(),
                    cpus: host.processors(),
                },
                memory: Memory {
                    total: kib(memory.as_ref().map(|memory| memory.mem_total)),
                    free: kib(memory.as_ref().map(|memory| memory.mem_free)),
                    available: kib(memory.as_ref().and_then(|memory| memory.mem_available)),
                },
            },
            netmon: Netmon { enable: false, path: String::new() },
        }
    }

    pub fn toml(&self) -> String {
        toml::to_string(self).expect("an environment is a table; a test says so")
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("an environment has only string keys") + "\n"
    }
}

/// The configuration file, where there is one.
fn config_path() -> String {
    let path = std::env::var("RT_CONFIG").ok().filter(|path| !path.is_empty());
    let path = path.unwrap_or_else(|| crate::config::DEFAULT_PATH.into());
    if std::path::Path::new(&path).exists() { path } else { String::new() }
}

/// From os-release(5).
fn distro(host: &Host) -> Distro {
    let text = host.text("etc/os-release").or_else(|| host.text("usr/lib/os-release")).unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    Distro { name: value("NAME"), version: value("VERSION_ID") }
}
