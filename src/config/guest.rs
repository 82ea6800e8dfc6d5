//! Finds the guest: a kernel and the initramfs that goes with it.
//!
//! Either both are configured, or they are inside the binary itself (`make dist`), or they lie as
//! `tuned/{vmlinux,initramfs.cpio}` or `quick/…` in a `guest` folder beside the binary (a source tree's
//! `target/release/guest`) or in `../lib/rt/guest` of it (an installation). Tuned is preferred to quick.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::packed::Packed;
use super::{Config, Error, cache};

const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";
/// What a message names where there is no /proc to tell more.
const SELF: &str = "/proc/self/exe";

/// The two kinds of kernel that rt ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// Built from our configuration, all built in.
    Tuned,
    /// The distribution's kernel, some modules in the initramfs.
    Quick,
    /// What the operator configured.
    Configured,
    /// Unpacked from rt's own file.
    Packed,
}

/// A kernel and its initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub kind: GuestKind,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

impl Guest {
    /// The configured guest, or the first that is found.
    ///
    /// # Errors
    /// [`Error::NoGuest`] with the places that were looked at; [`Error::GuestFile`] for a configured file that cannot be one;
    /// [`Error::Packed`].
    pub fn find(config: &Config) -> Result<Self, Error> {
        match (&config.hypervisor.kernel, &config.hypervisor.initramfs) {
            (Some(kernel), Some(initramfs)) => {
                check(config, "hypervisor.kernel", "kernel", kernel)?;
                check(config, "hypervisor.initramfs", "initramfs", initramfs)?;
                Ok(Self { kind: GuestKind::Configured, kernel: kernel.clone(), initramfs: initramfs.clone() })
            }
            // The configuration's own check does not let one of them alone pass.
            _ => {
                let binary = std::env::current_exe().unwrap_or_else(|_| SELF.into());
                Self::find_inside(&binary)?.map_or_else(|| Self::find_beside(&binary), Ok)
            }
        }
    }

    /// Guests that other versions of this one-file rt unpacked; none where rt has no guest inside.
    ///
    /// # Errors
    /// [`Error::Packed`]
    pub fn stale() -> Result<Vec<PathBuf>, Error> {
        let binary = std::env::current_exe().unwrap_or_else(|_| SELF.into());
        match packed(&binary)? {
            Some(packed) => Ok(cache::stale(&packed, &cache::directory()?)?),
            None => Ok(Vec::new()),
        }
    }

    /// Removes one of those.
    ///
    /// # Errors
    /// [`Error::Packed`]
    pub fn remove_stale(path: &Path) -> Result<(), Error> {
        Ok(cache::remove_stale(path)?)
    }

    /// The guest inside the running binary, unpacked.
    fn find_inside(binary: &Path) -> Result<Option<Self>, cache::Error> {
        let Some(packed) = packed(binary)? else { return Ok(None) };
        let path = cache::unpacked(&packed, &cache::directory()?, binary)?;
        Ok(Some(Self { kind: GuestKind::Packed, kernel: path.join(KERNEL), initramfs: path.join(INITRAMFS) }))
    }

    fn find_beside(binary: &Path) -> Result<Self, Error> {
        let folder = binary.parent().unwrap_or(Path::new("/"));
        let places = [folder.join("guest"), folder.parent().unwrap_or(folder).join("lib/rt/guest")];
        for place in &places {
            for (kind, name) in [(GuestKind::Tuned, "tuned"), (GuestKind::Quick, "quick")] {
                let kernel = place.join(name).join(KERNEL);
                let initramfs = place.join(name).join(INITRAMFS);
                if kernel.exists() && initramfs.exists() {
                    return Ok(Self { kind, kernel, initramfs });
                }
            }
        }
        Err(Error::NoGuest(places.into()))
    }
}

/// What can be told of a configured file before a machine is started with it.
fn check(config: &Config, key: &str, what: &'static str, path: &Path) -> Result<(), Error> {
    let mut start = [0; 4];
    let mut read = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        let is_file = file.metadata()?.is_file();
        if is_file {
            file.read_exact(&mut start)?;
        }
        Ok(is_file)
    };
    let reason = match read() {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "it is empty".into(),
        Err(error) => error.to_string(),
        Ok(false) => "it is not a regular file".into(),
        Ok(true) if what == "kernel" && start != *b"\x7fELF" => {
            "it is not an uncompressed ELF kernel (vmlinux)".into()
        }
        Ok(true) => return Ok(()),
    };
    let mend = "correct the path, or leave hypervisor.kernel and hypervisor.initramfs out to have rt's own";
    Err(Error::GuestFile { origin: config.origin(key), what, path: path.into(), reason, mend })
}

fn packed(binary: &Path) -> Result<Option<Packed>, cache::Error> {
    // Not by its path, where another version may lie by now.
    File::open("/proc/self/exe").and_then(Packed::find).map_err(|error| {
        let path = binary.to_owned();
        match error.kind() {
            io::ErrorKind::InvalidData => cache::Error::Damaged { binary: path, reason: error.to_string() },
            _ => cache::Error::System { what: "read", path, source: error },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Hypervisor;

    #[test]
    fn tuned_is_preferred_and_a_kernel_alone_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        let lay = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        let binary = root.path().join("bin/rt");
        assert!(matches!(Guest::find_beside(&binary), Err(Error::NoGuest(places)) if places.len() == 2));
        lay("lib/rt/guest/quick/vmlinux");
        lay("lib/rt/guest/quick/initramfs.cpio");
        lay("lib/rt/guest/tuned/vmlinux");
        assert_eq!(Guest::find_beside(&binary).unwrap().kind, GuestKind::Quick);
        lay("lib/rt/guest/tuned/initramfs.cpio");
        assert_eq!(Guest::find_beside(&binary).unwrap().kind, GuestKind::Tuned);
    }

    #[test]
    fn a_configured_file_that_cannot_be_one_is_told_with_its_origin() {
        let root = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (root.path().join("vmlinuz"), root.path().join("initramfs"));
        let hypervisor = Hypervisor {
            kernel: Some(kernel.clone()),
            initramfs: Some(initramfs.clone()),
            ..Hypervisor::default()
        };
        let mut config = Config { hypervisor, ..Config::default() };
        config.origins.insert("hypervisor.kernel".into(), "/etc/rt/config.toml:3".into());
        let error = || Guest::find(&config).unwrap_err().to_string();
        let starts = |error: &str| error.starts_with("/etc/rt/config.toml:3: cannot use the kernel ");
        assert!(starts(&error()) && error().contains("No such file"), "{}", error());
        std::fs::write(&kernel, "").unwrap();
        assert!(starts(&error()) && error().contains("it is empty"), "{}", error());
        std::fs::write(&kernel, "MZ and more").unwrap();
        assert!(starts(&error()) && error().contains("not an uncompressed ELF kernel"), "{}", error());
        std::fs::write(&kernel, "\x7fELF").unwrap();
        assert!(error().contains("the initramfs"), "{}", error());
        std::fs::write(&initramfs, "070701").unwrap();
        assert_eq!(Guest::find(&config).unwrap().kind, GuestKind::Configured);
    }
}
