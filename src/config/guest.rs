//! Finds the guest: a kernel and the initramfs that goes with it.
//!
//! Either both are configured, or they are inside the binary itself (`make dist`), or they lie as
//! `tuned/{vmlinux,initramfs.cpio}` or `quick/…` in a `guest` folder beside the binary (a source tree's
//! `target/release/guest`) or in `../lib/rt/guest` of it (an installation). Tuned is preferred to quick.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::packed::Packed;
use super::{Error, Hypervisor, cache};

const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";

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
    /// [`Error::NoGuest`] with the places that were looked at; [`Error::HalfGuest`]; [`Error::Packed`].
    pub fn find(hypervisor: &Hypervisor) -> Result<Self, Error> {
        match (&hypervisor.kernel, &hypervisor.initramfs) {
            (Some(kernel), Some(initramfs)) => {
                Ok(Self { kind: GuestKind::Configured, kernel: kernel.clone(), initramfs: initramfs.clone() })
            }
            (Some(_), None) => Err(Error::HalfGuest("hypervisor.kernel")),
            (None, Some(_)) => Err(Error::HalfGuest("hypervisor.initramfs")),
            (None, None) => {
                let binary = std::env::current_exe().unwrap_or_default();
                Self::find_inside(&binary)?.map_or_else(|| Self::find_beside(&binary), Ok)
            }
        }
    }

    /// Guests that other versions of this one-file rt unpacked; none where rt has no guest inside.
    ///
    /// # Errors
    /// [`Error::Packed`]
    pub fn stale() -> Result<Vec<PathBuf>, Error> {
        let binary = std::env::current_exe().unwrap_or_default();
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
    fn half_a_configured_guest_is_an_error() {
        let hypervisor = Hypervisor { kernel: Some("/k".into()), ..Hypervisor::default() };
        assert!(matches!(Guest::find(&hypervisor), Err(Error::HalfGuest("hypervisor.kernel"))));
    }
}
