//! Mounts by descriptor: detached trees (open_tree, fsmount) that become visible only when they are complete
//! (move_mount), and vanish with their last descriptor otherwise. Linux 5.12 or later.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir, pivot_root};

/// MOUNT_ATTR_… of mount_setattr(2).
pub type Attributes = u64;

pub const READONLY: Attributes = libc::MOUNT_ATTR_RDONLY;
pub const NOSUID: Attributes = libc::MOUNT_ATTR_NOSUID;
pub const NODEV: Attributes = libc::MOUNT_ATTR_NODEV;
pub const NOEXEC: Attributes = libc::MOUNT_ATTR_NOEXEC;
/// Linux 5.14.
pub const NOSYMFOLLOW: Attributes = libc::MOUNT_ATTR_NOSYMFOLLOW;

const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only called with the result of a system call that returns a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A new tmpfs, mounted nowhere, with mount options such as `("mode", "755")`.
///
/// # Errors
/// What fsopen(2), fsconfig(2) or fsmount(2) say.
pub fn tmpfs(options: &[(&CStr, &CStr)], attributes: Attributes) -> io::Result<OwnedFd> {
    make(c"tmpfs", options, attributes)
}

/// The sysfs of the calling thread's network namespace, mounted nowhere, read-only.
///
/// # Errors
/// What fsopen(2), fsconfig(2) or fsmount(2) say.
pub fn sysfs() -> io::Result<OwnedFd> {
    make(c"sysfs", &[], READONLY | NOSUID | NODEV | NOEXEC)
}

fn make(kind: &CStr, options: &[(&CStr, &CStr)], attributes: Attributes) -> io::Result<OwnedFd> {
    // SAFETY: a string that outlives the call, and a number.
    let context =
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let configure = |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: key and value are null or strings of the caller's that outlive the call.
        done(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) })
    };
    for (key, value) in options {
        configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    // SAFETY: numbers only.
    descriptor(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes)
    })
}

/// A detached copy of what is mounted at `path`, as seen from there: a bind mount before it is attached.
///
/// # Errors
/// What open_tree(2) says.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    path.with_nix_path(|path| {
        // SAFETY: a string that outlives the call, and numbers.
        descriptor(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
    })?
}

/// The same of a place that is open, and of its mount alone.
///
/// # Errors
/// What open_tree(2) says.
pub fn clone_of(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: a string that outlives the call, and numbers.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Sets attributes of a mount, or of all mounts of a tree, and makes the latter private.
///
/// # Errors
/// What mount_setattr(2) says; EINVAL for an attribute that the kernel does not know.
pub fn set_attributes(tree: BorrowedFd<'_>, set: Attributes, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: if recursive { libc::MS_PRIVATE } else { 0 },
        userns_fd: 0,
    };
    change_attributes(tree, &attributes, recursive)
}

/// Gives the files of a detached mount other owners, those that the user namespace says (MOUNT_ATTR_IDMAP).
///
/// # Errors
/// What mount_setattr(2) says; EINVAL for a file system that cannot.
pub fn map_ids(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    change_attributes(tree, &attributes, recursive)
}

/// Makes a mount writable, as far as its file system is.
///
/// # Errors
/// What mount_setattr(2) says.
pub fn clear_readonly(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: READONLY, propagation: 0, userns_fd: 0 };
    change_attributes(tree, &attributes, false)
}

fn change_attributes(tree: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` outlives the call and its size is the one given.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Attaches a detached tree at the last component `name` of the directory `dir`; a final symbolic link is not followed.
///
/// # Errors
/// What move_mount(2) says.
pub fn attach(tree: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    move_mount(tree, dir.as_raw_fd(), name, 0)
}

/// Attaches a detached tree at a place that is open.
///
/// # Errors
/// What move_mount(2) says.
pub fn attach_at(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(tree, place.as_raw_fd(), c"", libc::MOVE_MOUNT_T_EMPTY_PATH)
}

fn move_mount(tree: BorrowedFd<'_>, dir: RawFd, name: &CStr, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: strings that outlive the call, and numbers.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            dir,
            name.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    })
}

/// Keeps this mount namespace's changes to itself, while what the host unmounts is unmounted here too.
///
/// In a chroot(2) to a directory that is no mount the root is made one, which is what can be changed so and exchanged later. Only
/// while this process has one thread.
///
/// # Errors
/// What mount(2), setns(2), chroot(2), open_tree(2) or move_mount(2) say.
pub fn leave_propagation() -> io::Result<()> {
    let leave = || mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>);
    match leave() {
        Err(Errno::EINVAL) => {
            let root = File::open("/")?;
            // To the root of the namespace.
            setns(File::open("/proc/self/ns/mnt")?, CloneFlags::CLONE_NEWNS)?;
            leave()?;
            fchdir(&root)?;
            chroot(".")?;
            let tree = clone_tree(Path::new("/"), true)?;
            attach_over_root(tree.as_fd())?;
            fchdir(&tree)?;
            Ok(chroot(".")?)
        }
        other => Ok(other?),
    }
}

/// Attaches a detached tree where it can be worked on and later be made the root: over `/`, which hides nothing
/// from this process, since its own root stays below.
///
/// # Errors
/// What move_mount(2) says.
pub fn attach_over_root(tree: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(tree, libc::AT_FDCWD, c"/", 0)
}

/// Makes an attached tree the root and the working directory of this process, and lets go of every other mount of its namespace.
///
/// # Errors
/// What fchdir(2), pivot_root(2), umount2(2) or chdir(2) say.
pub fn enter_root(root: BorrowedFd<'_>) -> io::Result<()> {
    fchdir(root)?;
    // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")") and is peeled off.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}
