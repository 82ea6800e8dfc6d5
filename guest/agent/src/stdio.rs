//! Moves bytes between a process's standard streams and the host's connections. One thread per direction, one bounded
//! buffer (a pipe, or 64 KiB); where the reader is slow, the writer waits. Nothing looks at the bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Uid;

use crate::kmsg;
use crate::process::{Output, Process};

/// Bytes moved at once, and held by a pipe.
const CHUNK: usize = 64 * 1024;
/// The movers' stacks: they call system calls only.
const STACK: usize = 64 * 1024;

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work).map(drop)
}

/// Gives the process's user its standard streams, so that it can open /dev/stdout and /proc/self/fd/1 again.
pub fn own(stdio: &[OwnedFd], user: u32) {
    for fd in stdio {
        let is_pipe =
            nix::sys::stat::fstat(fd).is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFIFO);
        // /dev/null stays root's.
        if is_pipe && let Err(error) = nix::unistd::fchown(fd, Some(Uid::from_raw(user)), None) {
            kmsg::warning!("cannot give a standard stream to user {user}: {error}");
        }
    }
}

/// Moves the host's bytes into `pipe`, a process's stdin. The host's end is the process's end of file; that the process
/// has closed its stdin ends the connection, so that the host learns of it even when it sends nothing.
pub fn move_input(stream: OwnedFd, pipe: OwnedFd) -> io::Result<()> {
    spawn("stdin", move || {
        let mut mover = Mover::default();
        loop {
            let mut wait = [
                PollFd::new(stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(pipe.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut wait, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            if wait[1].any().unwrap_or(true) || !matches!(mover.step(stream.as_fd(), pipe.as_fd()), Ok(1..)) {
                break;
            }
        }
        drop(pipe);
        use std::os::fd::AsRawFd;
        let _ = shutdown(stream.as_raw_fd(), Shutdown::Both);
    })
}

/// Moves what comes out of `pipe`, a process's stdout or stderr, to the host until every writer has closed it. A host that
/// has gone away is a closed pipe to the process.
pub fn move_output(pipe: OwnedFd, stream: OwnedFd, process: Arc<Process>) -> io::Result<()> {
    // The pipe is the buffer. Where the size cannot be had the default is good enough.
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(CHUNK as i32));
    // Held only where it is looked at: a second read end would keep a writer from learning that nobody reads.
    let watched = if process.is_alone() { None } else { Some(pipe.try_clone()?) };
    let output = process.output_begins(watched, stream.try_clone()?);
    spawn("output", move || {
        let mut mover = Mover::default();
        while let Ok(1..) = mover.step(pipe.as_fd(), stream.as_fd()) {}
        drop(pipe);
        finish(&stream, &process, output);
    })
}

/// Moves bytes between a terminal's master and the host, both ways.
pub fn move_terminal(master: OwnedFd, stream: OwnedFd, process: Arc<Process>) -> io::Result<()> {
    let (master_in, stream_in) = (master.try_clone()?, stream.try_clone()?);
    let output = process.output_begins(None, stream.try_clone()?);
    spawn("terminal in", move || {
        let mut mover = Mover::by_copy();
        while let Ok(1..) = mover.step(stream_in.as_fd(), master_in.as_fd()) {}
    })?;
    spawn("terminal out", move || {
        let mut mover = Mover::by_copy();
        // EIO is a terminal's end of file: no process has it open any more.
        while let Ok(1..) = mover.step(master.as_fd(), stream.as_fd()) {}
        drop(master);
        finish(&stream, &process, output);
    })
}

/// Moves bytes between a process's socket and the host, both ways; each way ends for itself.
pub fn move_socket(socket: OwnedFd, stream: OwnedFd, process: Arc<Process>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (socket_in, stream_in) = (socket.try_clone()?, stream.try_clone()?);
    let output = process.output_begins(None, stream.try_clone()?);
    spawn("socket in", move || {
        let mut mover = Mover::by_copy();
        while let Ok(1..) = mover.step(stream_in.as_fd(), socket_in.as_fd()) {}
        let _ = shutdown(socket_in.as_raw_fd(), Shutdown::Write);
    })?;
    spawn("socket out", move || {
        let mut mover = Mover::by_copy();
        while let Ok(1..) = mover.step(socket.as_fd(), stream.as_fd()) {}
        drop(socket);
        finish(&stream, &process, output);
    })
}

/// Moves bytes between two sockets, both ways, until both have ended, or one has broken.
pub fn move_both_ways(one: OwnedFd, other: OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (one, other) = (Arc::new(one), Arc::new(other));
    for (from, to) in [(&one, &other), (&other, &one)] {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        spawn("port", move || {
            let mut mover = Mover::by_copy();
            let last = loop {
                match mover.step(from.as_fd(), to.as_fd()) {
                    Ok(1..) => {}
                    other => break other,
                }
            };
            let _ = shutdown(to.as_raw_fd(), if last.is_ok() { Shutdown::Write } else { Shutdown::Both });
            if last.is_err() {
                let _ = shutdown(from.as_raw_fd(), Shutdown::Both);
            }
        })?;
    }
    Ok(())
}

/// Ends the stream's outward direction, then waits for the host to close: closing first might cut off what is on its way.
fn finish(stream: &OwnedFd, process: &Process, output: Output) {
    use std::os::fd::AsRawFd;
    let _ = shutdown(stream.as_raw_fd(), Shutdown::Write);
    process.output_ended(output);
    let mut rest = [0; 512];
    while let Ok(1..) | Err(Errno::EINTR) = nix::unistd::read(stream, &mut rest) {}
}

/// Moves bytes by splice(2) where the kernel can, by copying where not.
#[derive(Default)]
struct Mover {
    buffer: Option<Vec<u8>>,
}

impl Mover {
    fn by_copy() -> Self {
        Self { buffer: Some(vec![0; CHUNK]) }
    }

    /// Moves some bytes, waiting for them; 0 is the end.
    fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<usize> {
        loop {
            let moved = match &mut self.buffer {
                Some(buffer) => copy(from, to, buffer),
                None => splice(from, None, to, None, CHUNK, SpliceFFlags::empty()),
            };
            match moved {
                Err(Errno::EINTR) => {}
                Err(Errno::EINVAL) if self.buffer.is_none() => *self = Self::by_copy(),
                other => return other,
            }
        }
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<usize> {
    let length = nix::unistd::read(from, buffer)?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match nix::unistd::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn both_ways_of_moving_are_whole_and_end() {
        for mut mover in [Mover::default(), Mover::by_copy()] {
            let (read, write) = nix::unistd::pipe().expect("a pipe");
            let (near, mut far) = UnixStream::pair().expect("a pair");
            let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
            let writer = thread::spawn({
                let data = data.clone();
                move || File::from(write).write_all(&data)
            });
            let reader = thread::spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).map(|_| all)
            });
            while let Ok(1..) = mover.step(read.as_fd(), near.as_fd()) {}
            drop(near);
            writer.join().expect("no panic").expect("written");
            assert!(reader.join().expect("no panic").expect("read") == data);
        }
    }

    #[test]
    fn a_direction_ends_for_itself_and_a_break_ends_both() {
        let [(near, mut left), (far, mut right)] = [(); 2].map(|()| UnixStream::pair().expect("a pair"));
        move_both_ways(near.into(), far.into()).expect("threads");
        left.write_all(b"question").expect("written");
        left.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut all = String::new();
        right.read_to_string(&mut all).expect("read");
        assert_eq!(all, "question");
        right.write_all(b"answer").expect("written");
        let mut answer = [0; 6];
        left.read_exact(&mut answer).expect("read");
        assert_eq!(&answer, b"answer");
        drop(left);
        // The next bytes find nobody.
        while right.write_all(b"more").is_ok() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_closed_stdin_ends_the_connection_without_traffic() {
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let (near, mut far) = UnixStream::pair().expect("a pair");
        move_input(near.into(), write).expect("a thread");
        drop(read);
        assert_eq!(far.read(&mut [0; 1]).expect("the end"), 0);
    }

    #[test]
    fn the_hosts_end_is_the_processs_end_of_file() {
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let (near, mut far) = UnixStream::pair().expect("a pair");
        move_input(near.into(), write).expect("a thread");
        far.write_all(b"abc").expect("written");
        far.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut all = Vec::new();
        File::from(read).read_to_end(&mut all).expect("read");
        assert_eq!(all, b"abc");
    }
}
