//! File descriptors: memory files and what is inherited.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A close-on-exec memory file that holds `content` and is positioned at its start.
///
/// # Errors
/// What memfd_create(2) or write(2) say.
pub fn memory_file(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Takes ownership of a descriptor that this process inherited by agreement with its parent
/// (`jail::Spawn` numbers them), and marks it close-on-exec.
///
/// # Errors
/// EBADF when the descriptor is not open: the process was not started by rt.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number is memory-safe whatever the number; F_SETFD fails with EBADF unless it is open.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and the hidden verbs call this once for each number,
    // before anything else could have taken it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes ownership of a descriptor that recvmsg(2) just delivered (SCM_RIGHTS).
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: recvmsg installed the descriptor for this process alone, and its callers hand each number over once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
