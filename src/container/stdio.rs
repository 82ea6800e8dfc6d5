//! Standard streams: one thread pumps each between a descriptor of the host and a stream to the guest.
//!
//! Bytes pass unchanged; the end of one side becomes the end of the other. A reader that goes away (EPIPE) closes
//! the guest's stream, so that the workload gets its SIGPIPE. Memory is bounded by one buffer a stream.
//!
//! When the process has ended, its readers are waited for as long as they take, and the guest is not: streams that it leaves
//! open are closed here.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::Error;
use super::console::Console;
use super::flow::{Flow, Output, Patience};
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
        let mut pumps = Pumps::default();
        for (direction, stream, end) in self.streams {
            let stream = Arc::new(stream);
            match direction {
                Direction::In => {
                    pumps.streams.push(Arc::clone(&stream));
                    Builder::new().name("stdin".into()).spawn(move || pump_in(&stream, &end))?;
                }
                Direction::Out(name) => {
                    let from = Arc::clone(&stream);
                    pumps.add(name.into(), stream, move |output| pump_out(name, &from, &end, &output))?;
                }
            }
        }
        Ok(pumps)
    }
}

fn null() -> Result<End, agent::Error> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    null.map(|null| End::File(Arc::new(null.into()))).map_err(agent::Error::Stream)
}

/// Running pumps. The one of standard input ends with the process: nobody can wake a read(2) of a foreign descriptor.
#[derive(Default)]
pub struct Pumps {
    outputs: Vec<JoinHandle<()>>,
    /// The guest's.
    streams: Vec<Arc<UnixStream>>,
    flow: Arc<Flow>,
}

impl Pumps {
    /// Starts a thread that moves what comes from `stream` to somebody on the host.
    ///
    /// # Errors
    /// A thread could not be started.
    pub(super) fn add(
        &mut self,
        name: String,
        stream: Arc<UnixStream>,
        pump: impl FnOnce(Output) + Send + 'static,
    ) -> io::Result<()> {
        let output = self.flow.open();
        self.outputs.push(Builder::new().name(name).spawn(move || pump(output))?);
        self.streams.push(stream);
        Ok(())
    }

    /// What they have moved.
    pub fn flow(&self) -> Arc<Flow> {
        Arc::clone(&self.flow)
    }

    /// Waits until all that the process, which has ended, wrote has been written; then the caller's terminal is as it was. The guest may take so
    /// long to close its streams, and whoever reads on the host as long as he likes.
    pub fn finish(self, limit: Duration) {
        if !self.flow.ends(&Patience::new(&self.flow, limit)) {
            tracing::warn!(
                "the guest does not close the output of a process that has ended; what comes later is lost"
            );
        }
        for stream in &self.streams {
            // One that has ended is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
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

fn pump_out(name: &str, stream: &UnixStream, end: &End, output: &Output) {
    if let Err(error) = copy_out(stream.as_fd(), end.as_fd(), output) {
        tracing::debug!("{name} ended: {error}");
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// As [`copy`], from the guest.
///
/// # Errors
/// What read(2) and write(2) say.
pub fn copy_out(from: BorrowedFd<'_>, to: BorrowedFd<'_>, output: &Output) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = fd::read(from, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        output.write(length, || fd::write_all(to, &buffer[..length]))?;
    }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::time::Instant;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    /// Pumps of one output: they, the guest's end, and the host's reader.
    fn pumps() -> (Pumps, UnixStream, File) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let end = End::File(Arc::new(writer));
        let stdio = Stdio { streams: vec![(Direction::Out("stdout"), ours, end)] };
        (stdio.start().unwrap(), theirs, reader.into())
    }

    #[test]
    fn a_stream_that_the_guest_leaves_open_is_closed() {
        let (pumps, mut guest, mut reader) = pumps();
        guest.write_all(b"all of it").unwrap();
        pumps.finish(Duration::from_millis(50));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
        assert!(guest.write_all(b"more").is_err());
    }

    #[test]
    fn a_guest_that_never_stops_writing_is_cut_off() {
        let (pumps, mut guest, mut reader) = pumps();
        let guest = std::thread::spawn(move || while guest.write_all(&[0; 4096]).is_ok() {});
        let sink = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        pumps.finish(Duration::from_secs(1000));
        guest.join().unwrap();
        assert!(sink.join().unwrap().unwrap() > 0);
    }

    #[test]
    fn a_reader_that_takes_its_time_loses_nothing() {
        let (pumps, mut guest, mut reader) = pumps();
        let limit = Duration::from_millis(50);
        let text: Vec<u8> = (0..300_000_u32).map(|place| place as u8).collect();
        let written = text.clone();
        // More than the pipe holds, so that the pump waits for the reader; the guest is done with it meanwhile, or as good as.
        let guest = std::thread::spawn(move || guest.write_all(&written));
        let late = std::thread::spawn(move || {
            std::thread::sleep(8 * limit);
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let begin = Instant::now();
        pumps.finish(limit);
        assert!(begin.elapsed() >= 4 * limit);
        guest.join().unwrap().unwrap();
        assert!(late.join().unwrap().unwrap() == text);
    }
}
