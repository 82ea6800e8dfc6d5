//! Raw streams from the host, waiting for the container that asks for them by number.
//!
//! The host connects to the stream port, sends eight bytes, and from then on the connection is a process's standard
//! stream. Connections may come before or after the call that names them; both sides wait a bounded time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::{kmsg, sys};

/// Most streams that may wait at once.
const LIMIT: usize = 1024;
/// How long a connection may take to say its number, and a container waits for a stream it is to have: as long as the host waits for the
/// guest to accept it.
const ARRIVAL: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("stream {0} did not arrive within {seconds} s", seconds = ARRIVAL.as_secs())]
    Missing(u64),
    #[error("stream {0} is already there")]
    Duplicate(u64),
    #[error("too many streams wait for their containers")]
    Full,
}

/// The streams that have arrived and are not taken.
#[derive(Default)]
pub struct Registry {
    waiting: Mutex<BTreeMap<u64, OwnedFd>>,
    arrived: Condvar,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, OwnedFd>> {
        // No code that holds it can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a stream until it is taken. A refused one is closed.
    ///
    /// # Errors
    /// [`Error::Duplicate`], [`Error::Full`]
    pub fn add(&self, number: u64, stream: OwnedFd) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.contains_key(&number) {
            return Err(Error::Duplicate(number));
        }
        if waiting.len() >= LIMIT {
            // Of calls that failed before they took theirs: the host has closed them.
            waiting.retain(|_, stream| !sys::is_hung_up(stream.as_fd()));
        }
        if waiting.len() >= LIMIT {
            return Err(Error::Full);
        }
        waiting.insert(number, stream);
        self.arrived.notify_all();
        Ok(())
    }

    /// Takes a stream, waiting for it when it has not arrived.
    ///
    /// # Errors
    /// [`Error::Missing`]
    pub fn take(&self, number: u64) -> Result<OwnedFd, Error> {
        self.take_within(number, ARRIVAL)
    }

    fn take_within(&self, number: u64, limit: Duration) -> Result<OwnedFd, Error> {
        let deadline = Instant::now() + limit;
        let mut waiting = self.lock();
        loop {
            if let Some(stream) = waiting.remove(&number) {
                return Ok(stream);
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or(Error::Missing(number))?;
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Accepts streams for ever. Returns only when accepting is no longer possible, with the reason. `listener` does not block.
pub fn accept_all(listener: &OwnedFd, registry: &Registry) -> nix::Error {
    let mut newcomers: Vec<Newcomer> = Vec::new();
    loop {
        match wait(listener, &newcomers) {
            Ok(()) | Err(nix::Error::EINTR) => {}
            Err(error) => return error,
        }
        newcomers = newcomers.into_iter().filter_map(|newcomer| newcomer.listen(registry)).collect();
        // Those beyond wait at the listener.
        while newcomers.len() < LIMIT {
            match sys::accept(listener.as_fd()) {
                Ok(stream) => newcomers.extend(Newcomer::new(stream).listen(registry)),
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                Err(error) => return error,
            }
        }
    }
}

/// Until somebody connects, a newcomer speaks, or the time of the one who came first is up.
fn wait(listener: &OwnedFd, newcomers: &[Newcomer]) -> nix::Result<()> {
    let limit = newcomers.first().map(|first| first.deadline.saturating_duration_since(Instant::now()));
    let limit =
        limit.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    let sockets = newcomers.iter().map(|newcomer| newcomer.stream.as_fd());
    let mut all: Vec<_> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
    if newcomers.len() < LIMIT {
        all.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    }
    poll(&mut all, limit).map(drop)
}

/// A connection that has not said its number. One that is slow keeps nobody waiting: where the host is busy, seconds pass between its
/// arrival and what it says.
struct Newcomer {
    stream: OwnedFd,
    deadline: Instant,
    said: Vec<u8>,
}

impl Newcomer {
    fn new(stream: OwnedFd) -> Self {
        Self { stream, deadline: Instant::now() + ARRIVAL, said: Vec::new() }
    }

    /// Takes up what it says; gives it back while that is not all.
    fn listen(mut self, registry: &Registry) -> Option<Self> {
        let mut bytes = [0; 8];
        let left = bytes.len() - self.said.len();
        let refused = match recv(self.stream.as_raw_fd(), &mut bytes[..left], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => "it does not say its number".to_owned(),
            Ok(count) => {
                self.said.extend(&bytes[..count]);
                let Ok(number) = <[u8; 8]>::try_from(&self.said[..]) else { return Some(self) };
                let added = match u64::from_le_bytes(number) {
                    0 => Err("its number is 0".to_owned()),
                    number => registry.add(number, self.stream).map_err(|error| error.to_string()),
                };
                added.err()?
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) if Instant::now() < self.deadline => {
                return Some(self);
            }
            Err(error) => format!("it does not say its number: {error}"),
        };
        kmsg::warning!("a stream is refused: {refused}");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Arc;

    fn stream() -> OwnedFd {
        File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn taken_once() {
        let registry = Registry::default();
        registry.add(1, stream()).expect("added");
        assert_eq!(registry.add(1, stream()), Err(Error::Duplicate(1)));
        assert!(registry.take(1).is_ok());
        let missing = registry.take_within(1, Duration::from_millis(5)).expect_err("taken already");
        assert_eq!(missing, Error::Missing(1));
    }

    #[test]
    fn bounded() {
        let registry = Registry::default();
        for number in 1..=LIMIT as u64 {
            registry.add(number, stream()).expect("added");
        }
        assert_eq!(registry.add(0, stream()), Err(Error::Full));
        assert!(registry.take(7).is_ok());
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        registry.add(7, theirs.into()).expect("added");
        assert_eq!(registry.add(0, stream()), Err(Error::Full));
        drop(ours);
        registry.add(0, stream()).expect("the one that was closed makes room");
        assert!(!registry.lock().contains_key(&7));
    }

    #[test]
    fn a_late_stream_is_waited_for() {
        let registry = Arc::new(Registry::default());
        let taker = std::thread::spawn({
            let registry = registry.clone();
            move || registry.take(9).map(drop)
        });
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let number = 9u64.to_le_bytes();
        (&ours).write_all(&number[..3]).expect("written");
        let newcomer = Newcomer::new(theirs.into()).listen(&registry).expect("it has more to say");
        (&ours).write_all(&number[3..]).expect("written");
        assert!(newcomer.listen(&registry).is_none(), "it has said all");
        assert_eq!(taker.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_number_of_zero_or_none_is_refused() {
        let registry = Registry::default();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(&[0; 8]).expect("written");
        assert!(Newcomer::new(theirs.into()).listen(&registry).is_none());
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(ours);
        assert!(Newcomer::new(theirs.into()).listen(&registry).is_none());
        let (_ours, theirs) = UnixStream::pair().expect("a pair");
        let late = Newcomer { deadline: Instant::now(), ..Newcomer::new(theirs.into()) };
        assert!(late.listen(&registry).is_none());
        assert!(registry.lock().is_empty());
    }

    /// The first says its number last.
    #[test]
    fn a_slow_one_keeps_nobody_waiting() {
        let directory = std::env::temp_dir().join(format!("rt-streams-{}", std::process::id()));
        let listener = UnixListener::bind(&directory).expect("a listener");
        listener.set_nonblocking(true).expect("it does not block");
        let registry = Arc::new(Registry::default());
        let accepting = registry.clone();
        let listener = OwnedFd::from(listener);
        std::thread::spawn(move || accept_all(&listener, &accepting));
        let mut slow = UnixStream::connect(&directory).expect("connected");
        let mut quick = UnixStream::connect(&directory).expect("connected");
        std::fs::remove_file(&directory).expect("removed");
        quick.write_all(&2u64.to_le_bytes()).expect("written");
        assert!(registry.take(2).is_ok());
        slow.write_all(&1u64.to_le_bytes()).expect("written");
        assert!(registry.take(1).is_ok());
    }
}
