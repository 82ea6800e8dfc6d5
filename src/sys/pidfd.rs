//! Processes by handles that never mean another process, as a bare number may: pidfds, and on disk a PID with its start time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// One process for ever, as long as the host is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The process with this PID as it is now; `None` when there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).ok()?;
        Some(Self { pid, start_time: stat.starttime })
    }

    /// A pidfd of it; `None` when it has ended and been reaped.
    ///
    /// # Errors
    /// What pidfd_open(2) says, but for ESRCH.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let handle = match open(self.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        // The handle first: the number cannot change hands between the two any more.
        Ok((Self::of(self.pid) == Some(self)).then_some(handle))
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        let stat = procfs::process::Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// A pidfd of the process with this number.
///
/// # Errors
/// ESRCH when there is none; else what pidfd_open(2) says.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal.
///
/// # Errors
/// ESRCH when the process has ended; else what pidfd_send_signal(2) says.
pub fn kill(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes a descriptor, numbers and a null pointer, which means the default siginfo.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
