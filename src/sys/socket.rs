//! Socket options that nix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// linux/vm_sockets.h; libc does not have it.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// How long connect(2) on an AF_VSOCK socket waits (vsock(7), SO_VM_SOCKETS_CONNECT_TIMEOUT).
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_vsock_connect_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
    };
    // SAFETY: the kernel reads one timeval, whose size is given, through a pointer valid for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const time).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
