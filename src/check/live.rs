//! What only shows when it is tried: devices, a test guest, programs, the guest's files. Plain data once it is there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::Level;
use crate::config::{Config, Error, Guest, GuestKind};
use crate::hypervisor::kvm::{self, Step};
use crate::hypervisor::{Kind, qemu, select};
use crate::log::chain;

/// What was tried, and what came of it. Reasons are complete sentences' ends.
#[derive(Debug, Clone)]
pub struct Live {
    /// Empty for others than root.
    pub kvm: Vec<Step>,
    /// Of a guest's physical addresses, where KVM tells.
    pub address_bits: Option<i32>,
    /// Devices that take work off a VMM.
    pub accelerators: Vec<(&'static str, Result<(), String>)>,
    pub qemu: Result<QemuFacts, String>,
    pub guest: Result<GuestFacts, String>,
    pub backend: Result<Backend, String>,
    /// Why the configuration cannot be used; what follows from it is then as without one.
    pub configuration: Option<String>,
    /// What a virtual machine of the configured size takes.
    pub memory_mib: u32,
}

/// A QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuFacts {
    pub path: String,
    pub version: String,
    pub is_old: bool,
    pub accelerators: Vec<String>,
}

/// Kernel and initramfs of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    pub kind: &'static str,
    pub kernel: String,
    pub initramfs: String,
    /// The kernel's, as it is written in it; empty when it is not.
    pub release: String,
    /// Why they do not go together, or may not.
    pub mismatch: Option<(Level, String)>,
}

/// What `auto` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub kind: Kind,
    pub accelerator: &'static str,
    pub reason: String,
    pub is_slow: bool,
    /// Set instead of `auto`, and where.
    pub configured: Option<String>,
}

impl Live {
    /// Tries everything on this host: some 100 ms.
    pub fn look(config: &Result<Config, Error>, is_root: bool) -> Self {
        let fallback = Config::default();
        let (config, configuration) = match config {
            Ok(config) => (config, None),
            Err(error) => (&fallback, Some(chain(error))),
        };
        Self {
            kvm: if is_root { kvm::examine() } else { Vec::new() },
            address_bits: if is_root { kvm::address_bits() } else { None },
            accelerators: ["/dev/vhost-net", "/dev/vhost-vsock"].map(|device| (device, opens(device))).into(),
            qemu: qemu_facts(config),
            guest: guest_facts(config),
            backend: backend(config),
            configuration,
            memory_mib: config.hypervisor.memory_mib,
        }
    }
}

fn opens(device: &str) -> Result<(), String> {
    File::options().read(true).write(true).open(device).map(drop).map_err(|error| error.to_string())
}

fn qemu_facts(config: &Config) -> Result<QemuFacts, String> {
    let facts = || {
        let path = qemu::find(config.hypervisor.qemu.as_deref())?;
        let version = qemu::version(&path)?;
        Ok(QemuFacts {
            version: format!("{}.{}", version.0, version.1),
            is_old: version < qemu::MINIMUM_VERSION,
            accelerators: qemu::accelerators(&path)?,
            path: path.display().to_string(),
        })
    };
    facts().map_err(|error: crate::hypervisor::Error| chain(&error))
}

fn backend(config: &Config) -> Result<Backend, String> {
    let hypervisor = &config.hypervisor;
    let (kind, accelerator, warning) = select::preview(None, hypervisor).map_err(|error| chain(&error))?;
    let configured = hypervisor.kind.map(|kind| {
        let word = if kind == Kind::Kvm { "kvm" } else { "qemu" };
        format!("{word} ({})", config.origin("hypervisor.kind"))
    });
    let is_slow = accelerator == "tcg";
    let reason = warning.unwrap_or_else(|| match kind {
        Kind::Kvm => "KVM runs a stock guest and has all that rt's own VMM needs".into(),
        Kind::Qemu => "KVM runs a stock guest, but lacks something that rt's own VMM needs".into(),
    });
    Ok(Backend { kind, accelerator, reason, is_slow, configured })
}

fn guest_facts(config: &Config) -> Result<GuestFacts, String> {
    let guest = Guest::find(config).map_err(|error| chain(&error))?;
    let told = |path: &Path, error: io::Error| format!("cannot read {}: {error}", path.display());
    let release = word_after(&guest.kernel, b"Linux version ").map_err(|error| told(&guest.kernel, error))?;
    let modules =
        word_after(&guest.initramfs, b"\0vermagic=").map_err(|error| told(&guest.initramfs, error))?;
    let loads =
        word_after(&guest.kernel, b": version magic ").map_err(|error| told(&guest.kernel, error))?.is_some();
    let mismatch = mismatch(release.as_deref(), loads, modules.as_deref());
    Ok(GuestFacts {
        kind: match guest.kind {
            GuestKind::Tuned => "tuned",
            GuestKind::Quick => "quick",
            GuestKind::Packed => "packed",
            GuestKind::Configured => "configured",
        },
        kernel: guest.kernel.display().to_string(),
        initramfs: guest.initramfs.display().to_string(),
        release: release.unwrap_or_default(),
        mismatch,
    })
}

/// A kernel takes modules that were built for its release only; one that loads none has all built in.
fn mismatch(release: Option<&str>, loads: bool, modules: Option<&str>) -> Option<(Level, String)> {
    match (release, modules) {
        (None, _) => Some((Level::Error, "the kernel does not say which Linux it is".into())),
        (Some(release), Some(modules)) if release != modules => Some((
            Level::Error,
            format!("the kernel is {release}, the initramfs has modules for {modules}; build both together"),
        )),
        (Some(release), None) if loads => Some((
            Level::Warning,
            format!(
                "the kernel {release} loads modules, the initramfs has none: the guest has what is built in only"
            ),
        )),
        _ => None,
    }
}

/// The printable word behind the first occurrence of a mark in a file that is not small.
fn word_after(path: &Path, mark: &[u8]) -> io::Result<Option<String>> {
    const CHUNK: usize = 1 << 20;
    const WORD: usize = 128;
    let mut file = File::open(path)?;
    let mut window = Vec::with_capacity(CHUNK + mark.len() + WORD);
    loop {
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut window)?;
        let is_last = read < CHUNK;
        let found = window.windows(mark.len()).position(|bytes| bytes == mark);
        if let Some(at) = found.filter(|at| is_last || at + mark.len() + WORD <= window.len()) {
            let word: Vec<u8> = window[at + mark.len()..]
                .iter()
                .copied()
                .take(WORD)
                .take_while(u8::is_ascii_graphic)
                .collect();
            return Ok(Some(String::from_utf8_lossy(&word).into_owned()));
        }
        if is_last {
            return Ok(None);
        }
        // What may be the start of it stays.
        let keep = found.unwrap_or(window.len().saturating_sub(mark.len() - 1));
        window.drain(..keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_wherever_it_lies() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        for offset in [0, 5, (1 << 20) - 20, (1 << 20) - 8, 1 << 20, 3 << 20] {
            let mut bytes = vec![b'x'; offset];
            bytes.extend(b"Linux version 6.12.1-rt (builder) and more");
            std::fs::write(&path, &bytes).unwrap();
            let word = word_after(&path, b"Linux version ").unwrap();
            assert_eq!(word.as_deref(), Some("6.12.1-rt"), "{offset}");
        }
        std::fs::write(&path, vec![0; 3 << 20]).unwrap();
        assert_eq!(word_after(&path, b"Linux version ").unwrap(), None);
    }

    #[test]
    fn modules_have_to_be_the_kernels_own() {
        let level = |release, loads, modules| mismatch(release, loads, modules).map(|(level, _)| level);
        assert_eq!(level(Some("6.12.1"), false, None), None);
        assert_eq!(level(Some("6.12.1"), true, Some("6.12.1")), None);
        assert_eq!(level(Some("6.12.1"), true, None), Some(Level::Warning));
        assert_eq!(level(Some("6.12.1"), true, Some("6.12.2")), Some(Level::Error));
        assert_eq!(level(None, false, None), Some(Level::Error));
    }
}
