//! Mount points that a read-only root file system lacks, and a working directory.
//!
//! The guest makes what is missing itself, but the server of a read-only root lets nobody write, be it the guest's
//! kernel. runc makes them in the root file system before it turns that read-only; so does this, on the host.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use oci_spec::runtime::Mount;

use crate::bundle::{Bundle, is_bind};

/// Makes the missing ones, where the root is read-only. What cannot be made is told by the guest, which then misses it.
/// `more` are mounts beyond the bundle's.
pub fn lay(bundle: &Bundle, more: &[Mount]) {
    let root = bundle.spec.root().as_ref();
    if !root.and_then(|root| root.readonly()).unwrap_or(false) {
        return;
    }
    let mounts = bundle.spec.mounts().iter().flatten().chain(more).map(|mount| {
        let source = mount.source().as_ref().filter(|_| is_bind(mount));
        let is_file = source.is_some_and(|source| bundle.dir.join(source).is_file());
        (mount.destination().as_path(), is_file)
    });
    // The guest mounts these by itself: a /dev that nobody has asked for, and devices elsewhere.
    let linux = bundle.spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let devices = devices.iter().map(|device| (device.path().as_path(), true));
    // runc makes a missing working directory, too.
    let directory = bundle.spec.process().as_ref().map(|process| (process.cwd().as_path(), false));
    let mut covered: Vec<PathBuf> = Vec::new();
    for (path, is_file) in mounts.chain([(Path::new("/dev"), false)]).chain(devices).chain(directory) {
        let path = below_root(path);
        // Below another mount it is that one's.
        if !covered.iter().any(|other| path.starts_with(other))
            && let Err(error) = make(&bundle.rootfs, &path, is_file)
        {
            tracing::debug!("cannot make {} in a read-only root: {error}", path.display());
        }
        covered.push(path);
    }
}

fn below_root(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// Symbolic links on the way lead where they lead in the container, never out of it.
fn make(rootfs: &Path, path: &Path, is_file: bool) -> Result<(), Errno> {
    let root = File::open(rootfs).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let find = |path: &Path| -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(root.as_fd(), path, how)
    };
    let mut parent = PathBuf::new();
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let child = parent.join(name);
        match find(&child) {
            Err(Errno::ENOENT) => {
                let (directory, name) = (find(&parent)?, Path::new(name.as_os_str()));
                if is_file && names.peek().is_none() {
                    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(directory, name, flags, Mode::from_bits_truncate(0o644))?;
                } else {
                    mkdirat(directory, name, Mode::from_bits_truncate(0o755))?;
                }
            }
            other => drop(other?),
        }
        parent = child;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn laid(readonly: bool, mounts: serde_json::Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        std::fs::write(dir.path().join("hosts"), "").unwrap();
        symlink("/run", rootfs.join("link")).unwrap();
        symlink("/../../../out", rootfs.join("escape")).unwrap();
        let spec = json!({"ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": readonly}, "mounts": mounts});
        lay(&Bundle { dir: dir.path().into(), rootfs, spec: serde_json::from_value(spec).unwrap() }, &[]);
        dir
    }

    #[test]
    fn what_a_read_only_root_lacks_is_made() {
        let dir = laid(
            true,
            json!([
                {"destination": "/dev", "type": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts"},
                {"destination": "/var/tmp", "type": "tmpfs"},
                {"destination": "/run", "type": "tmpfs"},
                {"destination": "/etc/hosts", "type": "bind", "source": "hosts"},
                {"destination": "/escape/in/../x", "type": "tmpfs"},
            ]),
        );
        let root = dir.path().join("rootfs");
        assert!(
            root.join("var/tmp").is_dir() && root.join("etc/hosts").is_file() && root.join("run").is_dir()
        );
        assert!(!root.join("dev/pts").exists());
        assert!(!dir.path().join("out").exists() && !Path::new("/out").join("x").exists());
    }

    #[test]
    fn a_writable_root_is_left_to_the_guest() {
        let dir = laid(false, json!([{"destination": "/var/tmp", "type": "tmpfs"}]));
        assert!(!dir.path().join("rootfs/var").exists());
    }
}
