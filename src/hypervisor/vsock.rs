//! The host's side of rt's own vsock muxer, whichever backend it serves: the CONNECT protocol of its Unix socket, and the
//! uplink on which it passes the connections that the guest makes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, recvmsg,
    socket,
};
use nix::sys::stat::Mode;

/// `OK 4294967295\n`
const MAX_REPLY: usize = 14;

/// A stream to the guest that has been asked for; several may be before the first is waited for.
pub struct Connecting {
    stream: UnixStream,
    deadline: Instant,
}

impl Connecting {
    /// Asks for a stream to the guest's `port` through the muxer that listens on `path`. `first` goes to the guest as soon as it has accepted,
    /// whenever this process comes to its turn.
    ///
    /// # Errors
    /// What the sockets say.
    pub fn begin(path: &Path, port: u32, deadline: Instant, first: &[u8]) -> io::Result<Self> {
        let mut stream = connect_plain(path, left(deadline)?)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&[format!("CONNECT {port}\n").as_bytes(), first].concat())?;
        Ok(Self { stream, deadline })
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What the sockets say; `ConnectionRefused` when the guest does not listen, `TimedOut` when the deadline passes,
    /// `InvalidData` when the reply is not `OK PORT`.
    pub fn finish(self) -> io::Result<OwnedFd> {
        let Self { mut stream, deadline } = self;
        let mut reply = [0; MAX_REPLY];
        let mut length = 0;
        // What follows the line belongs to the stream's user: it is looked at, and only the line is taken.
        while reply[..length].last() != Some(&b'\n') {
            if length == MAX_REPLY {
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.set_read_timeout(Some(left(deadline)?))?;
            let rest = &mut reply[length..];
            match recv(stream.as_raw_fd(), rest, MsgFlags::MSG_PEEK) {
                Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
                Ok(seen) => {
                    let line =
                        rest[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |end| end + 1);
                    stream.read_exact(&mut rest[..line])?;
                    length += line;
                }
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !reply.starts_with(b"OK ") {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(stream.into())
    }
}

/// The socket that [`Connecting`] connects to. `path` must not exist.
///
/// # Errors
/// What bind(2) and listen(2) say.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let (_directory, path) = short(path)?;
    UnixListener::bind(path)
}

/// A connection to a listener of rt's own, without the protocol: one that accepts nobody any more (its process has been stopped, say) is waited
/// for no longer than `timeout`.
///
/// # Errors
/// What connect(2) says; `TimedOut`.
pub fn connect_plain(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (_directory, path) = short(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // unix(7): connect(2) waits for room in the listener's backlog as write(2) does for that of a peer.
    stream.set_write_timeout(Some(timeout))?;
    connect(stream.as_raw_fd(), &UnixAddr::new(&path)?).map_err(|error| match error {
        Errno::EAGAIN => Errno::ETIMEDOUT,
        other => other,
    })?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// The next guest-initiated connection: one byte with a descriptor beside it.
///
/// # Errors
/// `UnexpectedEof` when the muxer is gone, `InvalidData` for a message without a descriptor.
pub fn receive_connection(uplink: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!(i32);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(uplink.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = message.cmsgs()?.flat_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds,
        _ => Vec::new(),
    });
    match (fds.next(), message.bytes) {
        (Some(fd), _) => Ok(crate::sys::fd::received(fd)),
        (None, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
        (None, _) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `path` as it fits into a sockaddr_un's 108 bytes, however deep the directory is; valid while the file lives.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory =
        File::from(open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?);
    let name = path.file_name().map_or_else(OsString::new, ToOwned::to_owned);
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((directory, short))
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A muxer's answer to one CONNECT.
    fn connect_to(reply: &'static [u8]) -> io::Result<OwnedFd> {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("a directory");
        let path = deep.join("vsock.sock");
        let listener = listen_unix(&path).expect("a socket");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 18];
            stream.read_exact(&mut request).expect("a request");
            assert_eq!(&request, b"CONNECT 1024\nfirst");
            stream.write_all(reply).expect("a reply");
            if reply.is_empty() {
                thread::sleep(Duration::from_millis(600))
            }
        });
        let deadline = Instant::now() + Duration::from_millis(300);
        let result = Connecting::begin(&path, 1024, deadline, b"first").and_then(Connecting::finish);
        server.join().expect("the server is content");
        result
    }

    #[test]
    fn one_that_accepts_nobody_is_waited_for_until_the_deadline() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vsock.sock");
        let listener = listen_unix(&path).expect("a socket");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a number"))
            .expect("it listens");
        let begin = || Connecting::begin(&path, 1, Instant::now() + Duration::from_millis(50), b"");
        // The backlog holds one.
        let _first = begin().expect("it waits to be accepted");
        assert_eq!(begin().err().expect("no connection").kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_stream_starts_after_the_reply() {
        let mut stream = UnixStream::from(connect_to(b"OK 77\nhello").expect("connected"));
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the rest");
        assert_eq!(text, "hello");
    }

    #[test]
    fn other_answers_are_errors() {
        let kind = |reply| connect_to(reply).expect_err("no connection").kind();
        assert_eq!(kind(b"NO\n"), io::ErrorKind::InvalidData);
        assert_eq!(kind(b"OK 123456789012345678\n"), io::ErrorKind::InvalidData);
        assert_eq!(kind(b"OK"), io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(b""), io::ErrorKind::TimedOut);
    }
}
