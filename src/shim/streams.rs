//! Standard streams as containerd names them.
//!
//! Each is a FIFO (or empty: none; an output also `file://PATH`: appended to), which containerd made and may leave and come
//! back to. So the shim holds an end of each: one that could write of standard input, which ends when containerd says so
//! (CloseIO) and not when a client goes; one that could read of the others, so that a container whose reader restarts
//! gets no SIGPIPE and loses nothing.
//!
//! Standard input is opened when the process is started, not before: a client writes as soon as somebody reads, and ctr says
//! CloseIO for an input that ends before the task is there to nobody.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::Builder;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::container::Ends;
use crate::sys::fd;

const BUFFER: usize = 16 << 10;

/// The names that a request gives.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What the shim holds until the process has ended.
#[derive(Debug, Default)]
pub struct Held {
    /// The upper end of the pipe that is the process's input.
    pipe: Option<OwnedFd>,
    /// Standard input ends when this is closed and no client writes any more.
    stdin: Option<OwnedFd>,
    /// Ends the pump of the input when it is closed.
    pumping: Option<OwnedFd>,
    input_is_over: bool,
    readers: Vec<OwnedFd>,
}

impl Streams {
    /// Opens all but the input, which is a pipe until [`Held::feed`].
    ///
    /// # Errors
    /// The name of the stream, and why it cannot be used.
    pub fn open(&self) -> Result<(Ends, Held), (String, io::Error)> {
        let mut held = Held::default();
        let stdin = match self.stdin.is_empty() {
            true => None,
            false => {
                let pipe = pipe2(OFlag::O_CLOEXEC).map_err(|error| (self.stdin.clone(), error.into()))?;
                held.pipe = Some(pipe.1);
                Some(pipe.0)
            }
        };
        let mut output =
            |name: &str| output(name, &mut held.readers).map_err(|error| (name.to_owned(), error));
        let stdout = output(&self.stdout)?;
        let stderr = if self.terminal { None } else { output(&self.stderr)? };
        Ok((Ends::given(stdin, stdout, stderr), held))
    }

    /// Opens the input: to be read, and to be held.
    fn open_input(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let path = plain(&self.stdin)?;
        // Not waiting for a writer; the one opened then is the first.
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok((reader.into(), writer.into()))
    }
}

impl Held {
    /// Lets the input in, now that the process runs.
    ///
    /// # Errors
    /// What open(2) says, or that no thread is to be had.
    pub fn feed(&mut self, streams: &Streams) -> io::Result<()> {
        let Some(pipe) = self.pipe.take() else { return Ok(()) };
        let (reader, writer) = streams.open_input()?;
        let (until, pumping) = pipe2(OFlag::O_CLOEXEC)?;
        self.stdin = (!self.input_is_over).then_some(writer);
        self.pumping = Some(pumping);
        Builder::new().name("input".into()).spawn(move || {
            if let Err(error) = pump(reader.as_fd(), pipe.as_fd(), until.as_fd()) {
                tracing::debug!("an input ended: {error}");
            }
        })?;
        Ok(())
    }

    /// Ends the input, once no client writes to it any more.
    pub fn close_input(&mut self) {
        self.input_is_over = true;
        self.stdin = None;
    }

    /// An output that nobody but the shim could read is over: who writes it gets EPIPE.
    pub fn drop_readers(&mut self) {
        self.readers.clear();
    }

    /// The process has ended; what it wrote stays to be read.
    pub fn leave(&mut self) {
        self.pipe = None;
        self.stdin = None;
        self.pumping = None;
    }
}

fn pump(from: BorrowedFd<'_>, to: BorrowedFd<'_>, until: BorrowedFd<'_>) -> io::Result<()> {
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

fn output(name: &str, readers: &mut Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    if name.is_empty() {
        return Ok(None);
    }
    let path = plain(name)?;
    if let Some(path) = name.strip_prefix("file://") {
        if let Some(parent) = Path::new(path).parent() {
            std::fs::create_dir_all(parent)?;
        }
        return Ok(Some(OpenOptions::new().append(true).create(true).open(path)?.into()));
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match is_fifo(&file)? {
        // A reader is there, the one just opened: this does not wait.
        true => {
            readers.push(file.into());
            Ok(Some(OpenOptions::new().write(true).open(path)?.into()))
        }
        false => Ok(Some(OpenOptions::new().append(true).open(path)?.into())),
    }
}

/// A path, with or without its scheme.
fn plain(name: &str) -> io::Result<&Path> {
    match name.split_once("://") {
        None => Ok(Path::new(name)),
        Some(("fifo" | "file", path)) => Ok(Path::new(path)),
        Some(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "rt's shim writes to FIFOs and to file:// only, and starts no logging program",
        )),
    }
}

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn fifo(root: &tempfile::TempDir, name: &str) -> String {
        let path = root.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    #[test]
    fn standard_input_ends_when_it_is_closed_not_when_a_client_goes() {
        let root = tempfile::tempdir().unwrap();
        let streams = Streams { stdin: fifo(&root, "in"), ..Streams::default() };
        let (lower, upper) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut held = Held { pipe: Some(upper), ..Held::default() };
        held.feed(&streams).unwrap();
        let mut buffer = [0; 8];
        for text in ["hi", "you"] {
            std::fs::write(&streams.stdin, text).unwrap();
            assert_eq!(fd::read(lower.as_fd(), &mut buffer).unwrap(), text.len());
        }
        held.close_input();
        assert_eq!(fd::read(lower.as_fd(), &mut buffer).unwrap(), 0);
    }

    #[test]
    fn the_pump_of_an_input_ends_with_its_process() {
        let root = tempfile::tempdir().unwrap();
        let streams = Streams { stdin: fifo(&root, "in"), ..Streams::default() };
        let (lower, upper) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut held = Held { pipe: Some(upper), ..Held::default() };
        held.feed(&streams).unwrap();
        let _client = OpenOptions::new().write(true).open(&streams.stdin).unwrap();
        held.leave();
        assert_eq!(fd::read(lower.as_fd(), &mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn output_survives_its_reader_and_its_writer() {
        let root = tempfile::tempdir().unwrap();
        let path = fifo(&root, "out");
        let mut readers = Vec::new();
        let writer = output(&path, &mut readers).unwrap().unwrap();
        fd::write_all(writer.as_fd(), b"kept").unwrap();
        drop(writer);
        let mut late = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        drop(readers);
        let mut text = String::new();
        late.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
    }

    #[test]
    fn files_are_appended_to_and_other_schemes_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("new/log");
        for _ in 0..2 {
            let file = output(&format!("file://{}", log.display()), &mut Vec::new()).unwrap().unwrap();
            fd::write_all(file.as_fd(), b"x").unwrap();
        }
        assert_eq!(std::fs::read_to_string(log).unwrap(), "xx");
        let streams = Streams { stderr: "binary:///bin/true".into(), ..Streams::default() };
        let (name, error) = streams.open().unwrap_err();
        assert!(name.starts_with("binary") && error.to_string().contains("file:// only"));
    }
}
