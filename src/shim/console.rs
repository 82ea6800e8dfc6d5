//! The terminal of a process: a pty between containerd's FIFOs and the monitor, which keeps the lower end. And the pumps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::Builder;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::SOCKETS;
use crate::sys::{fd, random};

const BUFFER: usize = 16 << 10;

/// Where a monitor sends the upper end of its pty.
pub struct Socket {
    listener: UnixListener,
    pub path: PathBuf,
}

impl Socket {
    /// # Errors
    /// What bind(2) says.
    pub fn bind() -> io::Result<Self> {
        let path = Path::new(SOCKETS).join(format!("rt-{:016x}.console", random::non_zero()?));
        let listener = UnixListener::bind(&path)?;
        // The monitor has sent before it says that it is up: there is nothing to wait for.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// The upper end, once the monitor has come up.
    ///
    /// # Errors
    /// `WouldBlock` when the process's own specification asks for no terminal.
    pub fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        fd::receive(stream.as_fd())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Starts the pump of a terminal's output, until the monitor has closed its end. What is given is told when all has been
/// written.
///
/// # Errors
/// No thread is to be had.
pub fn pump_out(console: &Arc<OwnedFd>, stdout: OwnedFd) -> io::Result<Receiver<()>> {
    let (done, finished) = mpsc::channel();
    let from = Arc::clone(console);
    Builder::new().name("terminal".into()).spawn(move || {
        if let Err(error) = copy_out(from.as_fd(), stdout.as_fd()) {
            tracing::debug!("the terminal's output ended: {error}");
        }
        drop(stdout);
        // Nobody waits for it any more: then nobody misses it.
        let _ = done.send(());
    })?;
    Ok(finished)
}

/// Starts the pump of an input to a terminal or pipe, until the monitor ends (`monitor` is its pidfd).
///
/// # Errors
/// No thread is to be had.
pub fn pump_in(stdin: OwnedFd, to: Arc<OwnedFd>, monitor: OwnedFd) -> io::Result<()> {
    Builder::new().name("stdin".into()).spawn(move || {
        if let Err(error) = copy_in(stdin.as_fd(), to.as_fd(), monitor.as_fd()) {
            tracing::debug!("an input ended: {error}");
        }
    })?;
    Ok(())
}

fn copy_in(from: BorrowedFd<'_>, to: BorrowedFd<'_>, until: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut fds = [PollFd::new(from, PollFlags::POLLIN), PollFd::new(until, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if fds[1].any() == Some(true) {
            return Ok(());
        }
        match fd::read(from, &mut buffer)? {
            0 => return Ok(()),
            length => fd::write_all(to, &buffer[..length])?,
        }
    }
}

fn copy_out(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match fd::read(from, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => fd::write_all(to, &buffer[..length])?,
            // The lower end is closed and all of it has been read.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
