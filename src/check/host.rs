//! The host's files: /proc, /sys and /lib/modules, below a root directory that tests put another in place of.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use procfs::process::MountInfos;
use procfs::{ConfigSetting, CpuInfo, FromRead, KernelConfig, Meminfo};

/// A host, by its files.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    /// As uname(2) names it.
    pub machine: String,
    pub is_root: bool,
}

/// The host's cgroup file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    None,
    V1,
    /// Version 1 with version 2 beside it.
    Hybrid,
    V2,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        let machine = nix::sys::utsname::uname()
            .map(|names| names.machine().to_string_lossy().into_owned())
            .unwrap_or_else(|_| std::env::consts::ARCH.into());
        Self { root: "/".into(), machine, is_root: nix::unistd::geteuid().is_root() }
    }

    /// The host whose files are below `root`.
    #[cfg(test)]
    pub fn at(root: &Path, machine: &str, is_root: bool) -> Self {
        Self { root: root.into(), machine: machine.into(), is_root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a file, trimmed.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The first processor's properties, as /proc/cpuinfo has them.
    pub fn processor(&self, property: &str) -> Option<String> {
        let info = CpuInfo::from_file(self.path("proc/cpuinfo")).ok()?;
        info.get_field(0, property).map(str::to_owned)
    }

    pub fn processors(&self) -> usize {
        CpuInfo::from_file(self.path("proc/cpuinfo")).map_or(0, |info| info.num_cores())
    }

    pub fn memory(&self) -> Option<Meminfo> {
        Meminfo::from_file(self.path("proc/meminfo")).ok()
    }

    /// Release of the running kernel.
    pub fn release(&self) -> Option<String> {
        self.text("proc/sys/kernel/osrelease")
    }

    /// Whether a kernel module is loaded or built in.
    pub fn has_module(&self, name: &str) -> bool {
        self.path("sys/module").join(name).exists()
            || self.listed("modules.builtin", name)
            || self.is_configured(name)
    }

    /// Whether the kernel can load a module when somebody wants it.
    pub fn can_load(&self, name: &str) -> bool {
        self.listed("modules.dep", name)
    }

    /// Of a module's parameters, one.
    pub fn parameter(&self, module: &str, parameter: &str) -> Option<String> {
        self.text(&format!("sys/module/{module}/parameters/{parameter}"))
    }

    /// Whether a file of /lib/modules/RELEASE names the module; the names of files may have `-` for `_`.
    fn listed(&self, file: &str, module: &str) -> bool {
        let Some(release) = self.release() else { return false };
        let Some(text) = self.text(&format!("lib/modules/{release}/{file}")) else { return false };
        text.lines().any(|line| {
            let path = Path::new(line.split(':').next().unwrap_or(line));
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.split('.').next().unwrap_or(name).replace('-', "_") == module
        })
    }

    /// Whether the kernel's own configuration says that the module is built in.
    fn is_configured(&self, module: &str) -> bool {
        let Ok(file) = File::open(self.path("proc/config.gz")) else { return false };
        let config = KernelConfig::from_read(BufReader::new(GzDecoder::new(file)));
        let option = format!("CONFIG_{}", module.to_uppercase());
        config.is_ok_and(|config| config.0.get(&option) == Some(&ConfigSetting::Yes))
    }

    pub fn cgroups(&self) -> Cgroups {
        let mounts = MountInfos::from_file(self.path("proc/self/mountinfo"));
        let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
        let has = |kind: &str| mounts.iter().any(|mount| mount.fs_type == kind);
        match (has("cgroup"), has("cgroup2")) {
            (false, false) => Cgroups::None,
            (true, false) => Cgroups::V1,
            (true, true) => Cgroups::Hybrid,
            (false, true) => Cgroups::V2,
        }
    }

    pub fn knows_file_system(&self, name: &str) -> bool {
        let text = self.text("proc/filesystems").unwrap_or_default();
        text.lines().any(|line| line.split_whitespace().last() == Some(name))
    }

    /// Whether the processor is virtual itself.
    pub fn is_virtual(&self) -> bool {
        self.processor("flags").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
    }
}
