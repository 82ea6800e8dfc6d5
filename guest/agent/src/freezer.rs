//! Stopping and continuing all processes of a container at once, by its cgroup (cgroup.freeze).

use std::io;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::containers::Container;
use crate::{cgroup, sys};

/// How long the kernel may take to stop every process: one that waits for a device cannot be stopped.
const LIMIT: Duration = Duration::from_secs(10);

/// Stops every process, and returns when the last has stopped.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], and then the container runs on; what the kernel says.
pub fn pause(container: &Container) -> io::Result<()> {
    let _held = container.freezer.lock().unwrap_or_else(PoisonError::into_inner);
    cgroup::freeze(&container.id, true)?;
    let result = cgroup::wait_for_event(&container.id, "frozen", 1, Instant::now() + LIMIT);
    if result.is_err() {
        let _ = cgroup::freeze(&container.id, false);
    }
    result
}

/// Lets every process continue.
///
/// # Errors
/// What the kernel says.
pub fn resume(container: &Container) -> io::Result<()> {
    let _held = container.freezer.lock().unwrap_or_else(PoisonError::into_inner);
    cgroup::freeze(&container.id, false)?;
    cgroup::wait_for_event(&container.id, "frozen", 0, Instant::now() + LIMIT)
}

/// Signals every process of the container. SIGKILL is the kernel's to spread; for others the container stands still
/// meanwhile, so that no process escapes by forking. One that is paused stays so.
///
/// # Errors
/// ESRCH when there is none; what the kernel says.
pub fn signal_all(container: &Container, signal: i32) -> io::Result<()> {
    let id = &container.id;
    let _held = container.freezer.lock().unwrap_or_else(PoisonError::into_inner);
    if signal == libc::SIGKILL {
        return match cgroup::processes(id)?.is_empty() {
            true => Err(Errno::ESRCH.into()),
            false => cgroup::kill(id),
        };
    }
    let is_paused = cgroup::is_frozen(id);
    if !is_paused {
        // Should it take too long, a process may escape, which is better than a signal to none.
        let _ = cgroup::freeze(id, true);
        let _ = cgroup::wait_for_event(id, "frozen", 1, Instant::now() + Duration::from_millis(500));
    }
    let processes = cgroup::processes(id);
    for pid in processes.iter().flatten() {
        // Every number, not only those that have a name in nix.
        if let Ok(pidfd) = sys::pidfd_open(*pid) {
            let _ = sys::pidfd_signal(pidfd.as_fd(), signal);
        }
    }
    if !is_paused {
        cgroup::freeze(id, false)?;
    }
    match processes {
        Ok(processes) if processes.is_empty() => Err(Errno::ESRCH.into()),
        other => other.map(drop),
    }
}
