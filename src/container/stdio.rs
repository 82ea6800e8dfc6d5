//! Standard streams: one thread pumps each between a descriptor of the host and a stream to the guest.
//!
//! Bytes pass unchanged; the end of one side becomes the end of the other. A reader that goes away (EPIPE) closes
//! the guest's stream, so that the workload gets its SIGPIPE. Memory is bounded by one buffer a stream.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{Builder, JoinHandle};

use super::console::Console;
use crate::agent::{self, StreamNames};
use crate::sys::{fd, random, terminal};

const BUFFER: usize = 64 << 10;

/// Streams to a guest whose process is being made.
pub struct Stdio {
    streams: Vec<(Direction, UnixStream)>,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    /// Standard input to the guest.
    In,
    /// The guest to this descriptor, or to the terminal.
    Out(i32),
}

impl Stdio {
    /// Opens the streams and tells the names by which the agent knows them.
    ///
    /// # Errors
    /// What the agent's client says.
    pub fn open(vsock: &Path, terminal: bool) -> Result<(Self, StreamNames), agent::Error> {
        let mut streams = Vec::new();
        let mut names = StreamNames::default();
        let open = || -> Result<(u64, UnixStream), agent::Error> {
            let name = random::non_zero().map_err(agent::Error::Stream)?;
            Ok((name, agent::open_stream(vsock, name)?))
        };
        if terminal {
            let (name, stream) = open()?;
            names.terminal = name;
            streams.push((Direction::In, stream.try_clone().map_err(agent::Error::Stream)?));
            streams.push((Direction::Out(1), stream));
        } else {
            let ends = [
                (Direction::In, &mut names.stdin),
                (Direction::Out(1), &mut names.stdout),
                (Direction::Out(2), &mut names.stderr),
            ];
            for (direction, name) in ends {
                let (new, stream) = open()?;
                *name = new;
                streams.push((direction, stream));
            }
        }
        Ok((Self { streams }, names))
    }

    /// Starts the pumps, between the streams and `console` where there is one, else this process's descriptors 0 to 2.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self, console: Option<&Console>) -> io::Result<Pumps> {
        let pty = console.and_then(Console::pty);
        let mut outputs = Vec::new();
        for (direction, stream) in self.streams {
            let pty = pty.clone();
            match direction {
                Direction::In => {
                    Builder::new().name("stdin".into()).spawn(move || pump_in(&stream, pty.as_deref()))?;
                }
                Direction::Out(number) => {
                    let name = if number == 1 { "stdout" } else { "stderr" };
                    let pump = move || pump_out(&stream, number, pty.as_deref());
                    outputs.push(Builder::new().name(name.into()).spawn(pump)?);
                }
            }
        }
        Ok(Pumps { outputs })
    }
}

/// Running pumps. The one of standard input ends with the process: nobody can wake a read(2) of a foreign descriptor.
pub struct Pumps {
    pub(super) outputs: Vec<JoinHandle<()>>,
}

impl Pumps {
    /// Waits until all that the process wrote has been written; then the caller's terminal is as it was.
    pub fn finish(self) {
        for output in self.outputs {
            output.join().unwrap_or_else(|_| unreachable!("panics abort"));
        }
        terminal::restore();
    }
}

fn host_end(number: i32, pty: Option<&OwnedFd>) -> BorrowedFd<'_> {
    pty.map_or_else(|| fd::standard(number), AsFd::as_fd)
}

fn pump_in(stream: &UnixStream, pty: Option<&OwnedFd>) {
    if let Err(error) = copy(host_end(0, pty), stream.as_fd()) {
        tracing::debug!("standard input ended: {error}");
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn pump_out(stream: &UnixStream, number: i32, pty: Option<&OwnedFd>) {
    if let Err(error) = copy(stream.as_fd(), host_end(number, pty)) {
        tracing::debug!("descriptor {number} ended: {error}");
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Moves bytes from one descriptor to another until the end of either.
///
/// # Errors
/// What read(2) and write(2) say.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = fd::read(from, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        fd::write_all(to, &buffer[..length])?;
    }
}
