//! From outside: what a helper that runs already is to see more of, or no longer.
//!
//! The helper has given up every right to mount anything, and keeps it that way. Its starter, the host's root, enters its mount
//! namespace for the time of one call and does it there: in a thread of its own with a root directory of its own, so that
//! nothing else in this process ever sees the helper's files, and nothing of the helper's makes a path here mean another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, fstatat, umask};
use nix::unistd::{UnlinkatFlags, chroot, fchdir, unlinkat};

use super::root::{self, Bind};
use super::{Error, path_error, step};
use crate::sys::mount;
use crate::sys::pidfd::ProcessId;

/// Lays more into the root of a running helper that was started with [`Root::Share`](super::Root::Share). Nothing is added after
/// an error.
///
/// # Errors
/// [`Error::Ended`]; [`Error`]: a source cannot be used, or a target is taken.
pub fn extend(helper: ProcessId, binds: &[Bind]) -> Result<(), Error> {
    let (binds, attributes) = root::plan_share(binds)?;
    // Before entering, where the host's paths are.
    let sources = binds.iter().map(root::open_source).collect::<Result<Vec<_>, _>>()?;
    inside(helper, move || {
        let tree = writable_root()?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = openat(AT_FDCWD, "/", flags, Mode::empty()).map_err(step("open the root of a helper"))?;
        // What is taken is not to be undone below.
        for bind in &binds {
            if fstatat(&root, bind.target.as_path(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
                return Err(path_error("its name is taken", &bind.target, Errno::EEXIST));
            }
        }
        let mut laid = Vec::new();
        for (bind, source) in binds.iter().zip(sources) {
            laid.push(bind.target.as_path());
            if let Err(error) = root::lay(bind, source, attributes, tree.as_fd(), root.as_fd()) {
                let _ = laid.into_iter().try_for_each(|target| take(target, tree.as_fd()));
                return Err(error);
            }
        }
        Ok(())
    })
}

/// Takes away what [`extend`], or the helper's start, laid there. What the helper has open stays until it closes it. Targets
/// that are not there are passed over.
///
/// # Errors
/// [`Error::Ended`]; [`Error`]
pub fn withdraw(helper: ProcessId, targets: &[PathBuf]) -> Result<(), Error> {
    targets.iter().try_for_each(|target| root::check_target(target))?;
    inside(helper, || {
        let tree = writable_root()?;
        targets.iter().try_for_each(|target| take(target, tree.as_fd()))
    })
}

/// Runs `work` where a helper lives, in its mount namespace and its root, and nothing else there.
pub(super) fn inside<T: Send>(
    helper: ProcessId,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let process = helper.open().map_err(step("open the process of a helper"))?.ok_or(Error::Ended)?;
    let root = open_root(helper)?;
    let work = || {
        // Root, working directory and umask of this thread alone.
        unshare(CloneFlags::CLONE_FS).map_err(step("separate a thread"))?;
        setns(process, CloneFlags::CLONE_NEWNS).map_err(step("enter the mount namespace of a helper"))?;
        // The root of the namespace, where setns leads, is another one if whoever started the helper lived in a chroot(2).
        fchdir(&root).and_then(|()| chroot(".")).map_err(step("enter the root of a helper"))?;
        umask(Mode::empty());
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("jail".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(step("start a thread"))?;
        thread.join().unwrap_or_else(|_| unreachable!("panics abort"))
    })
}

fn open_root(helper: ProcessId) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/root", helper.pid);
    let root =
        openat(AT_FDCWD, path.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    // Afterwards: a number that is still this process's was so when its root was opened.
    match helper.is_alive() {
        true => root.map_err(step("open the root of a helper")),
        false => Err(Error::Ended),
    }
}

/// The root's tmpfs once more, writable: the helper's own mount of it stays read-only.
fn writable_root() -> Result<OwnedFd, Error> {
    let tree = mount::clone_tree(Path::new("/"), false).map_err(step("open the root of a helper"))?;
    mount::clear_readonly(tree.as_fd()).map_err(step("open the root of a helper for writing"))?;
    Ok(tree)
}

/// Unmounts one target, and removes it with the directories that were only there for it.
fn take(target: &Path, tree: BorrowedFd<'_>) -> Result<(), Error> {
    let failed = |errno: Errno| path_error("take it away", target, errno);
    match umount2(&Path::new("/").join(target), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not mounted: the copy of a device or socket, or what an interrupted call has left.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    match unlinkat(tree, target, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(tree, target, UnlinkatFlags::RemoveDir),
        other => other,
    }
    .or_else(|errno| if errno == Errno::ENOENT { Ok(()) } else { Err(failed(errno)) })?;
    for parent in target.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        match unlinkat(tree, parent, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}
