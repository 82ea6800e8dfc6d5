//! The sandbox's share: the one virtio-fs that holds what of the host the containers see.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{self, MntFlags, MsFlags};

use crate::kmsg;

/// Where mounts of parts of the share lie whose containers share mounts below them.
const PEERS: &str = "/run/rt/peers";

/// How long this kernel believes what it was told of a name on the share, and a little more.
const VALIDITY: Duration = Duration::from_millis(1200);

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

/// Where the directory `source` on the share is mounted so that containers see each other's mounts below it: one mount for all of them, made for the
/// first that is `wanted` to see such. `None` for what is no directory on the share.
pub fn peer(source: &Path, wanted: bool) -> io::Result<Option<PathBuf>> {
    let Ok(name) = source.strip_prefix(rt_proto::SHARE_DIR) else { return Ok(None) };
    let place = place_of_peer(name);
    if !wanted {
        return Ok(Some(place).filter(|place| is_mounted(place)));
    }
    if !fs::metadata(source)?.is_dir() {
        return Ok(None);
    }
    fs::create_dir_all(PEERS)?;
    // Two containers may be the first.
    let _lock = Flock::lock(File::open(PEERS)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    match fs::create_dir(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_mounted(&place) {
        let none = None::<&str>;
        mount::mount(Some(source), &place, none, MsFlags::MS_BIND, none)?;
    }
    mount::mount(None::<&str>, &place, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
    Ok(Some(place))
}

/// Who made the directory may have ended before anything was mounted there.
fn is_mounted(place: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(place).is_some_and(|mounted| Some(mounted) != device(Path::new(PEERS)))
}

fn place_of_peer(name: &Path) -> PathBuf {
    Path::new(PEERS).join(name.to_string_lossy().replace('/', ":"))
}

/// Writes back what the share has at these names, and lets the server close it: a mounted part is unmounted here, and what
/// this kernel remembers of the rest is forgotten once it has noticed that the names are gone.
///
/// # Errors
/// A name is no path below the share.
pub fn release(names: Vec<String>) -> Result<(), String> {
    let mut paths = Vec::new();
    for name in names {
        if !Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("{name:?} is no name on the share"));
        }
        let peer = place_of_peer(Path::new(&name));
        // Both fail where nobody asked for one.
        let _ = mount::umount2(&peer, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(&peer);
        paths.push(Path::new(rt_proto::SHARE_DIR).join(name));
    }
    // About data that was written through mmap(2) and not synced; all else is on the host already. A mounted part is synced
    // by its unmounting.
    let _ = File::open(rt_proto::SHARE_DIR).map(|share| nix::unistd::syncfs(&share));
    for path in &paths {
        match mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: the part is not a mount of its own.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => kmsg::warning!("cannot unmount {}: {}", path.display(), error.desc()),
        }
    }
    let forget = move || {
        thread::sleep(VALIDITY);
        paths.iter().for_each(|path: &PathBuf| drop(fs::symlink_metadata(path)));
    };
    if let Err(error) = thread::Builder::new().name("forget".to_owned()).stack_size(64 << 10).spawn(forget) {
        kmsg::warning!("cannot start a thread: {error}");
    }
    Ok(())
}

/// Writes everything back, by syncfs(2) as unmounting alone would leave a lazily unmounted share's data in memory.
pub fn unmount() -> Result<(), String> {
    let directory = rt_proto::SHARE_DIR;
    let share = match File::open(directory) {
        Ok(share) => share,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
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
