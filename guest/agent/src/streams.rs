//! Raw streams from the host, waiting for the container that asks for them by number.
//!
//! The host connects to the stream port, sends eight bytes, and from then on the connection is a process's standard
//! stream. Connections may come before or after the call that names them; both sides wait a bounded time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::{kmsg, sys};

/// Most streams that may wait at once.
const LIMIT: usize = 1024;
/// How long a connection may take to say its number.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How long a container waits for a stream it is to have: as long as the host waits for the guest to accept it.
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

/// Accepts streams for ever. Returns only when accepting is no longer possible, with the reason.
pub fn accept_all(listener: &OwnedFd, registry: &Arc<Registry>) -> nix::Error {
    loop {
        match sys::accept(listener.as_fd()) {
            Ok(stream) => {
                if let Err(reason) = introduce(stream, registry) {
                    kmsg::warning!("a stream is refused: {reason}");
                }
            }
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
            Err(error) => return error,
        }
    }
}

fn introduce(stream: OwnedFd, registry: &Registry) -> Result<(), String> {
    // Too long an introduction must not keep the next streams waiting for ever.
    let limit = |duration: Duration| {
        let time = TimeVal::new(duration.as_secs() as i64, 0);
        setsockopt(&stream, sockopt::ReceiveTimeout, &time).map_err(|error| error.to_string())
    };
    limit(INTRODUCTION)?;
    let mut number = [0; 8];
    let mut reader = File::from(stream.try_clone().map_err(|error| error.to_string())?);
    reader.read_exact(&mut number).map_err(|error| format!("it does not say its number: {error}"))?;
    limit(Duration::ZERO)?;
    match u64::from_le_bytes(number) {
        0 => Err("its number is 0".to_owned()),
        number => registry.add(number, stream).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

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
    }

    #[test]
    fn a_late_stream_is_waited_for() {
        let registry = Arc::new(Registry::default());
        let taker = std::thread::spawn({
            let registry = registry.clone();
            move || registry.take(9).map(drop)
        });
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(&9u64.to_le_bytes()).expect("written");
        introduce(theirs.into(), &registry).expect("introduced");
        assert_eq!(taker.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_number_of_zero_or_none_is_refused() {
        let registry = Registry::default();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (&ours).write_all(&[0; 8]).expect("written");
        assert!(introduce(theirs.into(), &registry).is_err());
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(ours);
        assert!(introduce(theirs.into(), &registry).is_err());
    }
}
