//! File descriptors: memory files, what is inherited, and reading and writing what may be non-blocking.

use std::fs::File;
use std::io::{self, IoSlice, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

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

/// A descriptor that this process was started with, if it is open. Nobody here may close it while it is in use.
///
/// # Errors
/// EBADF when it is not open.
pub fn borrowed(number: RawFd) -> io::Result<BorrowedFd<'static>> {
    // SAFETY: fcntl on a number is memory-safe whatever the number; F_GETFD fails with EBADF unless it is open.
    let result = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and callers name numbers that the process inherited and keeps.
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Standard input, output or error: 0 to 2, which rt never closes.
pub fn standard(number: RawFd) -> BorrowedFd<'static> {
    assert!((0..3).contains(&number), "{number} is no standard stream");
    // SAFETY: nothing in rt closes 0 to 2, and the runtime opens those that were closed at the start.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Reads at least one byte, also where a caller handed rt a non-blocking descriptor; 0 is the end.
///
/// # Errors
/// What read(2) says, but for EINTR and EAGAIN.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(fd, buffer) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLIN)?,
            other => return Ok(other?),
        }
    }
}

/// Writes all, also where a caller handed rt a non-blocking descriptor.
///
/// # Errors
/// What write(2) says, but for EINTR and EAGAIN.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLOUT)?,
            other => bytes = &bytes[other?..],
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, event: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, event)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sends one message of `text` with `descriptor` beside it (SCM_RIGHTS) on a connected socket.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send(socket: BorrowedFd<'_>, text: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(text)], &rights, flags, None)?;
    Ok(())
}

/// Takes ownership of a descriptor that recvmsg(2) just delivered (SCM_RIGHTS).
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: recvmsg installed the descriptor for this process alone, and its callers hand each number over once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
/// Makes descriptors 0, 1 and 2 /dev/null, so that whoever waits for their end sees it.
///
/// # Errors
/// What open(2) or dup2(2) say.
pub fn close_standard() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
