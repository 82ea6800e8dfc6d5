//! What a container's file system needs beside what libcontainer does: before it is made, in the root file system as the
//! share shows it; after, in the container's own mount namespace.
//!
//! Every path of a container is resolved inside its root (RESOLVE_IN_ROOT, or with the root being "/"): a symbolic link in
//! an image leads nowhere else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, chown, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, Spec};

use crate::{share, sys};

/// What libcontainer makes in /dev and does not take when it is there, besides `linux.devices`.
const OWN_DEVICES: [&str; 12] =
    ["null", "zero", "full", "tty", "urandom", "random", "fd", "stdin", "stdout", "stderr", "kcore", "ptmx"];

/// Options of mounts that libcontainer does not know or loses, for [`finish`].
#[derive(Debug, Default)]
pub struct Rest {
    propagations: Vec<Propagation>,
    copies: Vec<(PathBuf, OwnedFd)>,
    /// A /dev that is read-only once libcontainer has filled it.
    sealed_dev: bool,
    /// `linux.readonlyPaths`, of which libcontainer would make `nosuid`, `nodev` and `noexec`, too.
    readonly_paths: Vec<String>,
}

#[derive(Debug)]
struct Propagation {
    destination: PathBuf,
    flags: MsFlags,
    /// A mount of the same volume, with which mounts are exchanged, or from which they come.
    peer: Option<OwnedFd>,
}

impl Rest {
    pub fn is_empty(&self) -> bool {
        self.propagations.is_empty()
            && self.copies.is_empty()
            && !self.sealed_dev
            && self.readonly_paths.is_empty()
    }
}

/// Prepares the root file system and takes out of `spec` what is left to [`finish`]. What it needs to make is in `bundle`, the container's
/// own directory.
///
/// # Errors
/// For the user.
pub fn prepare(spec: &mut Spec, bundle: &Path) -> Result<Rest, String> {
    let root = spec.root().as_ref().ok_or("root must be set in config.json")?;
    let is_read_only = root.readonly().unwrap_or(false);
    let root = root.path().clone();
    let root = open(&root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot open {}: {}", root.display(), error.desc()))?;
    let mut rest = Rest::default();
    if let Some(linux) = spec.linux_mut() {
        rest.readonly_paths = linux.readonly_paths_mut().take().unwrap_or_default();
    }
    if is_read_only {
        add_dev(spec);
    }
    bind_devices(spec, bundle)?;
    for entry in spec.mounts_mut().iter_mut().flatten() {
        if is_bind(entry) {
            check_source(entry)?;
        }
        take_options(entry, root.as_fd(), &mut rest)?;
    }
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    if !mounts.iter().any(|entry| entry.destination() == Path::new("/dev")) {
        let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
        clear_devices(
            root.as_fd(),
            devices.iter().filter_map(|device| device.path().strip_prefix("/dev").ok()),
        );
    }
    if let Some(process) = spec.process() {
        make_working_directory(root.as_fd(), process.cwd(), mounts);
    }
    Ok(rest)
}

/// Nobody can make devices in a root file system that is served for reading only: they are made in a file system of their own.
fn add_dev(spec: &mut Spec) {
    let mounts = spec.mounts_mut().get_or_insert_with(Vec::new);
    if !mounts.iter().any(|entry| entry.destination() == Path::new("/dev")) {
        let options = ["nosuid", "strictatime", "mode=755", "size=64k"];
        mounts.insert(0, mount_of("tmpfs", "tmpfs".into(), "/dev".into(), &options));
    }
}

/// Devices outside of /dev, which libcontainer refuses, are made in `bundle` and mounted where they belong.
fn bind_devices(spec: &mut Spec, bundle: &Path) -> Result<(), String> {
    let Some(devices) = spec.linux_mut().as_mut().and_then(|linux| linux.devices_mut().as_mut()) else {
        return Ok(());
    };
    let elsewhere: Vec<LinuxDevice> =
        devices.extract_if(.., |device| !device.path().starts_with("/dev")).collect();
    for (index, device) in elsewhere.iter().enumerate() {
        let node = bundle.join(format!("device-{index}"));
        make_device(device, &node).map_err(|error| {
            format!("cannot make the device {}: {}", device.path().display(), error.desc())
        })?;
        let mounts = spec.mounts_mut().get_or_insert_with(Vec::new);
        mounts.push(mount_of("bind", node, device.path().clone(), &["bind"]));
    }
    Ok(())
}

fn make_device(device: &LinuxDevice, node: &Path) -> nix::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        // That is for rules.
        LinuxDeviceType::A => return Err(Errno::EINVAL),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| Errno::EINVAL);
    let number = libc::makedev(number(device.major())?, number(device.minor())?);
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666));
    mknod(node, kind, mode, number)?;
    // The agent's umask may have taken something away.
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, node, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    chown(node, device.uid().map(Uid::from_raw), device.gid().map(Gid::from_raw))
}

fn mount_of(kind: &str, source: PathBuf, destination: PathBuf, options: &[&str]) -> Mount {
    let mut entry = Mount::default();
    entry.set_typ(Some(kind.to_owned())).set_source(Some(source)).set_destination(destination);
    entry.set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    entry
}

fn is_bind(entry: &Mount) -> bool {
    entry.typ().as_deref() == Some("bind")
        || entry.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// libcontainer would say the same, less clearly.
fn check_source(entry: &Mount) -> Result<(), String> {
    let Some(source) = entry.source() else { return Ok(()) };
    fs::metadata(source).map(drop).map_err(|error| {
        let reason = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)).desc().to_lowercase();
        let (source, destination) = (source.display(), entry.destination().display());
        format!("error mounting {source:?} to rootfs at {destination:?}: stat {source}: {reason}")
    })
}

/// An option as libcontainer gets it right; `None` for one that changes nothing.
fn reworded(option: String, is_bind: bool) -> Option<String> {
    match &option[..] {
        // libcontainer knows these of a whole tree of mounts, which in a guest is one mount.
        "nosymfollow" | "symfollow" => Some(format!("r{option}")),
        // Of a file system, not of a mount. libcontainer loses these two of its own; the kernel looks at the name alone, and takes
        // them with a value that libcontainer passes on.
        "sync" | "dirsync" if !is_bind => Some(format!("{option}=")),
        "sync" | "dirsync" | "lazytime" | "nolazytime" if is_bind => None,
        // Without a meaning in Linux for what can be mounted in a guest: mandatory locks are gone since 5.15.
        "mand" | "nomand" | "iversion" | "noiversion" | "silent" | "loud" => None,
        _ => Some(option),
    }
}

/// Takes `tmpcopyup` and propagation out of a mount's options, says others as libcontainer understands them, and gives a tmpfs its mount
/// point's mode.
fn take_options(entry: &mut Mount, root: BorrowedFd<'_>, rest: &mut Rest) -> Result<(), String> {
    let destination = entry.destination().clone();
    let is_bind = is_bind(entry);
    let is_tmpfs = entry.typ().as_deref() == Some("tmpfs");
    let options = entry.options_mut().get_or_insert_with(Vec::new);
    let below = |flag| open_in(root, &destination, flag | OFlag::O_DIRECTORY).ok();
    if is_tmpfs
        && !options.iter().any(|option| option.starts_with("mode="))
        && let Some(below) = below(OFlag::O_PATH)
        && let Ok(status) = nix::sys::stat::fstat(below)
    {
        options.push(format!("mode={:o}", status.st_mode & 0o7777));
    }
    *options = std::mem::take(options).into_iter().filter_map(|option| reworded(option, is_bind)).collect();
    let (mut copies, mut propagations) = (false, Vec::new());
    options.retain(|option| match option.as_str() {
        "tmpcopyup" => {
            copies = true;
            false
        }
        other => match propagation(other) {
            Some(flags) => {
                propagations.push(flags);
                false
            }
            None => true,
        },
    });
    let sees_others =
        propagations.iter().any(|flags| flags.intersects(MsFlags::MS_SHARED | MsFlags::MS_SLAVE));
    let is_read_only = options.iter().rev().find(|option| ["ro", "rw"].contains(&option.as_str()));
    rest.sealed_dev |=
        is_tmpfs && destination == Path::new("/dev") && is_read_only.is_some_and(|last| last == "ro");
    if is_bind
        && let Some(source) = entry.source()
        && let Some(peer) = share::peer(source, sees_others)
            .map_err(|error| format!("cannot share the mounts below {}: {error}", destination.display()))?
    {
        // With what is mounted there already; of libcontainer's making a slave of it.
        entry.set_source(Some(peer.clone()));
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        rest.propagations.push(Propagation { destination: destination.clone(), flags, peer: None });
        if sees_others {
            let peer = open(&peer, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            let peer = peer.map_err(|error| format!("cannot open a volume: {}", error.desc()))?;
            let flags = MsFlags::MS_SHARED;
            rest.propagations.push(Propagation { destination: destination.clone(), flags, peer: Some(peer) });
        }
    }
    // A new mount of the guest is private already, and a slave of nothing.
    let changes = |flags: &MsFlags| sees_others || flags.intersects(MsFlags::MS_UNBINDABLE);
    for flags in propagations.into_iter().filter(changes) {
        rest.propagations.push(Propagation { destination: destination.clone(), flags, peer: None });
    }
    if copies && !is_tmpfs {
        return Err(format!("mount {}: tmpcopyup is for tmpfs only", destination.display()));
    }
    if copies && let Some(below) = below(OFlag::O_RDONLY) {
        rest.copies.push((destination, below));
    }
    Ok(())
}

fn propagation(option: &str) -> Option<MsFlags> {
    let (name, recursive) = match option {
        "rprivate" | "rshared" | "rslave" | "runbindable" => (&option[1..], MsFlags::MS_REC),
        other => (other, MsFlags::empty()),
    };
    let flag = match name {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// Removes device nodes and links that an earlier container, or the image, has left where libcontainer makes its own.
fn clear_devices<'a>(root: BorrowedFd<'_>, more: impl Iterator<Item = &'a Path>) {
    let directory = match open_in(root, Path::new("/dev"), OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Ok(directory) => directory,
        Err(_) => {
            let _ = mkdirat(root, "dev", Mode::from_bits_truncate(0o755));
            return;
        }
    };
    for name in OWN_DEVICES.iter().map(Path::new).chain(more) {
        // Deeper ones are made in directories of their own, which images do not bring.
        if name.components().count() != 1 {
            continue;
        }
        if let Ok(status) = fstatat(&directory, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
            let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
            if kind == SFlag::S_IFLNK || kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK {
                let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

/// runc makes a missing working directory. Here that must happen before the mounts: in the root file system, or in the
/// source of the bind mount that the path leads into. Where it cannot be made, entering it fails with a clear message.
fn make_working_directory(root: BorrowedFd<'_>, directory: &Path, mounts: &[Mount]) {
    let over = mounts
        .iter()
        .filter(|entry| directory.starts_with(entry.destination()) && entry.destination() != Path::new("/"))
        .max_by_key(|entry| entry.destination().components().count());
    match over {
        None => {
            let _ = make_directories(root, directory);
        }
        Some(entry) if is_bind(entry) => {
            let source = entry.source().as_ref().and_then(|source| File::open(source).ok());
            if let (Some(source), Ok(rest)) = (source, directory.strip_prefix(entry.destination())) {
                let _ = make_directories(source.as_fd(), rest);
            }
        }
        Some(_) => {}
    }
}

fn make_directories(root: BorrowedFd<'_>, path: &Path) -> nix::Result<()> {
    if open_in(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok() {
        return Ok(());
    }
    let mut so_far = PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let parent = open_in(root, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        so_far.push(name);
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Does the rest inside the mount namespace of a created container. The caller stays in it: it is a runner at its end.
///
/// # Errors
/// For the user.
pub fn finish(pid: i32, rest: &Rest) -> Result<(), String> {
    let namespace = format!("/proc/{pid}/ns/mnt");
    let file = File::open(&namespace).map_err(|error| format!("cannot open {namespace}: {error}"))?;
    // Afterwards "/" is the container's root.
    setns(&file, CloneFlags::CLONE_NEWNS)
        .map_err(|error| format!("cannot enter {namespace}: {}", error.desc()))?;
    let none = None::<&str>;
    for Propagation { destination, flags, peer } in &rest.propagations {
        let joined = peer.as_ref().map_or(Ok(()), |peer| sys::join_peers(peer.as_fd(), destination));
        joined
            .and_then(|()| Ok(mount(none, destination, none, *flags, none)?))
            .map_err(|error| format!("cannot set the propagation of {}: {error}", destination.display()))?;
    }
    for (destination, source) in &rest.copies {
        copy_tree(source.as_fd(), destination)
            .map_err(|error| format!("cannot copy {} up: {error}", destination.display()))?;
    }
    if rest.sealed_dev {
        seal("/dev").map_err(|error| format!("cannot make /dev read-only: {}", error.desc()))?;
    }
    for path in &rest.readonly_paths {
        let recursively = MsFlags::MS_BIND | MsFlags::MS_REC;
        match mount(Some(&path[..]), &path[..], none, recursively, none).and_then(|()| seal(path)) {
            // As runc: what is not there needs no protection.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(format!("cannot make {path} read-only: {}", error.desc())),
        }
    }
    Ok(())
}

/// Makes a mount read-only; its other flags stay.
fn seal(mount_point: &str) -> nix::Result<()> {
    const KEPT: FsFlags = FsFlags::ST_NOSUID.union(FsFlags::ST_NODEV).union(FsFlags::ST_NOEXEC);
    // The two sets share these numbers; what is said of access times stays where nothing is said.
    let kept = MsFlags::from_bits_truncate((statvfs(mount_point)?.flags() & KEPT).bits());
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    mount(None::<&str>, mount_point, None::<&str>, flags, None::<&str>)
}

/// Copies what is in a directory, with owners, modes and links.
fn copy_tree(source: BorrowedFd<'_>, destination: &Path) -> io::Result<()> {
    // By its descriptor, which works whatever covers it by now; /proc is the agent's own only by that descriptor too.
    for entry in nix::dir::Dir::from_fd(source.try_clone_to_owned()?)?.iter() {
        let entry = entry?;
        let name = Path::new(std::ffi::OsStr::new(match entry.file_name().to_str() {
            Ok("." | "..") => continue,
            Ok(name) => name,
            Err(_) => return Err(io::Error::other("a file name is not UTF-8")),
        }));
        let target = destination.join(name);
        let status = fstatat(source, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = status.st_mode & 0o7777;
        match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => {
                match fs::DirBuilder::new().mode(mode).create(&target) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let below = nix::fcntl::openat(source, name, flags, Mode::empty())?;
                copy_tree(below.as_fd(), &target)?;
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut from = File::from(nix::fcntl::openat(source, name, flags, Mode::empty())?);
                io::copy(&mut from, &mut File::create_new(&target)?)?;
            }
            SFlag::S_IFLNK => {
                let link = nix::fcntl::readlinkat(source, name)?;
                std::os::unix::fs::symlink(link, &target)?;
            }
            // Devices, sockets and pipes are not content.
            _ => continue,
        }
        let owner = (Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)));
        let no_follow = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(nix::fcntl::AT_FDCWD, &target, owner.0, owner.1, no_follow)?;
        if !fs::symlink_metadata(&target)?.file_type().is_symlink() {
            // After the change of owner, which clears set-user-ID bits.
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("rt-agent-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory");
        directory
    }

    fn mount_entry(json: &str) -> Mount {
        serde_json::from_str(json).expect("a mount")
    }

    #[test]
    fn options_that_libcontainer_does_not_know_are_taken() {
        let directory = scratch("options");
        fs::create_dir(directory.join("etc")).expect("a directory");
        fs::set_permissions(directory.join("etc"), fs::Permissions::from_mode(0o751)).expect("a mode");
        let root = File::open(&directory).expect("open");
        let mut rest = Rest::default();
        let mut tmpfs = mount_entry(
            r#"{"destination":"/etc","type":"tmpfs","options":["tmpcopyup","size=1m","rshared"]}"#,
        );
        take_options(&mut tmpfs, root.as_fd(), &mut rest).expect("taken");
        assert_eq!(tmpfs.options().as_deref(), Some(&["size=1m".to_owned(), "mode=751".to_owned()][..]));
        assert_eq!(rest.copies.len(), 1);
        assert_eq!(rest.propagations[0].flags, MsFlags::MS_SHARED | MsFlags::MS_REC);
        let mut bind =
            mount_entry(r#"{"destination":"/v","type":"bind","options":["rbind","rprivate","ro"]}"#);
        let mut rest = Rest::default();
        take_options(&mut bind, root.as_fd(), &mut rest).expect("taken");
        assert_eq!(bind.options().as_deref(), Some(&["rbind".to_owned(), "ro".to_owned()][..]));
        assert!(rest.is_empty());
        for (options, sealed) in [(r#""ro""#, true), (r#""ro","rw""#, false)] {
            let mut dev = mount_entry(&format!(
                r#"{{"destination":"/dev","type":"tmpfs","options":["mode=755",{options}]}}"#
            ));
            let mut rest = Rest::default();
            take_options(&mut dev, root.as_fd(), &mut rest).expect("taken");
            assert_eq!(rest.sealed_dev, sealed);
        }
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn options_are_said_as_libcontainer_understands_them() {
        let of = |option: &str, is_bind| reworded(option.to_owned(), is_bind);
        assert_eq!(of("nosymfollow", true).as_deref(), Some("rnosymfollow"));
        assert_eq!(of("sync", false).as_deref(), Some("sync="));
        assert_eq!(of("lazytime", false).as_deref(), Some("lazytime"));
        assert_eq!((of("sync", true), of("mand", false)), (None, None));
        assert_eq!(of("size=1m", false).as_deref(), Some("size=1m"));
    }

    #[test]
    fn devices_are_found_a_place() {
        let directory = scratch("nodes");
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","root":{"path":"/","readonly":true},"linux":{"devices":[
                {"path":"/dev/fuse","type":"c","major":10,"minor":229},
                {"path":"/opt/pipe","type":"p","major":0,"minor":0,"fileMode":384}]}}"#,
        )
        .expect("a spec");
        add_dev(&mut spec);
        bind_devices(&mut spec, &directory).expect("made");
        let devices = spec.linux().as_ref().and_then(|linux| linux.devices().clone()).expect("devices");
        assert_eq!(devices.iter().map(LinuxDevice::path).collect::<Vec<_>>(), [Path::new("/dev/fuse")]);
        let mounts = spec.mounts().as_deref().expect("mounts");
        assert_eq!((mounts[0].destination(), mounts[0].typ().as_deref()), (&"/dev".into(), Some("tmpfs")));
        let node = directory.join("device-0");
        assert_eq!(
            (mounts[1].destination(), mounts[1].source().as_ref()),
            (&"/opt/pipe".into(), Some(&node))
        );
        assert_eq!(fs::metadata(&node).expect("status").mode(), libc::S_IFIFO | 0o600);
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn directories_are_made_inside_the_root() {
        let directory = scratch("cwd");
        let (root, outside) = (directory.join("root"), directory.join("outside"));
        fs::create_dir(&root).expect("a directory");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("a link");
        fs::create_dir_all(root.join(outside.strip_prefix("/").expect("absolute"))).expect("a directory");
        let file = File::open(&root).expect("open");
        make_directories(file.as_fd(), Path::new("/link/new/deep")).expect("made");
        assert!(!outside.exists());
        assert!(root.join(outside.strip_prefix("/").expect("absolute")).join("new/deep").is_dir());
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_tree_is_copied_whole() {
        let directory = scratch("copy");
        let (from, to) = (directory.join("from"), directory.join("to"));
        fs::create_dir_all(from.join("sub")).expect("a directory");
        fs::create_dir(&to).expect("a directory");
        fs::write(from.join("sub/file"), "text").expect("a file");
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o640)).expect("a mode");
        std::os::unix::fs::symlink("nowhere", from.join("link")).expect("a link");
        copy_tree(File::open(&from).expect("open").as_fd(), &to).expect("copied");
        assert_eq!(fs::read_to_string(to.join("sub/file")).expect("read"), "text");
        assert_eq!(fs::metadata(to.join("sub/file")).expect("status").mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(to.join("link")).expect("a link"), Path::new("nowhere"));
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn old_devices_are_cleared_and_files_kept() {
        let directory = scratch("devices");
        fs::create_dir(directory.join("dev")).expect("a directory");
        std::os::unix::fs::symlink("x", directory.join("dev/fd")).expect("a link");
        fs::write(directory.join("dev/null"), "a file").expect("a file");
        let root = File::open(&directory).expect("open");
        clear_devices(root.as_fd(), std::iter::empty());
        assert!(fs::symlink_metadata(directory.join("dev/fd")).is_err());
        assert!(directory.join("dev/null").exists());
        fs::remove_dir_all(directory).expect("removed");
    }
}
