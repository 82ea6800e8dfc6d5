//! The kernel's killing of a container's processes for want of memory, as its cgroup counts it (memory.events).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroup;
use crate::process::Process;

/// How often a watcher looks whether the container has ended.
const LOOK_MS: u16 = 250;

/// Processes killed so far, in the container's group and those below.
pub fn kills(container: &str) -> u64 {
    let path = cgroup::directory(container).join("memory.events");
    fs::read_to_string(path).ok().and_then(|text| cgroup::entry(&text, "oom_kill")).unwrap_or(0)
}

/// Waits until more than `seen` processes were killed, or the container has ended: how many, and whether it has.
///
/// # Errors
/// What the kernel says.
pub fn watch(container: &str, process: &Process, seen: u64) -> io::Result<(u64, bool)> {
    let path = cgroup::directory(container).join("memory.events");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(_) if !process.is_running() => return Ok((seen, true)),
        Err(error) => return Err(error),
    };
    loop {
        // In this order: what was killed before the end is counted.
        let ended = !process.is_running();
        let text = match cgroup::read_again(&file) {
            Ok(text) => text,
            // The group is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok((seen, true)),
            Err(error) => return Err(error),
        };
        let kills = cgroup::entry(&text, "oom_kill").unwrap_or(0);
        if kills > seen || ended {
            return Ok((kills, ended));
        }
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], PollTimeout::from(LOOK_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
