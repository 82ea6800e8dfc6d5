//! The sandbox's share: the one virtio-fs that holds what of the host the containers see.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::mount::{self, MntFlags, MsFlags};

use crate::kmsg;

/// Mounts the sandbox's share. Set-user-ID files and devices of containers' root file systems must work in it, so it
/// carries no flags; each container's mounts restrict what they show.
pub fn mount(tag: &str) -> Result<(), String> {
    let directory = rt_proto::SHARE_DIR;
    fs::create_dir_all(directory).map_err(|error| format!("cannot make {directory}: {error}"))?;
    mount::mount(Some(tag), directory, Some("virtiofs"), MsFlags::empty(), None::<&str>)
        .map_err(|error| format!("cannot mount the share {tag} at {directory}: {}", error.desc()))?;
    // Each request crosses to the host and back: with the default of 128 KiB a file is read at a third of the speed.
    let device = fs::metadata(directory).map(|metadata| metadata.dev()).unwrap_or_default();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let read_ahead = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&read_ahead, "1024") {
        kmsg::debug!("cannot set {read_ahead}: {error}");
    }
    Ok(())
}

/// Writes everything back, by syncfs(2) as unmounting alone would leave a lazily unmounted share's data in memory.
pub fn unmount() -> Result<(), String> {
    let directory = rt_proto::SHARE_DIR;
    let share = match File::open(directory) {
        Ok(share) => share,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot open {directory}: {error}")),
    };
    nix::unistd::syncfs(&share)
        .map_err(|error| format!("cannot write {directory} back: {}", error.desc()))?;
    drop(share);
    match mount::umount2(directory, MntFlags::empty()) {
        // It is not mounted: there was no share, or this is not the first shutdown.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY) => {
            kmsg::debug!("the share is still in use");
            mount::umount2(directory, MntFlags::MNT_DETACH)
                .map_err(|error| format!("cannot unmount {directory}: {}", error.desc()))
        }
        Err(error) => Err(format!("cannot unmount {directory}: {}", error.desc())),
    }
}
