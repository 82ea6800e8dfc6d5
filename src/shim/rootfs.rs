//! The root file system of a container, where containerd leaves mounting it to the shim: what the snapshotter says is
//! mounted on the bundle's `rootfs`, in this process's mount namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Error, failed};

const DIRECTORY: &str = "rootfs";
/// mount(2) copies one page of options.
const MAX_OPTIONS: usize = 4095;

/// A mounted root file system; unmounted when dropped.
#[derive(Debug)]
pub struct Rootfs {
    target: PathBuf,
    mounts: usize,
}

impl Rootfs {
    /// Mounts all, one over the other, on the bundle's `rootfs`; without any the bundle has one already.
    ///
    /// # Errors
    /// [`Error::System`]; nothing is left mounted then.
    pub fn mount(bundle: &Path, mounts: &[Mount]) -> Result<Self, Error> {
        let mut rootfs = Self { target: bundle.join(DIRECTORY), mounts: 0 };
        for wanted in mounts {
            std::fs::create_dir_all(&rootfs.target).map_err(failed("make", &rootfs.target))?;
            mount_one(wanted, &rootfs.target)
                .map_err(failed("mount the root file system on", &rootfs.target))?;
            rootfs.mounts += 1;
        }
        Ok(rootfs)
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        for _ in 0..self.mounts {
            if let Err(error) = umount2(&self.target, MntFlags::MNT_DETACH) {
                tracing::warn!("cannot unmount {}: {error}", self.target.display());
            }
        }
    }
}

fn mount_one(wanted: &Mount, target: &Path) -> io::Result<()> {
    let (flags, data) = parse(&wanted.options);
    let (data, _parent) = shorten(data)?;
    let source = Some(wanted.source.as_str());
    let kind = Some(wanted.type_.as_str());
    mount(source, target, kind, flags, Some(data.as_str()))?;
    // A bind mount takes its attributes by a second call only.
    if flags.contains(MsFlags::MS_BIND) && flags != flags & (MsFlags::MS_BIND | MsFlags::MS_REC) {
        mount(source, target, kind, flags | MsFlags::MS_REMOUNT, None::<&str>)
            .inspect_err(|_| _ = umount2(target, MntFlags::MNT_DETACH))?;
    }
    Ok(())
}

/// mount(8)'s words as flags; what is none is the file system's own.
fn parse(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags -= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "defaults" | "" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// An overlay of many layers names more paths than fit: the directory that they share is opened then and named by its
/// descriptor, which has to stay open until it is mounted.
fn shorten(data: String) -> io::Result<(String, Option<File>)> {
    if data.len() <= MAX_OPTIONS {
        return Ok((data, None));
    }
    let Some(parent) = common_parent(&data) else { return Ok((data, None)) };
    let directory = File::open(parent)?;
    let short = data.replace(parent, &format!("/proc/self/fd/{}/", directory.as_raw_fd()));
    Ok((short, Some(directory)))
}

/// The longest directory, with its final slash, that all lower layers lie in.
fn common_parent(data: &str) -> Option<&str> {
    let layers = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let first = layers.split(':').next()?;
    let shared = layers.split(':').fold(first.len(), |shared, layer| {
        first.bytes().zip(layer.bytes()).take(shared).take_while(|(a, b)| a == b).count()
    });
    let end = first.get(..shared)?.rfind('/')? + 1;
    (end > 1).then(|| &first[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let options = ["ro", "index=off", "rbind", "lowerdir=/a:/b", "defaults"].map(String::from);
        let (flags, data) = parse(&options);
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(data, "index=off,lowerdir=/a:/b");
    }

    #[test]
    fn many_layers_are_named_by_a_descriptor() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().display();
        let layers: Vec<String> =
            (10..99).map(|number| format!("{base}/{number}/{}", "x".repeat(40))).collect();
        let (data, directory) = shorten(format!("lowerdir={},upperdir=/u", layers.join(":"))).unwrap();
        assert!(directory.is_some() && data.starts_with("lowerdir=/proc/self/fd/"), "{data}");
        assert!(data.ends_with(",upperdir=/u") && !data.contains(&base.to_string()), "{data}");
        assert_eq!(common_parent("lowerdir=/a/b/1:/a/b/22:/a/c"), Some("/a/"));
        assert_eq!(common_parent("lowerdir=/a:/b"), None);
        assert_eq!(common_parent("x=y"), None);
    }
}
