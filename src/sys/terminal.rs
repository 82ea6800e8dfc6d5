//! The caller's terminal: raw mode that is undone on every exit, and its size.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Mutex;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// What to restore. A static, since it must be undone where no destructor runs, too: a panic aborts.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The first of standard input, output and error that is a terminal.
pub fn standard() -> Option<BorrowedFd<'static>> {
    let terminal = |fd: &BorrowedFd<'static>| tcgetattr(fd).is_ok();
    (0..3).map(super::fd::standard).find(terminal)
}

/// Switches the caller's terminal to raw mode, until [`restore`].
///
/// # Errors
/// What tcsetattr(3) says.
pub fn make_raw(terminal: BorrowedFd<'static>) -> io::Result<()> {
    let before = tcgetattr(terminal)?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    *SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(before);
    Ok(tcsetattr(terminal, SetArg::TCSANOW, &raw)?)
}

/// Undoes raw mode if it is on. Called when the container's output has ended, before rt exits, and when it panics.
pub fn restore() {
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(before) = saved.take()
        && let Some(terminal) = standard()
    {
        let _ = tcsetattr(terminal, SetArg::TCSANOW, &before);
    }
}

/// Sets the size of `terminal`.
///
/// # Errors
/// What ioctl(2) says.
pub fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize through a pointer valid for the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `terminal` the controlling terminal of this process, which must lead a session without one.
///
/// # Errors
/// What ioctl(2) says.
pub fn make_controlling(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, no pointer.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Rows and columns of `terminal`; `None` when it has no size.
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is, through a pointer valid for the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
