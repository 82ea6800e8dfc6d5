//! The packet socket between PID 1 ([`crate::supervisor`]) and its serving child ([`crate::service`]), and the one between a
//! runner and PID 1: one JSON message per packet, descriptors beside it. Both ends are this program.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys;

/// Longest message in bytes; what is longer is cut by its sender.
const LIMIT: usize = 32 * 1024;

/// From the server to PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a container from its `spec.json`. Beside it: stdin, stdout, stderr, none with a terminal; descriptors from 3 on;
    /// with `startable`, where its start is reported.
    Create(Create),
    /// Run another process. Beside it: the [`crate::exec::Order`], beside the agent its program, then as above.
    Exec(Exec),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// Names the container in events; never used twice.
    pub sequence: u64,
    pub container: String,
    /// See [`crate::report::Started`].
    pub startable: bool,
    /// Rows and columns.
    pub terminal: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// Names the process in events; never used twice.
    pub sequence: u64,
    /// Where it runs.
    pub place: Place,
    /// The group that it begins in.
    pub cgroup: PathBuf,
    /// The caller named it: no other will do.
    pub cgroup_named: bool,
    /// Rows and columns.
    pub terminal: Option<(u32, u32)>,
}

/// Where a process is executed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Place {
    /// In the container of that number; `namespaces` of it are not the guest's: CLONE_NEW*.
    Container { sequence: u64, namespaces: i32 },
    /// Beside the agent.
    Guest,
}

/// From PID 1 to the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The container's process waits to be started, or the other process is executed. Beside it: the terminal's master,
    /// when there is one.
    Created { sequence: u64, pid: i32, own_pid_namespace: bool },
    /// Nothing of it is left.
    Failed { sequence: u64, message: String },
    /// The process has ended: its exit code, or 128 + signal.
    Exited { sequence: u64, code: u32 },
}

/// From a runner to PID 1: its only message; from a process that is to be executed, one or both of the last.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Beside it: the terminal's master.
    Created {
        pid: i32,
        own_pid_namespace: bool,
    },
    /// Nothing but execve is left to do: when the socket closes now, it was done. Beside it: the terminal's master.
    Ready,
    Failed {
        message: String,
    },
}

/// A connected pair.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message.
pub fn transmit(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[RawFd]) -> nix::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
    let data = [IoSlice::new(&bytes)];
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one message; `None` when the other end is closed.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: MsgFlags,
) -> nix::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; LIMIT];
    let (length, fds) = sys::receive(socket, &mut bytes, flags)?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&bytes[..length]).map(|message| Some((message, fds))).map_err(|_| Errno::EBADMSG)
}

/// A text cut to what fits into a message.
pub fn shorten(mut text: String) -> String {
    let mut end = text.len().min(LIMIT / 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_travel_with_descriptors() {
        let (a, b) = pair().expect("a socket pair");
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        let outcome = Outcome::Created { pid: 7, own_pid_namespace: true };
        transmit(a.as_fd(), &outcome, &[file.as_raw_fd()]).expect("sent");
        let (message, fds) =
            receive::<Outcome>(b.as_fd(), MsgFlags::empty()).expect("received").expect("a message");
        assert!(matches!(message, Outcome::Created { pid: 7, .. }));
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn a_closed_end_is_the_end() {
        let (a, b) = pair().expect("a socket pair");
        drop(a);
        assert!(receive::<Outcome>(b.as_fd(), MsgFlags::empty()).expect("received").is_none());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shorten("ä".repeat(LIMIT)).len(), LIMIT / 8);
        assert_eq!(shorten("short".into()), "short");
    }
}
