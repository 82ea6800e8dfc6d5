//! Standard streams: one thread pumps each between a descriptor of the host and a stream to the guest.
//!
//! Bytes pass unchanged; the end of one side becomes the end of the other. A reader that goes away (EPIPE) closes
//! the guest's stream, so that the workload gets its SIGPIPE. Memory is bounded by one buffer a stream.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::Error;
use super::console::Console;
use crate::agent::{self, Agent, OpeningStream, StreamNames};
use crate::sys::{fd, random, terminal};

const BUFFER: usize = 64 << 10;

/// Where a process's standard streams lead.
#[derive(Debug)]
pub enum Streams {
    /// To descriptors 0 to 2 of this process, or to the pty that a console socket gets the upper end of.
    Own,
    Given(Ends),
}

impl Streams {
    /// The host's ends, and the console of a terminal that this process holds.
    ///
    /// # Errors
    /// As [`Console::open`].
    pub fn open(
        self,
        terminal: bool,
        socket: Option<&Path>,
        size: Option<oci_spec::runtime::Box>,
    ) -> Result<(Option<Console>, Ends), Error> {
        match self {
            Self::Own => {
                let console = Console::open(terminal, socket, size)?;
                let ends = Ends::own(terminal, console.as_ref());
                Ok((console, ends))
            }
            Self::Given(ends) => Ok((None, ends)),
        }
    }
}

/// The host's ends of a process's standard input, output and error; with a terminal the first two carry it.
#[derive(Debug, Clone, Default)]
pub struct Ends([Option<End>; 3]);

#[derive(Debug, Clone)]
enum End {
    /// Descriptor 0, 1 or 2 of this process.
    Own(i32),
    File(Arc<OwnedFd>),
}

impl Ends {
    /// This process's own streams, or the pty of its console.
    fn own(terminal: bool, console: Option<&Console>) -> Self {
        match (terminal, console.and_then(Console::pty)) {
            (true, Some(pty)) => Self([Some(End::File(Arc::clone(&pty))), Some(End::File(pty)), None]),
            (true, None) => Self([Some(End::Own(0)), Some(End::Own(1)), None]),
            (false, _) => Self([0, 1, 2].map(|number| Some(End::Own(number)))),
        }
    }

    /// These; one that is absent is /dev/null. Each is closed when its stream has ended.
    pub fn given(input: Option<OwnedFd>, output: Option<OwnedFd>, error: Option<OwnedFd>) -> Self {
        Self([input, output, error].map(|file| file.map(|file| End::File(Arc::new(file)))))
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(number) => fd::standard(*number),
            Self::File(file) => file.as_fd(),
        }
    }
}

/// Streams to a guest whose process is being made.
pub struct Stdio {
    streams: Vec<(Direction, UnixStream, End)>,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    /// Standard input to the guest.
    In,
    /// The guest's standard output, error or terminal to us; the name of its pump.
    Out(&'static str),
}

impl Stdio {
    /// Opens the streams and tells the names by which the agent knows them.
    ///
    /// # Errors
    /// What the agent's client says.
    pub fn open(agent: &Agent, terminal: bool, ends: Ends) -> Result<(Self, StreamNames), agent::Error> {
        let mut streams = Vec::new();
        let mut names = StreamNames::default();
        let begin = || -> Result<(u64, OpeningStream), agent::Error> {
            let name = random::non_zero().map_err(agent::Error::Stream)?;
            Ok((name, agent.begin_stream(name)?))
        };
        let Ends([input, output, error]) = ends;
        if terminal {
            let (name, stream) = begin()?;
            let stream = stream.finish()?;
            names.terminal = name;
            if let Some(input) = input {
                streams.push((Direction::In, stream.try_clone().map_err(agent::Error::Stream)?, input));
            }
            // Always read, so that its end is seen.
            streams.push((Direction::Out("terminal"), stream, output.map_or_else(null, Ok)?));
        } else {
            let ends = [
                (Direction::In, input, &mut names.stdin),
                (Direction::Out("stdout"), output, &mut names.stdout),
                (Direction::Out("stderr"), error, &mut names.stderr),
            ];
            let mut begun = Vec::new();
            for (direction, end, name) in ends {
                let Some(end) = end else { continue };
                let (new, stream) = begin()?;
                *name = new;
                begun.push((direction, stream, end));
            }
            for (direction, stream, end) in begun {
                streams.push((direction, stream.finish()?, end));
            }
        }
        Ok((Self { streams }, names))
    }

    /// Starts the pumps.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self) -> io::Result<Pumps> {
        let mut outputs = Vec::new();
        for (direction, stream, end) in self.streams {
            match direction {
                Direction::In => {
                    Builder::new().name("stdin".into()).spawn(move || pump_in(&stream, &end))?;
                }
                Direction::Out(name) => {
                    let pump = move || pump_out(name, &stream, &end);
                    outputs.push(Builder::new().name(name.into()).spawn(pump)?);
                }
            }
        }
        Ok(Pumps { outputs })
    }
}

fn null() -> Result<End, agent::Error> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    null.map(|null| End::File(Arc::new(null.into()))).map_err(agent::Error::Stream)
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

fn pump_in(stream: &UnixStream, end: &End) {
    if let Err(error) = copy(end.as_fd(), stream.as_fd()) {
        tracing::debug!("standard input ended: {error}");
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn pump_out(name: &str, stream: &UnixStream, end: &End) {
    if let Err(error) = copy(stream.as_fd(), end.as_fd()) {
        tracing::debug!("{name} ended: {error}");
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
