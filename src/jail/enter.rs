//! The child's half: lock this process in, for good.

use std::fs;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::Resource;
use nix::sys::stat::{Mode, umask};

use super::root;
use super::{Error, FIRST_UID, Jail, Limits, User, step};
use crate::sys::credentials::{self, Capabilities};
use crate::sys::mount;

/// Locks the calling process in. Afterwards it has the root, user, capabilities and limits that `jail` names, no
/// network, /dev/null as its standard input, and dies with the thread that spawned it.
///
/// Only in a process started by [`Spawn`](super::Spawn), while it has one thread. On an error the process is in no defined
/// state, and ends.
///
/// # Errors
/// [`Error`], with the step or the path that failed.
pub fn enter(jail: &Jail<'_>) -> Result<(), Error> {
    check_spawned()?;
    let keep = Capabilities::of(jail.capabilities);
    let id = match jail.user {
        User::Own => own_id()?,
        User::Root => 0,
    };
    let null =
        fs::File::options().read(true).write(true).open("/dev/null").map_err(step("open /dev/null"))?;

    umask(Mode::empty());
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a network namespace"))?;
    mount::leave_propagation().map_err(step("leave the host's mount propagation"))?;
    let root = root::build(&jail.root, id)?;
    mount::enter_root(root.as_fd()).map_err(step("change the root directory"))?;
    drop(root);
    umask(Mode::from_bits_truncate(0o077));

    limit(&jail.limits, jail.user).map_err(step("set limits"))?;
    credentials::forbid_new_privileges().map_err(step("set no_new_privs"))?;
    credentials::bound(keep).map_err(step("reduce the bounding set"))?;
    credentials::become_user(id, id).map_err(step("change the user ID"))?;
    credentials::restrict(keep).map_err(step("reduce the capabilities"))?;

    credentials::hide_memory().map_err(step("forbid core dumps"))?;
    credentials::die_with_parent().map_err(step("die with the parent"))?;
    check_parent()?;
    nix::unistd::dup2_stdin(&null).map_err(step("replace standard input"))?;
    Ok(())
}

/// Refuses to lock in anything else: on a process in the host's namespaces, what follows would take the host's root away.
fn check_spawned() -> Result<(), Error> {
    if std::process::id() != 1 {
        return Err(Error::NotSpawned("it is not the first process of a PID namespace"));
    }
    // IDs, capabilities and the network namespace belong to a thread.
    match fs::read_dir("/proc/thread-self/../../task").map(Iterator::count) {
        Ok(1) => {}
        Ok(_) => return Err(Error::NotSpawned("it has more than one thread")),
        Err(source) => return Err(Error::Enter { what: "count threads in /proc", source }),
    }
    check_parent()
}

/// Standard input is a pidfd of the process that called `Spawn`: readable once that has ended. PR_SET_PDEATHSIG says nothing
/// about a parent that ended before, and in a PID namespace of its own a process does not see its parent's PID.
fn check_parent() -> Result<(), Error> {
    let stdin = std::io::stdin();
    let mut parent = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut parent, PollTimeout::ZERO).map_err(step("look for the parent"))? {
        0 => Ok(()),
        _ => Err(Error::Orphaned),
    }
}

/// [`FIRST_UID`] plus the PID that this process has where /proc comes from, the host; 65534 where rt's user
/// namespace has no such ID.
fn own_id() -> Result<u32, Error> {
    const NOBODY: u32 = 65_534;
    let link = fs::read_link("/proc/self").map_err(step("read /proc/self"))?;
    let pid = link.to_str().and_then(|pid| pid.parse::<u32>().ok());
    let id = FIRST_UID + pid.ok_or(Error::NotSpawned("/proc/self is not a process ID"))?;
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        if !maps(&fs::read_to_string(map).map_err(step("read /proc/self/uid_map"))?, id) {
            return Ok(NOBODY);
        }
    }
    Ok(id)
}

/// Whether an ID map (user_namespaces(7)) has `id` inside.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(first), _, Some(count)) => id >= first && id - first < count,
            _ => false,
        }
    })
}

fn limit(limits: &Limits, user: User) -> std::io::Result<()> {
    credentials::limit(Resource::RLIMIT_CORE, 0)?;
    credentials::limit(Resource::RLIMIT_MEMLOCK, 0)?;
    credentials::limit(Resource::RLIMIT_NOFILE, limits.open_files)?;
    if user == User::Own {
        credentials::limit(Resource::RLIMIT_NPROC, limits.threads)?;
    }
    if let Some(bytes) = limits.file_size {
        credentials::limit(Resource::RLIMIT_FSIZE, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::maps;

    #[test]
    fn reads_id_maps() {
        let host = "         0          0 4294967295\n";
        let container = "         0     100000      65536\n     70000     300000          1\n";
        assert!(maps(host, 0x7274_0001));
        assert!(!maps(container, 0x7274_0001));
        assert!(maps(container, 65_535) && maps(container, 70_000) && !maps(container, 65_536));
        assert!(!maps("", 0));
    }
}
