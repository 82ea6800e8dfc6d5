//! The host's side of a container's terminal: either the caller's own terminal in raw mode, or a pty whose other end
//! the caller gets over its console socket.
//!
//! The guest has the real pty, with its line discipline; the host's only carries bytes, hence raw.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use oci_spec::runtime::Box;

use super::{Error, system};
use crate::sys::{fd, terminal};

/// The host's side of a terminal.
#[derive(Debug, Clone)]
pub enum Console {
    /// The caller's own terminal, if it has one: bytes go through descriptors 0 and 1.
    Caller,
    /// The lower end of a pty of ours.
    Pty(Arc<OwnedFd>),
}

impl Console {
    /// Refuses what runc refuses: a detached terminal that nobody would hold, a socket that nothing would be sent to.
    ///
    /// # Errors
    /// [`Error::DetachedTerminal`], [`Error::UselessConsoleSocket`]
    pub fn check(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<(), Error> {
        match (terminal && detached, socket) {
            (true, None) => Err(Error::DetachedTerminal),
            (false, Some(_)) => Err(Error::UselessConsoleSocket),
            _ => Ok(()),
        }
    }

    /// What a process with a terminal needs on the host; none without.
    ///
    /// # Errors
    /// [`Error::ConsoleSocket`], or the caller's terminal refuses raw mode.
    pub fn open(terminal: bool, socket: Option<&Path>, size: Option<Box>) -> Result<Option<Self>, Error> {
        match (terminal, socket) {
            (false, _) => Ok(None),
            (true, None) => Ok(Some(Self::caller().map_err(system("use the terminal"))?)),
            (true, Some(path)) => {
                let size = size.map(|size| (clamp(size.height()), clamp(size.width())));
                let failed = |source| Error::ConsoleSocket { path: path.into(), source };
                Ok(Some(Self::send(path, size).map_err(failed)?))
            }
        }
    }

    /// The caller's terminal, switched to raw mode; without one the bytes pass all the same.
    ///
    /// # Errors
    /// What tcsetattr(3) says.
    fn caller() -> io::Result<Self> {
        terminal::standard().map_or(Ok(()), terminal::make_raw)?;
        Ok(Self::Caller)
    }

    /// A new pty, whose upper end goes to whoever listens on `socket`: one message with the pty's name as
    /// its text and the descriptor beside it, as runc sends it. It becomes this process's controlling
    /// terminal, so that a new window size arrives as SIGWINCH.
    ///
    /// # Errors
    /// What connect(2), openpty(3) or sendmsg(2) say.
    fn send(socket: &Path, size: Option<(u16, u16)>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let pty = openpty(None, None)?;
        let mut raw = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &raw)?;
        if let Some((rows, columns)) = size {
            terminal::set_size(&pty.slave, rows, columns)?;
        }
        terminal::make_controlling(&pty.slave)?;
        let name = nix::unistd::ttyname(&pty.slave)?;
        fd::send(stream.as_fd(), name.as_os_str().as_encoded_bytes(), pty.master.as_fd())?;
        // The caller's streams are not the container's then: containerd's shim waits for their end.
        fd::close_standard()?;
        Ok(Self::Pty(Arc::new(pty.slave)))
    }

    /// The descriptor that the pumps use instead of 0 and 1.
    pub fn pty(&self) -> Option<Arc<OwnedFd>> {
        match self {
            Self::Caller => None,
            Self::Pty(pty) => Some(Arc::clone(pty)),
        }
    }

    /// Rows and columns now; `None` when there is no terminal or it has no size.
    pub fn size(&self) -> Option<(u16, u16)> {
        match self {
            Self::Caller => terminal::standard().and_then(terminal::size),
            Self::Pty(pty) => terminal::size(pty.as_fd()),
        }
    }
}

fn clamp(size: u64) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}
