//! The root directory of a helper: a small read-only tmpfs with nothing in it but what is named here.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::{Error, path_error, step};
use crate::sys::id_map::IdMap;
use crate::sys::mount::{self, Attributes, NODEV, NOEXEC, NOSUID, NOSYMFOLLOW, READONLY};

/// What a helper finds below `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// Nothing: not a file, not /proc.
    Empty,
    /// These, in which the host's kernel executes nothing, honours no set-user-ID bit, opens no
    /// device and follows no symbolic link.
    Share(Vec<Bind>),
    /// The host's programs and libraries.
    System(System),
}

/// A file or directory of the host, with everything mounted below it. Of a device, FIFO or socket
/// the jail gets a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host. Symbolic links are followed, as mount(2) does: whoever names a
    /// source may name any.
    pub source: PathBuf,
    /// Where it appears: a relative path of plain names.
    pub target: PathBuf,
    pub readonly: bool,
    /// Other owners than those on disk.
    pub id_map: Option<IdMap>,
}

/// For a program of the host's, such as QEMU: /usr, the libraries and the loader's cache, all read-only, and a /dev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct System {
    /// Also, such as the kernel to boot.
    pub extra: Vec<Bind>,
    /// Beside /dev/null and /dev/urandom. The helper's user owns them.
    pub devices: Vec<Device>,
}

/// Device files of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Kvm,
    VhostVsock,
    VhostNet,
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Device::Kvm => "kvm",
            Device::VhostVsock => "vhost-vsock",
            Device::VhostNet => "vhost-net",
        }
    }
}

const SHARE_ATTRIBUTES: Attributes = NOSUID | NODEV | NOEXEC | NOSYMFOLLOW;
const SYSTEM_DIRECTORIES: [&str; 6] = ["usr", "bin", "sbin", "lib", "lib32", "lib64"];
const SYSTEM_FILES: [&str; 1] = ["etc/ld.so.cache"];

/// What is to be laid into the root, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Name and content.
    links: Vec<(PathBuf, PathBuf)>,
    binds: Vec<Bind>,
    /// On top of READONLY where the bind says so.
    attributes: Attributes,
    /// Below `dev`.
    devices: Vec<&'static str>,
}

/// Builds the root for user `owner`, attached in this mount namespace and read-only.
pub(super) fn build(root: &Root, owner: u32) -> Result<OwnedFd, Error> {
    let plan = plan(root)?;
    // All sources are opened before the new root is attached, which hides the host's `/`.
    let sources = plan.binds.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
    let attributes = NOSUID | NOEXEC | if plan.devices.is_empty() { NODEV } else { 0 };
    let tree = mount::tmpfs(&[(c"mode", c"755"), (c"size", c"1m")], attributes);
    let tree = tree.map_err(step("make a tmpfs"))?;
    mount::attach_over_root(tree.as_fd()).map_err(step("attach a tmpfs"))?;
    for (name, content) in &plan.links {
        let link = symlinkat(content.as_path(), &tree, name.as_path());
        link.map_err(|errno| path_error("make a symbolic link", name, errno))?;
    }
    for (bind, source) in plan.binds.iter().zip(sources) {
        lay(bind, source, plan.attributes, tree.as_fd(), tree.as_fd())?;
    }
    for name in &plan.devices {
        lay_device(name, owner, tree.as_fd())?;
    }
    mount::set_attributes(tree.as_fd(), READONLY, false).map_err(step("make the root read-only"))?;
    Ok(tree)
}

fn plan(root: &Root) -> Result<Plan, Error> {
    let mut plan = match root {
        Root::Empty => Plan::default(),
        Root::Share(binds) => Plan { binds: binds.clone(), attributes: SHARE_ATTRIBUTES, ..Plan::default() },
        Root::System(system) => {
            let mut plan = Plan { attributes: NOSUID | NODEV, ..Plan::default() };
            for name in SYSTEM_DIRECTORIES.iter().chain(&SYSTEM_FILES) {
                let (source, target) = (Path::new("/").join(name), PathBuf::from(name));
                match fs::read_link(&source) {
                    Ok(content) => plan.links.push((target, content)),
                    Err(_) if source.exists() => {
                        plan.binds.push(Bind { source, target, readonly: true, id_map: None })
                    }
                    Err(_) => {}
                }
            }
            plan.devices = vec!["null", "urandom"];
            plan.devices.extend(system.devices.iter().map(|device| device.name()));
            plan.binds.extend(system.extra.iter().cloned());
            plan
        }
    };
    sort(&mut plan.binds)?;
    Ok(plan)
}

/// What is laid into a share, in order, and the attributes of its mounts.
pub(super) fn plan_share(binds: &[Bind]) -> Result<(Vec<Bind>, Attributes), Error> {
    let mut binds = binds.to_vec();
    sort(&mut binds)?;
    Ok((binds, SHARE_ATTRIBUTES))
}

/// A target is made inside the root before something is mounted on it: never inside what a bind already brought there.
fn sort(binds: &mut [Bind]) -> Result<(), Error> {
    binds.sort_by(|a, b| a.target.cmp(&b.target));
    for bind in &*binds {
        check_target(&bind.target)?;
    }
    for pair in binds.windows(2) {
        if pair[1].target.starts_with(&pair[0].target) {
            return Err(target_error(&pair[1].target, "another one is at or above it"));
        }
    }
    Ok(())
}

pub(super) fn check_target(target: &Path) -> Result<(), Error> {
    let plain: PathBuf = target.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    // Compared as bytes: `components` also overlooks `//`, a final `/`, and `.` in the middle.
    if plain.as_os_str().is_empty() || plain.as_os_str() != target.as_os_str() {
        return Err(target_error(target, "not a relative path of plain names"));
    }
    Ok(())
}

fn target_error(target: &Path, reason: &'static str) -> Error {
    Error::Target { target: target.to_owned(), reason }
}

/// A detached copy of the mounts at a source, and what it is: asked of what was opened, so that nobody can put
/// another kind of file in its place in between.
pub(super) fn open_source(bind: &Bind) -> Result<(OwnedFd, FileStat), Error> {
    let open = || -> io::Result<_> {
        let tree = mount::clone_tree(&bind.source, true)?;
        if let Some(map) = &bind.id_map {
            mount::map_ids(tree.as_fd(), map.namespace()?.as_fd(), map.recursive)?;
        }
        let status = fstat(&tree)?;
        Ok((tree, status))
    };
    let step = if bind.id_map.is_some() { "open it and map its owners (idmap)" } else { "open it" };
    open().map_err(|source| path_error(step, &bind.source, source))
}

/// Makes the target in `root` and attaches the source there in `attached`, which is the same directory, but surely attached in
/// this mount namespace.
pub(super) fn lay(
    bind: &Bind,
    (tree, host): (OwnedFd, FileStat),
    attributes: Attributes,
    root: BorrowedFd<'_>,
    attached: BorrowedFd<'_>,
) -> Result<(), Error> {
    let kind = SFlag::from_bits_truncate(host.st_mode & SFlag::S_IFMT.bits());
    let make = || -> io::Result<()> {
        if kind != SFlag::S_IFDIR && kind != SFlag::S_IFREG {
            return copy_node(&host, kind, &bind.target, root);
        }
        restrict(tree.as_fd(), attributes | if bind.readonly { READONLY } else { 0 })?;
        make_target(root, &bind.target, kind)?;
        let target = CString::new(bind.target.as_os_str().as_bytes())?;
        mount::attach(tree.as_fd(), attached, &target)
    };
    make().map_err(|source| path_error("attach it", &bind.source, source))
}

/// A device, FIFO or socket appears as another of its kind: whoever is served it has its own kernel's device of that number
/// and its own pipe, and the host's file itself is not to be touched.
fn copy_node(host: &FileStat, kind: SFlag, target: &Path, root: BorrowedFd<'_>) -> io::Result<()> {
    let (parent, name) = make_parent(root, target)?;
    let mode = Mode::from_bits_truncate(host.st_mode);
    mknodat(&parent, name.as_c_str(), kind, mode, host.st_rdev)?;
    let (uid, gid) = (Uid::from_raw(host.st_uid), Gid::from_raw(host.st_gid));
    Ok(fchownat(&parent, name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Makes a mount one of a share.
pub(super) fn restrict_share(tree: BorrowedFd<'_>, readonly: bool) -> io::Result<()> {
    restrict(tree, SHARE_ATTRIBUTES | if readonly { READONLY } else { 0 })
}

fn restrict(tree: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    match mount::set_attributes(tree, attributes, true) {
        // Linux before 5.14 has no NOSYMFOLLOW. The file server opens with O_NOFOLLOW in any case.
        Err(error) if is(&error, Errno::EINVAL) && attributes & NOSYMFOLLOW != 0 => {
            mount::set_attributes(tree, attributes & !NOSYMFOLLOW, true)
        }
        result => result,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Makes a directory or an empty file for something to be mounted on.
fn make_target(root: BorrowedFd<'_>, target: &Path, kind: SFlag) -> io::Result<()> {
    let (parent, name) = make_parent(root, target)?;
    match kind {
        SFlag::S_IFDIR => mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755))?,
        _ => mknodat(&parent, name.as_c_str(), SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0)?,
    }
    Ok(())
}

/// Makes the directories that lead to the last name of `target`.
fn make_parent(root: BorrowedFd<'_>, target: &Path) -> io::Result<(OwnedFd, CString)> {
    let mut parent = root.try_clone_to_owned()?;
    let mut names = target.iter().map(|name| CString::new(name.as_bytes())).peekable();
    while let Some(name) = names.next().transpose()? {
        if names.peek().is_none() {
            return Ok((parent, name));
        }
        match mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => parent = open_directory(parent.as_fd(), &name)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::ENOENT.into())
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Makes a device file of the same number as the host's. Not a bind mount: the helper's user could not open that, and
/// the host's own file must keep its owner.
fn lay_device(name: &str, owner: u32, root: BorrowedFd<'_>) -> Result<(), Error> {
    let source = Path::new("/dev").join(name);
    let host = fs::metadata(&source).map_err(|error| path_error("look at it", &source, error))?;
    if !host.file_type().is_char_device() {
        return Err(path_error("use it", &source, Errno::ENODEV));
    }
    let make = || -> io::Result<()> {
        let (parent, name) = make_parent(root, &Path::new("dev").join(name))?;
        mknodat(&parent, name.as_c_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), host.rdev())?;
        let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
        Ok(fchownat(&parent, name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    };
    make().map_err(|error| path_error("make a device file like it", &source, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(targets: &[&str]) -> Result<Plan, Error> {
        let bind =
            |target: &&str| Bind { source: "/".into(), target: target.into(), readonly: false, id_map: None };
        plan(&Root::Share(targets.iter().map(bind).collect()))
    }

    #[test]
    fn a_target_is_a_relative_path_of_plain_names() {
        for good in ["a", "a/rootfs", "a/mounts/3", "...", "a b", "ä"] {
            share(&[good]).unwrap();
        }
        for bad in ["", "/", "/a", ".", "..", "a/..", "../a", "./a", "a/./b", "a//b", "a/", "a/../b"] {
            let error = share(&[bad]).unwrap_err();
            assert!(matches!(error, Error::Target { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn nothing_is_laid_into_what_another_bind_brought() {
        share(&["a/rootfs", "a/mounts/0", "a/rootfs2", "b/rootfs"]).unwrap();
        for bad in [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]] {
            assert!(share(&bad).unwrap_err().to_string().contains("at or above"), "{bad:?}");
        }
        let system = System {
            extra: vec![Bind {
                source: "/etc".into(),
                target: "usr/etc".into(),
                readonly: true,
                id_map: None,
            }],
            devices: vec![],
        };
        assert!(matches!(plan(&Root::System(system)), Err(Error::Target { .. })));
    }

    #[test]
    fn a_share_can_neither_execute_nor_follow() {
        let plan = share(&["a"]).unwrap();
        assert_eq!(plan.attributes, NOSUID | NODEV | NOEXEC | NOSYMFOLLOW);
        assert!(plan.devices.is_empty() && plan.links.is_empty());
    }

    #[test]
    fn a_system_has_libraries_and_the_devices_asked_for() {
        let plan = plan(&Root::System(System { devices: vec![Device::Kvm], ..System::default() })).unwrap();
        assert!(plan.binds.iter().any(|bind| bind.source == Path::new("/usr") && bind.readonly));
        assert_eq!(plan.devices, ["null", "urandom", "kvm"]);
        assert_eq!(plan.attributes, NOSUID | NODEV);
    }
}
