//! From outside, too: what is mounted and unmounted on the host, below what a helper sees of it.
//!
//! The helper gets copies of the mounts, which are its own. Mounts that pass by themselves (MS_SLAVE) would let it hold the host's: what it has open
//! there would make the host's umount(2) fail.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{SFlag, fstat};

use super::extend::inside;
use super::root::{self, Bind};
use super::{Error, step};
use crate::sys::mount;
use crate::sys::mountinfo::{self, Mount};
use crate::sys::pidfd::ProcessId;

/// A mount that the helper lacks: where it is to be, and a copy of it.
struct Lacking<'a> {
    bind: &'a Bind,
    target: PathBuf,
    tree: OwnedFd,
}

/// Makes the mounts below the targets of `binds`, which the helper has, those that are below their sources now. What cannot be mounted
/// is told and left out. Afterwards the helper has no more of these targets.
///
/// # Errors
/// [`Error::Ended`]; [`Error`]: the helper cannot be entered, or mounts not listed.
pub fn follow(helper: ProcessId, binds: &[Bind]) -> Result<Vec<PathBuf>, Error> {
    let host = mountinfo::read("self").map_err(step("list mounts"))?;
    let theirs = match mountinfo::read(&helper.pid.to_string()) {
        Ok(mounts) if helper.is_alive() => mounts,
        Err(error) if helper.is_alive() => return Err(step("list the mounts of a helper")(error)),
        _ => return Err(Error::Ended),
    };
    let mut gone = Vec::new();
    let mut lacking = Vec::new();
    for bind in binds {
        let wanted = mountinfo::below(&host, &bind.source);
        let there = mountinfo::below(&theirs, &Path::new("/").join(&bind.target));
        let (too_many, too_few) = compare(&wanted, &there);
        gone.extend(too_many.into_iter().map(|path| bind.target.join(path)));
        for path in too_few {
            match open(wanted[&path], bind) {
                Ok(Some(tree)) => lacking.push(Lacking { bind, target: bind.target.join(path), tree }),
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot open {}: {error}", bind.source.join(path).display()),
            }
        }
    }
    if gone.is_empty() && lacking.is_empty() {
        return Ok(gone);
    }
    let take = &gone;
    inside(helper, move || {
        // The deeper ones first.
        for target in take.iter().rev() {
            match umount2(&Path::new("/").join(target), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(errno) => tracing::warn!("cannot take {} away: {}", target.display(), errno.desc()),
            }
        }
        for Lacking { bind, target, tree } in lacking {
            if let Err(error) = lay(&tree, &target) {
                let source = bind.source.display();
                tracing::warn!(
                    "cannot mount what was mounted below {source} at {}: {error}",
                    target.display()
                );
            }
        }
        Ok(())
    })?;
    Ok(gone)
}

/// What is there and not wanted, with all below it, and what is wanted and then not there. Those above come before those below.
fn compare(
    wanted: &BTreeMap<PathBuf, &Mount>,
    there: &BTreeMap<PathBuf, &Mount>,
) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut gone: Vec<PathBuf> = Vec::new();
    for (path, mount) in there {
        let stays = wanted.get(path).is_some_and(|wanted| wanted.shows(mount));
        if !stays || gone.iter().any(|above| path.starts_with(above)) {
            gone.push(path.clone());
        }
    }
    let lacks = |path: &&PathBuf| !there.contains_key(*path) || gone.contains(path);
    let lacking = wanted.keys().filter(lacks).cloned().collect();
    (gone, lacking)
}

/// A copy of that mount alone, with what the bind asks for. `None` where its place leads to another, or where it is no file or directory.
fn open(wanted: &Mount, bind: &Bind) -> io::Result<Option<OwnedFd>> {
    // Who may write there must not lead this elsewhere.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = match openat2(AT_FDCWD, &wanted.point, how) {
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => return Ok(None),
        other => other?,
    };
    let kind = SFlag::from_bits_truncate(fstat(&place)?.st_mode & SFlag::S_IFMT.bits());
    let is_it = mountinfo::of_descriptor(place.as_raw_fd())? == wanted.id;
    if !is_it || ![SFlag::S_IFDIR, SFlag::S_IFREG].contains(&kind) {
        return Ok(None);
    }
    let tree = match mount::clone_of(place.as_fd()) {
        // Nobody may: it is unbindable, or a mount namespace.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        other => other?,
    };
    if let Some(map) = bind.id_map.as_ref().filter(|map| map.recursive) {
        mount::map_ids(tree.as_fd(), map.namespace()?.as_fd(), false)?;
    }
    root::restrict_share(tree.as_fd(), bind.readonly)?;
    Ok(Some(tree))
}

/// Called inside the helper.
fn lay(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = openat2(AT_FDCWD, &Path::new("/").join(target), how)?;
    mount::attach_at(tree.as_fd(), place.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(list: &[(&str, &str)]) -> Vec<Mount> {
        let mount = |(id, (point, device)): (usize, &(&str, &str))| Mount {
            id: id as u64 + 10,
            parent: 1,
            device: (*device).to_owned(),
            root: "/".into(),
            point: Path::new("/v").join(point),
            kind: "tmpfs".into(),
            options: "rw".into(),
        };
        list.iter().enumerate().map(mount).collect()
    }

    fn compared(wanted: &[(&str, &str)], there: &[(&str, &str)]) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (wanted, there) = (mounts(wanted), mounts(there));
        let top = Path::new("/v");
        compare(&mountinfo::below(&wanted, top), &mountinfo::below(&there, top))
    }

    #[test]
    fn what_has_come_and_gone_is_found() {
        let paths = |list: &[&str]| -> Vec<PathBuf> { list.iter().map(PathBuf::from).collect() };
        assert_eq!(compared(&[("a", "0:1")], &[("a", "0:1")]), (paths(&[]), paths(&[])));
        assert_eq!(compared(&[("a", "0:1"), ("a/b", "0:2")], &[]), (paths(&[]), paths(&["a", "a/b"])));
        assert_eq!(compared(&[], &[("a", "0:1"), ("a/b", "0:2")]), (paths(&["a", "a/b"]), paths(&[])));
        // Another one in its place takes with it what lies on it.
        let wanted = [("a", "0:9"), ("a/b", "0:2"), ("c", "0:3")];
        let there = [("a", "0:1"), ("a/b", "0:2"), ("c", "0:3")];
        assert_eq!(compared(&wanted, &there), (paths(&["a", "a/b"]), paths(&["a", "a/b"])));
    }
}
