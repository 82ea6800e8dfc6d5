//! The guest's cgroup tree, version 2: `/rt/ID` per container, every controller enabled down to it.
//!
//! The agent makes and removes the groups; limits inside them are libcontainer's to write. The host's `cgroupsPath`
//! names a group of the host and has no meaning here.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::lookup::words;
use crate::sys;

/// Where the tree is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Parent of the containers' groups.
const PARENT: &str = "/sys/fs/cgroup/rt";

/// Enables every controller for the containers' groups, once.
pub fn prepare() -> io::Result<()> {
    fs::create_dir(PARENT)?;
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    let all: String = controllers.split_ascii_whitespace().map(|name| format!("+{name} ")).collect();
    for group in [ROOT, PARENT] {
        let file = Path::new(group).join("cgroup.subtree_control");
        // All at once is one pass in the kernel; one that cannot be had must not keep the others away.
        if fs::write(&file, &all).is_err() {
            for one in all.split_ascii_whitespace() {
                let _ = fs::write(&file, one);
            }
        }
    }
    Ok(())
}

/// What `linux.cgroupsPath` is for libcontainer.
pub fn path_in_tree(container: &str) -> PathBuf {
    Path::new("/rt").join(container)
}

/// The container's group in the file system.
pub fn directory(container: &str) -> PathBuf {
    Path::new(PARENT).join(container)
}

/// A group below the container's, which has to be there.
///
/// # Errors
/// For the user, in words that callers of runc look for.
pub fn below(container: &str, relative: &str) -> Result<PathBuf, String> {
    let is_below = |part| matches!(part, Component::Normal(_) | Component::CurDir | Component::RootDir);
    if !Path::new(relative).components().all(is_below) {
        return Err(format!("bad sub cgroup path: {relative} is not a sub cgroup path"));
    }
    let group = directory(container).join(relative.trim_start_matches('/'));
    match group.join("cgroup.procs").metadata() {
        Ok(_) => Ok(group),
        Err(error) => Err(refusal(&group, &error)),
    }
}

/// That a group does not take a process.
pub fn refusal(group: &Path, error: &io::Error) -> String {
    let reason = error.raw_os_error().map_or_else(|| error.to_string(), |code| words(Errno::from_raw(code)));
    format!("error adding pid of the process to cgroups: {}/cgroup.procs: {reason}", group.display())
}

/// Makes the container's group.
pub fn create(container: &str) -> io::Result<()> {
    fs::create_dir(directory(container))
}

/// Forks into `group`, as [`sys::fork_into`]. Where a container has made groups below its own and given them controllers,
/// none may be in between: then, unless the group was `named`, into the one that its first process `init` is in, as runc does.
///
/// # Errors
/// What the kernel says.
pub fn fork_into(group: &Path, named: bool, init: i32) -> io::Result<Option<Pid>> {
    match sys::fork_into(File::open(group)?.as_fd()) {
        Err(Errno::EBUSY) if !named => {
            let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
            let theirs = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(Errno::EBUSY)?;
            Ok(sys::fork_into(File::open(Path::new(ROOT).join(theirs))?.as_fd())?)
        }
        other => Ok(other?),
    }
}

/// Kills every process in the group and those below.
pub fn kill(container: &str) -> io::Result<()> {
    match fs::write(directory(container).join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The processes of the group and those below.
pub fn processes(container: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    collect(&directory(container), &mut found)?;
    Ok(found)
}

fn collect(group: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Stops or continues every process of the group. The kernel does it some time later.
pub fn freeze(container: &str, frozen: bool) -> io::Result<()> {
    fs::write(directory(container).join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

/// True when the group was told to stop.
pub fn is_frozen(container: &str) -> bool {
    let state = fs::read_to_string(directory(container).join("cgroup.freeze"));
    state.is_ok_and(|text| text.trim() == "1")
}

/// Waits until an entry of cgroup.events has this value.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`]; what the kernel says.
pub fn wait_for_event(container: &str, name: &str, value: u64, deadline: Instant) -> io::Result<()> {
    let file = File::open(directory(container).join("cgroup.events"))?;
    loop {
        if entry(&read_again(&file)?, name) == Some(value) {
            return Ok(());
        }
        let left = deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a file from its beginning: poll(2) then tells of changes since.
pub fn read_again(file: &File) -> io::Result<String> {
    let mut bytes = [0; 4096];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// The number of a line `name number`.
pub fn entry(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Kills what is left in the group and removes it with those below.
///
/// # Errors
/// The last refusal, when processes have not gone within ten seconds.
pub fn remove(container: &str) -> io::Result<()> {
    let group = directory(container);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut pause = Duration::from_micros(200);
    loop {
        match remove_tree(&group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        // Killed processes leave the group a little after the kill.
        kill(container)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        other => return other,
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_their_whole_name() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(entry(text, "oom_kill"), Some(2));
        assert_eq!(entry(text, "oom"), Some(3));
        assert_eq!(entry(text, "frozen"), None);
    }

    #[test]
    fn groups_are_below_the_containers() {
        assert_eq!(
            below("c", "../d").expect_err("refused"),
            "bad sub cgroup path: ../d is not a sub cgroup path"
        );
        assert!(below("c", "a/../../d").is_err());
    }
}
