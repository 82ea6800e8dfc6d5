//! The sandbox's one share: mounted at the host's greeting, written back and unmounted at its farewell.

use std::fs::{self, File};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::kmsg;

/// Mounts the sandbox's share. Set-user-ID files and devices of containers' root file systems must work in it, so it
/// carries no flags; each container's mounts restrict what they show.
pub fn bring(tag: &str) -> Result<(), String> {
    let directory = rt_proto::SHARE_DIR;
    fs::create_dir_all(directory).map_err(|error| format!("cannot make {directory}: {error}"))?;
    mount(Some(tag), directory, Some("virtiofs"), MsFlags::empty(), None::<&str>)
        .map_err(|error| format!("cannot mount the share {tag} at {directory}: {}", error.desc()))
}

/// Writes everything back, by syncfs(2) as unmounting alone would leave a lazily unmounted share's data in memory.
pub fn take_away() -> Result<(), String> {
    let directory = rt_proto::SHARE_DIR;
    let share = match File::open(directory) {
        Ok(share) => share,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot open {directory}: {error}")),
    };
    nix::unistd::syncfs(&share)
        .map_err(|error| format!("cannot write {directory} back: {}", error.desc()))?;
    drop(share);
    match umount2(directory, MntFlags::empty()) {
        // It is not mounted: there was no share, or this is not the first shutdown.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY) => {
            kmsg::debug!("the share is still in use");
            umount2(directory, MntFlags::MNT_DETACH)
                .map_err(|error| format!("cannot unmount {directory}: {}", error.desc()))
        }
        Err(error) => Err(format!("cannot unmount {directory}: {}", error.desc())),
    }
}
