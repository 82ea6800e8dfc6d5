//! Finds the guest: a kernel and the initramfs that goes with it.
//!
//! Either both are configured, or they lie as `tuned/{vmlinux,initramfs.cpio}` or `quick/…` in a `guest` folder beside
//! the binary (a source tree's `target/release/guest`) or in `../lib/rt/guest` of it (an installation). Tuned is
//! preferred to quick.

use std::path::{Path, PathBuf};

use super::{Error, Hypervisor};

/// The two kinds of kernel that rt ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// Built from our configuration, all built in.
    Tuned,
    /// The distribution's kernel, some modules in the initramfs.
    Quick,
    /// What the operator configured.
    Configured,
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
    /// [`Error::NoGuest`] with the places that were looked at; [`Error::HalfGuest`].
    pub fn find(hypervisor: &Hypervisor) -> Result<Self, Error> {
        match (&hypervisor.kernel, &hypervisor.initramfs) {
            (Some(kernel), Some(initramfs)) => {
                Ok(Self { kind: GuestKind::Configured, kernel: kernel.clone(), initramfs: initramfs.clone() })
            }
            (Some(_), None) => Err(Error::HalfGuest("hypervisor.kernel")),
            (None, Some(_)) => Err(Error::HalfGuest("hypervisor.initramfs")),
            (None, None) => {
                let binary = std::env::current_exe().unwrap_or_default();
                Self::find_beside(&binary)
            }
        }
    }

    fn find_beside(binary: &Path) -> Result<Self, Error> {
        let folder = binary.parent().unwrap_or(Path::new("/"));
        let places = [folder.join("guest"), folder.parent().unwrap_or(folder).join("lib/rt/guest")];
        for place in &places {
            for (kind, name) in [(GuestKind::Tuned, "tuned"), (GuestKind::Quick, "quick")] {
                let kernel = place.join(name).join("vmlinux");
                let initramfs = place.join(name).join("initramfs.cpio");
                if kernel.exists() && initramfs.exists() {
                    return Ok(Self { kind, kernel, initramfs });
                }
            }
        }
        Err(Error::NoGuest(places.into()))
    }
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
