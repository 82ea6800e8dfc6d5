//! The host's side: start the file server, learn whether it serves, end it.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::FsdSpec;
use crate::jail::{self, Child, Spawn};
use crate::sys::{fd, mount, process};

/// What this room may fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the file server without root's privileges (CAP_SYS_ADMIN); run rt as root")]
    Unprivileged(#[source] io::Error),
    #[error(transparent)]
    Jail(#[from] jail::Error),
    #[error("the file server ended ({}){}{}", .0.status, if .0.log.is_empty() { "" } else { ": " }, .0.log)]
    Ended(Ending),
    #[error("the file server did not start before the deadline")]
    Deadline,
    #[error("the file server has ended")]
    Gone,
}

/// For `map_err`: names what was tried.
pub(super) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System { what, source: source.into() }
}

/// How a file server ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Exit code or signal in words.
    pub status: String,
    /// By itself and without an error: its VMM had gone.
    pub in_order: bool,
    /// What it logged, made printable, joined by ` | `; at most [`LOG_LIMIT`] bytes.
    pub log: String,
}

/// Of a server's log, the most that is kept.
pub const LOG_LIMIT: usize = 4096;

/// A started file server. Dropping it kills the process and reaps it.
#[derive(Debug)]
pub struct Fsd {
    child: Child,
    /// One byte once it serves; nothing but the end when it fails before.
    ready: PipeReader,
    /// Its standard error: a pipe that nobody has to empty. What no longer fits is dropped by the server.
    log: PipeReader,
    ended: Option<Ending>,
}

/// A pair of connected sockets, so to speak: the first, for [`launch`], is a listening socket with one connection waiting on it,
/// which is all that the library can serve; the second, for the VMM, is the other end of that connection. Nobody else can
/// connect: the name is on a file system that is mounted nowhere and gone when this returns.
///
/// # Errors
/// [`Error::Unprivileged`], [`Error::System`]
pub fn socket() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = || -> io::Result<(OwnedFd, OwnedFd)> {
        let nowhere = mount::tmpfs(&[(c"mode", c"700"), (c"size", c"4k")], 0)?;
        let name = format!("/proc/self/fd/{}/fsd", nowhere.as_raw_fd());
        let listener = UnixListener::bind(Path::new(&name))?;
        let stream = UnixStream::connect(Path::new(&name))?;
        Ok((listener.into(), stream.into()))
    };
    pair().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Error::Unprivileged(error),
        _ => step("make a socket for the file server")(error),
    })
}

/// Starts `rt fsd`, which serves `spec` to whom is connected to `socket` (see [`socket`]) and ends when that closes
/// the connection. Returns at once; [`Fsd::ready`] tells whether it came up.
///
/// The process dies with the calling thread, see [`Spawn::spawn`].
///
/// # Errors
/// [`Error::System`], [`Error::Jail`]
pub fn launch(spec: &FsdSpec, socket: OwnedFd) -> Result<Fsd, Error> {
    let json = serde_json::to_vec(spec).map_err(step("write down what to serve"))?;
    let spec_file = fd::memory_file(c"fsd-spec", &json).map_err(step("write down what to serve"))?;
    let (ready, ready_writer) = io::pipe().map_err(step("make a pipe"))?;
    let (log, log_writer) = io::pipe().map_err(step("make a pipe"))?;
    // A guest that makes its server complain a lot cannot stop it, nor make anybody keep more than a pipe holds.
    for end in [log.as_fd(), log_writer.as_fd()] {
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(step("make a pipe"))?;
    }
    let child = Spawn {
        verb: "fsd",
        args: vec![spec.id.clone().into()],
        fds: vec![spec_file, socket],
        stdout: Some(ready_writer.into()),
        stderr: Some(log_writer.into()),
    };
    Ok(Fsd { child: child.spawn()?, ready, log, ended: None })
}

impl Fsd {
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Waits until the server has its share and serves it.
    ///
    /// # Errors
    /// [`Error::Ended`] when it could not, with what it said; [`Error::Deadline`].
    pub fn ready(&mut self, deadline: Instant) -> Result<(), Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.ready.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(Error::Deadline),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(step("wait for the file server")(errno)),
            }
        }
        match self.ready.read(&mut [0]) {
            Ok(1) => Ok(()),
            _ => Err(Error::Ended(self.reap())),
        }
    }

    /// Kills the process and does not wait for its end.
    pub fn kill(&self) {
        process::kill(self.child.pidfd.as_fd());
    }

    /// Kills the process if it still runs, reaps it, and tells how it ended. Idempotent.
    pub fn end(&mut self) -> Ending {
        self.kill();
        self.reap()
    }

    fn reap(&mut self) -> Ending {
        if let Some(ending) = &self.ended {
            return ending.clone();
        }
        let status = process::reap(self.child.pid);
        // The pipe holds 64 KiB: the first of it are the cause, what follows its consequences.
        let mut log = vec![0; LOG_LIMIT];
        let length = self.log.read(&mut log).unwrap_or(0);
        let ending = Ending { in_order: status == "exit code 0", status, log: printable(&log[..length]) };
        self.ended = Some(ending.clone());
        ending
    }
}

impl Drop for Fsd {
    fn drop(&mut self) {
        self.end();
    }
}

/// The log quotes names that the guest chose.
fn printable(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect())
        .collect();
    lines.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_made_printable() {
        assert_eq!(printable(b"WARN a\x1b[2Jb\n  ERROR \xff\n"), "WARN a?[2Jb | ERROR \u{fffd}");
        assert_eq!(printable(b""), "");
    }
}
