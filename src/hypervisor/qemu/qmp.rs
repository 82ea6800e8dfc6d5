//! QEMU's monitor: a socket on which it listens, one client at a time.
//!
//! A VM that cannot go on (KVM met an instruction that it cannot emulate, say) does not end QEMU: it stands still in a state that only the
//! monitor tells. What QEMU answers is bounded in size and time: a guest may have taken it over.

use std::io::{self, BufReader, Read, Take};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use qapi::qmp::{self, RunState};
use qapi::{Qmp, Stream};

use super::super::vsock::connect_plain;

/// For each answer of a QEMU that does not work as it should.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than all that is ever asked for.
const MAX_ANSWERS: u64 = 64 * 1024;

/// A session's answers and commands.
pub type Session<'a> = Qmp<Stream<BufReader<Take<&'a UnixStream>>, &'a UnixStream>>;

/// rt's end of a connection to the monitor.
#[derive(Debug)]
pub struct Monitor {
    socket: UnixStream,
    /// For each answer.
    timeout: Duration,
}

impl Monitor {
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, timeout: TIMEOUT }
    }

    /// With more patience for each answer.
    pub fn patient(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// # Errors
    /// What the socket says.
    pub fn connect(path: &Path) -> io::Result<Self> {
        connect_plain(path, TIMEOUT).map(Self::new)
    }

    /// What the VM does; once only for a connection.
    ///
    /// # Errors
    /// What the socket or the protocol say; `TimedOut` when QEMU does not answer.
    pub fn run_state(self) -> io::Result<RunState> {
        let mut session = self.session()?;
        Ok(session.execute(&qmp::query_status {})?.status)
    }

    /// Opens the session of this connection, which has one only.
    ///
    /// # Errors
    /// As [`Self::run_state`].
    pub fn session(&self) -> io::Result<Session<'_>> {
        self.socket.set_read_timeout(Some(self.timeout))?;
        self.socket.set_write_timeout(Some(self.timeout))?;
        // The library panics on an end of file instead of a greeting.
        match recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        let answers = BufReader::new(Read::take(&self.socket, MAX_ANSWERS));
        let mut session = Qmp::new(Stream::new(answers, &self.socket));
        session.handshake()?;
        Ok(session)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A state in words, when it explains why a guest says nothing; `None` when the guest runs.
pub fn trouble(state: &RunState) -> Option<&'static str> {
    match state {
        RunState::internal_error => {
            Some("the machine stands still: its processor met what KVM cannot execute (internal-error)")
        }
        RunState::io_error => Some("the machine stands still after an error of a device (io-error)"),
        RunState::guest_panicked => Some("the guest's kernel panicked"),
        RunState::paused => Some("the machine is paused"),
        RunState::shutdown => Some("the guest has shut down"),
        RunState::watchdog => Some("the guest's watchdog expired"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::thread;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

    /// A QEMU that greets and answers each command by the next of `answers`; gives the commands.
    fn qemu(answers: &'static [&'static str]) -> (Monitor, thread::JoinHandle<Vec<String>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            writeln!(theirs, "{GREETING}\r").unwrap();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let mut commands = Vec::new();
            for answer in answers {
                commands.push(lines.next().unwrap().unwrap());
                write!(theirs, "{answer}\r\n").unwrap();
            }
            commands
        });
        (Monitor::new(ours), qemu)
    }

    #[test]
    fn the_state_is_asked_for() {
        let (monitor, qemu) = qemu(&[
            r#"{"return": {}}"#,
            concat!(
                r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}"#,
                "\r\n",
                r#"{"return": {"status": "internal-error", "singlestep": false, "running": false}}"#
            ),
        ]);
        let state = monitor.run_state().unwrap();
        assert!(trouble(&state).unwrap().contains("internal-error"));
        let commands = qemu.join().unwrap();
        assert!(
            commands[0].contains("qmp_capabilities") && commands[1].contains("query-status"),
            "{commands:?}"
        );
        assert_eq!(trouble(&RunState::running), None);
    }

    #[test]
    fn a_gone_or_foolish_qemu_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(Monitor::new(ours).run_state().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        for words in ["", "\n", "{}\n", "{\"QMP\"", "[1,2]\n"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(words.as_bytes()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            Monitor::new(ours).run_state().unwrap_err();
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        Monitor::new(ours).run_state().unwrap_err();
        flood.join().unwrap();
    }
}
