//! Descriptors that a caller passes on beyond the standard streams (`--preserve-fds`): numbers 3 and up in the container, too.
//!
//! A descriptor of the host means nothing in a virtual machine. What is a stream of bytes is moved: a pipe's end becomes a
//! pipe's end there, a connected stream socket one of a pair of sockets. All else is refused, with its number and kind.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::Builder;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::stdio::{self, Pumps};
use crate::agent::{self, Agent, PreservedDescriptor, StreamNames};
use crate::sys::{fd, random};

/// Where a caller's begin.
pub const FIRST: RawFd = 3;
/// What fits beside one message to the process that is to have them.
const MOST: u32 = 32;

/// Why a descriptor cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot pass descriptor {number} into the container: it is not open")]
    Closed { number: RawFd },
    #[error(
        "cannot pass descriptor {number} into the container: it is {kind}, which means nothing in a virtual machine; pass a \
         pipe or a connected stream socket, mount the file, or let the container listen itself"
    )]
    Kind { number: RawFd, kind: &'static str },
    #[error("cannot pass {0} more descriptors into the container; {MOST} are the most")]
    Many(u32),
    #[error("cannot look at descriptor {number}")]
    System {
        number: RawFd,
        #[source]
        source: io::Error,
    },
}

/// Descriptors of a process by their numbers.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Range {
    pub first: RawFd,
    pub count: u32,
}

/// A descriptor that is this process's now.
#[derive(Debug)]
pub struct Preserved {
    fd: OwnedFd,
    kind: Kind,
}

/// What the container's process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Read,
    Write,
    Both,
}

/// Descriptors whose streams are open, not moved yet.
pub struct Moving(Vec<(Preserved, UnixStream)>);

impl Range {
    /// The numbers.
    pub fn numbers(self) -> impl Iterator<Item = RawFd> {
        (self.first..).take(self.count as usize)
    }

    /// Whether all can be passed on.
    ///
    /// # Errors
    /// [`Error`]
    pub fn check(self) -> Result<(), Error> {
        if self.count > MOST {
            return Err(Error::Many(self.count));
        }
        self.numbers().try_for_each(|number| kind(number).map(drop))
    }

    /// Takes them over from whoever started this process. Called once.
    ///
    /// # Errors
    /// [`Error`]
    pub fn take(self) -> Result<Vec<Preserved>, Error> {
        self.check()?;
        let take = |number| {
            let kind = kind(number)?;
            let fd = fd::inherited(number).map_err(|source| Error::System { number, source })?;
            Ok(Preserved { fd, kind })
        };
        self.numbers().map(take).collect()
    }
}

fn kind(number: RawFd) -> Result<Kind, Error> {
    let failed = |error: nix::Error| Error::System { number, source: error.into() };
    // One that is closed by execve is rt's own: the caller's has that number no more.
    let fd = fd::borrowed(number).map_err(|_| Error::Closed { number })?;
    let flags = fcntl(fd, FcntlArg::F_GETFD).map_err(failed)?;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(Error::Closed { number });
    }
    let refused = |kind| Err(Error::Kind { number, kind });
    let status = fstat(fd).map_err(failed)?;
    match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).map_err(failed)?);
            match flags & OFlag::O_ACCMODE {
                OFlag::O_RDONLY => Ok(Kind::Read),
                OFlag::O_WRONLY => Ok(Kind::Write),
                _ => refused("both ends of a FIFO"),
            }
        }
        SFlag::S_IFSOCK => match getsockopt(&fd, sockopt::SockType).map_err(failed)? {
            SockType::Stream if getsockopt(&fd, sockopt::AcceptConn).map_err(failed)? => {
                refused("a listening socket")
            }
            SockType::Stream => Ok(Kind::Both),
            _ => refused("a socket of messages"),
        },
        SFlag::S_IFCHR if status.st_rdev == libc::makedev(1, 3) => Ok(Kind::Null),
        SFlag::S_IFCHR | SFlag::S_IFBLK => refused("a device"),
        SFlag::S_IFREG => refused("a file"),
        SFlag::S_IFDIR => refused("a directory"),
        _ => refused("of a kind of its own"),
    }
}

/// Tells the container's process that its first descriptors beyond the standard ones came by sd_listen_fds(3).
pub fn announce(spec: &mut Spec, listen_fds: u32) {
    if listen_fds > 0
        && let Some(process) = spec.process_mut()
    {
        let variables = [format!("LISTEN_FDS={listen_fds}"), "LISTEN_PID=1".to_owned()];
        process.env_mut().get_or_insert_default().extend(variables);
    }
}

/// Opens a stream for each, and names them.
///
/// # Errors
/// What the agent's client says.
pub fn open(
    preserved: Vec<Preserved>,
    agent: &Agent,
    names: &mut StreamNames,
) -> Result<Moving, agent::Error> {
    let mut moving = Vec::new();
    for one in preserved {
        let kind = one.kind;
        let mut name = 0;
        if kind != Kind::Null {
            name = random::non_zero().map_err(agent::Error::Stream)?;
            moving.push((one, agent.open_stream(name)?));
        }
        names.preserved.push(PreservedDescriptor {
            stream: name,
            readable: kind != Kind::Write,
            writable: kind != Kind::Read,
            ..Default::default()
        });
    }
    Ok(Moving(moving))
}

impl Moving {
    /// Moves their bytes from now on. What the container writes belongs to `pumps`, whose end waits for it.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self, pumps: &mut Pumps) -> io::Result<()> {
        for (Preserved { fd, kind }, stream) in self.0 {
            let (fd, stream) = (Arc::new(fd), Arc::new(stream));
            if kind != Kind::Write {
                let (fd, stream) = (Arc::clone(&fd), Arc::clone(&stream));
                let thread = Builder::new().name(format!("from {}", fd.as_raw_fd()));
                thread.spawn(move || {
                    let _ = stdio::copy(fd.as_fd(), stream.as_fd());
                    let _ = stream.shutdown(Shutdown::Write);
                })?;
            }
            if kind != Kind::Read {
                pumps.add(format!("to {}", fd.as_raw_fd()), Arc::clone(&stream), move |output| {
                    let _ = stdio::copy_out(stream.as_fd(), fd.as_fd(), &output);
                    if kind == Kind::Both {
                        let _ = nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Write);
                    }
                    let _ = stream.shutdown(Shutdown::Read);
                })?;
            }
        }
        Ok(())
    }
}
