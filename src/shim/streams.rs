//! Standard streams as containerd names them, opened for a monitor.
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
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// The names that a request gives.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What the monitor gets.
#[derive(Debug)]
pub struct Ends {
    /// The lower end of a pipe, where there is an input and no terminal.
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What the shim holds.
#[derive(Debug, Default)]
pub struct Held {
    /// The upper end of the pipe.
    pub pipe: Option<OwnedFd>,
    /// Standard input ends when this is closed and no client writes any more.
    pub stdin: Option<OwnedFd>,
    readers: Vec<OwnedFd>,
}

impl Streams {
    /// Opens all but the input.
    ///
    /// # Errors
    /// The name of the stream, and why it cannot be used.
    pub fn open(&self) -> Result<(Ends, Held), (String, io::Error)> {
        let mut held = Held::default();
        let stdin = match self.stdin.is_empty() || self.terminal {
            true => null(),
            false => pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map(|(lower, upper)| {
                held.pipe = Some(upper);
                lower
            }),
        };
        let stdin = stdin.map_err(|error| (self.stdin.clone(), error))?;
        let mut output =
            |name: &str| output(name, &mut held.readers).map_err(|error| (name.to_owned(), error));
        let stdout = output(&self.stdout)?;
        let stderr = output(&self.stderr)?;
        Ok((Ends { stdin, stdout, stderr }, held))
    }

    /// Opens the input: to be read, and to be held.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_input(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let path = plain(&self.stdin)?;
        // Not waiting for a writer; the one opened then is the first.
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok((reader.into(), writer.into()))
    }
}

fn output(name: &str, readers: &mut Vec<OwnedFd>) -> io::Result<OwnedFd> {
    if name.is_empty() {
        return null();
    }
    let path = plain(name)?;
    if let Some(path) = name.strip_prefix("file://") {
        if let Some(parent) = Path::new(path).parent() {
            std::fs::create_dir_all(parent)?;
        }
        return Ok(OpenOptions::new().append(true).create(true).open(path)?.into());
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match is_fifo(&file)? {
        // A reader is there, the one just opened: this does not wait.
        true => {
            readers.push(file.into());
            Ok(OpenOptions::new().write(true).open(path)?.into())
        }
        false => Ok(OpenOptions::new().append(true).open(path)?.into()),
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

/// /dev/null.
///
/// # Errors
/// What open(2) says.
pub fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::sys::fd;

    #[test]
    fn standard_input_ends_when_it_is_closed_and_output_survives_its_reader() {
        let root = tempfile::tempdir().unwrap();
        let fifo = |name: &str| {
            let path = root.path().join(name);
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            path.display().to_string()
        };
        let streams = Streams { stdin: fifo("in"), stdout: fifo("out"), ..Streams::default() };
        let (ends, held) = streams.open().unwrap();
        let (reader, writer) = streams.open_input().unwrap();
        std::fs::write(&streams.stdin, "hi").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(fd::read(reader.as_fd(), &mut buffer).unwrap(), 2);
        // The client has gone, the shim has not.
        assert_eq!(nix::unistd::read(&reader, &mut buffer), Err(nix::errno::Errno::EAGAIN));
        drop(writer);
        assert_eq!(fd::read(reader.as_fd(), &mut buffer).unwrap(), 0);
        fd::write_all(ends.stdout.as_fd(), b"kept").unwrap();
        drop(ends);
        let mut reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&streams.stdout).unwrap();
        drop(held);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "kept");
    }

    #[test]
    fn files_are_appended_to_and_other_schemes_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("new/log");
        let streams = Streams { stdout: format!("file://{}", log.display()), ..Streams::default() };
        for _ in 0..2 {
            let (ends, _held) = streams.open().unwrap();
            fd::write_all(ends.stdout.as_fd(), b"x").unwrap();
        }
        assert_eq!(std::fs::read_to_string(log).unwrap(), "xx");
        let streams = Streams { stderr: "binary:///bin/true".into(), ..Streams::default() };
        let (name, error) = streams.open().unwrap_err();
        assert!(name.starts_with("binary") && error.to_string().contains("file:// only"));
    }
}
