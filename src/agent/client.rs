//! The client's side of ttRPC on one connection: requests with odd stream numbers, each answered once.
//!
//! It has no thread of its own, and so costs nothing while nobody calls. Of those who wait for an answer one reads, for all of them;
//! when it has its own another takes over. (The ttrpc crate's client starts two threads a connection, one of which
//! wakes every ten milliseconds for as long as the connection is open.)
//!
//! The other end is the guest's: a message has at most ttRPC's 4 MiB, answers to nobody are dropped, and what is no answer ends the connection.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::Message;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE};
use ttrpc::{MessageHeader, Request, Response};

const SERVICE: &str = "rt.agent.Agent";

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The agent's own words.
    Refused(String),
    /// In time.
    Late,
    /// The connection is of no use any more.
    Lost(String),
}

/// A connection. Clones share it; calls may be made from several threads.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    stream: UnixStream,
    /// The number of the next request; held while one is written.
    next: Mutex<u32>,
    answers: Mutex<Answers>,
    changed: Condvar,
    /// What has come of a message that is not whole; used by the one that reads.
    partial: Mutex<Vec<u8>>,
}

#[derive(Default)]
struct Answers {
    /// By the number of the request that somebody waits for.
    of: HashMap<u32, Option<Vec<u8>>>,
    /// Somebody reads.
    is_read: bool,
    /// There will be no more, and why.
    lost: Option<String>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        Self(Arc::new(Shared {
            stream,
            next: Mutex::new(1),
            answers: Mutex::default(),
            changed: Condvar::new(),
            partial: Mutex::default(),
        }))
    }

    /// Makes a call, and waits at most `timeout` for its answer.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn call<T: Message>(
        &self,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<T, Failure> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let encode = || {
            let timeout_nano = timeout.and_then(|timeout| i64::try_from(timeout.as_nanos()).ok());
            let mut envelope = Request::new();
            envelope.service = SERVICE.to_owned();
            envelope.method = method.to_owned();
            envelope.timeout_nano = timeout_nano.unwrap_or(0);
            envelope.payload = request.write_to_bytes()?;
            envelope.write_to_bytes()
        };
        let bytes = encode().map_err(|error| Failure::Lost(error.to_string()))?;
        if bytes.len() > MESSAGE_LENGTH_MAX {
            let length = bytes.len();
            return Err(Failure::Refused(format!(
                "{method} has {length} bytes, and {MESSAGE_LENGTH_MAX} are the most"
            )));
        }
        let number = self.0.send(&bytes, deadline)?;
        let answer = self.0.wait(number, deadline)?;
        let wrong = |error: protobuf::Error| Failure::Lost(format!("the answer is damaged: {error}"));
        let mut answer = Response::parse_from_bytes(&answer).map_err(wrong)?;
        match answer.status.take() {
            Some(status) if status.code.value() != Code::OK as i32 => Err(Failure::Refused(status.message)),
            _ => T::parse_from_bytes(&answer.payload).map_err(wrong),
        }
    }
}

impl Shared {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        // No code that holds it can panic half-way.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a request: its number.
    fn send(&self, request: &[u8], deadline: Option<Instant>) -> Result<u32, Failure> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next;
        *next = next.wrapping_add(2);
        {
            let mut answers = self.answers();
            if let Some(reason) = &answers.lost {
                return Err(Failure::Lost(reason.clone()));
            }
            answers.of.insert(number, None);
        }
        let mut message: Vec<u8> = MessageHeader::new_request(number, request.len() as u32).into();
        message.extend_from_slice(request);
        // A guest that does not read must not hold its caller for ever.
        let limit =
            deadline.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let written = self.stream.set_write_timeout(limit).and_then(|()| (&self.stream).write_all(&message));
        match written {
            Ok(()) => Ok(number),
            // A part of it may have gone.
            Err(error) => {
                let reason = error.to_string();
                let mut answers = self.answers();
                answers.of.remove(&number);
                self.lose(answers, &reason);
                match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(Failure::Late),
                    _ => Err(Failure::Lost(reason)),
                }
            }
        }
    }

    /// Waits for an answer, and meanwhile reads if nobody else does.
    fn wait(&self, number: u32, deadline: Option<Instant>) -> Result<Vec<u8>, Failure> {
        let mut answers = self.answers();
        loop {
            if let Some(Some(_)) = answers.of.get(&number) {
                return Ok(answers.of.remove(&number).flatten().unwrap_or_default());
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let reason = match &answers.lost {
                Some(reason) => Some(Failure::Lost(reason.clone())),
                None => left.filter(Duration::is_zero).map(|_| Failure::Late),
            };
            if let Some(reason) = reason {
                answers.of.remove(&number);
                return Err(reason);
            }
            if answers.is_read {
                answers = match left {
                    Some(left) => {
                        self.changed.wait_timeout(answers, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.changed.wait(answers).unwrap_or_else(PoisonError::into_inner),
                };
                continue;
            }
            answers.is_read = true;
            drop(answers);
            let read = self.read(deadline);
            answers = self.answers();
            answers.is_read = false;
            match read {
                Ok(Some((number, answer))) => {
                    if let Some(place) = answers.of.get_mut(&number) {
                        *place = Some(answer);
                    }
                }
                Ok(None) => {}
                Err(reason) => {
                    self.lose(answers, &reason);
                    answers = self.answers();
                }
            }
            // One of them may have got its answer, another may have to read.
            self.changed.notify_all();
        }
    }

    fn lose(&self, mut answers: MutexGuard<'_, Answers>, reason: &str) {
        answers.lost.get_or_insert_with(|| reason.to_owned());
        drop(answers);
        self.changed.notify_all();
    }

    /// Reads a message: the request's number and the answer; `None` when the time is up.
    fn read(&self, deadline: Option<Instant>) -> Result<Option<(u32, Vec<u8>)>, String> {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(message) = take_message(&mut partial)? {
                return Ok(Some(message));
            }
            // Rounded up, so that the time is up when it says so.
            let timeout = deadline.map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.desc().to_owned()),
            }
            let mut chunk = [0; 16 * 1024];
            match (&self.stream).read(&mut chunk) {
                Ok(0) => return Err("the guest's end is closed".to_owned()),
                Ok(length) => partial.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// The first message, if it is whole.
fn take_message(bytes: &mut Vec<u8>) -> Result<Option<(u32, Vec<u8>)>, String> {
    let Some(header) = bytes.first_chunk::<MESSAGE_HEADER_LENGTH>() else { return Ok(None) };
    let header = MessageHeader::from(header);
    let length = header.length as usize;
    if length > MESSAGE_LENGTH_MAX || header.type_ != MESSAGE_TYPE_RESPONSE {
        return Err(format!("a message of type {} and {length} bytes came", header.type_));
    }
    let end = MESSAGE_HEADER_LENGTH + length;
    if bytes.len() < end {
        return Ok(None);
    }
    let rest = bytes.split_off(end);
    let message = std::mem::replace(bytes, rest).split_off(MESSAGE_HEADER_LENGTH);
    Ok(Some((header.stream_id, message)))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rt_proto::messages::{Empty, HelloRequest, HelloResponse};

    use super::*;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Client::new(ours), theirs)
    }

    /// A request as the other end reads it: its number, and what it carries.
    fn request(stream: &mut UnixStream) -> (u32, Request) {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        stream.read_exact(&mut header).expect("a header");
        let header = MessageHeader::from(header);
        let mut bytes = vec![0; header.length as usize];
        stream.read_exact(&mut bytes).expect("a request");
        (header.stream_id, Request::parse_from_bytes(&bytes).expect("a request"))
    }

    fn answer(number: u32, version: u32) -> Vec<u8> {
        let mut response = Response::new();
        let reply = HelloResponse { version, ..Default::default() };
        response.payload = reply.write_to_bytes().expect("bytes");
        let bytes = response.write_to_bytes().expect("bytes");
        let mut message: Vec<u8> = MessageHeader::new_response(number, bytes.len() as u32).into();
        message.extend(bytes);
        message
    }

    fn hello(client: &Client, version: u32, timeout: Duration) -> Result<HelloResponse, Failure> {
        let request = HelloRequest { version, ..Default::default() };
        client.call("Hello", &request, Some(timeout))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers_find_their_callers_in_any_order_and_in_pieces() {
        let (client, mut other) = pair();
        thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|number| {
                    let client = client.clone();
                    scope.spawn(move || hello(&client, number, LONG).expect("an answer").version)
                })
                .collect();
            let mut requests: Vec<_> = (0..8).map(|_| request(&mut other)).collect();
            assert!(requests.iter().all(|(number, request)| number % 2 == 1 && request.method == "Hello"));
            requests.reverse();
            for (number, request) in requests {
                let sent = HelloRequest::parse_from_bytes(&request.payload).expect("a request");
                for piece in answer(number, sent.version + 100).chunks(3) {
                    other.write_all(piece).expect("written");
                }
            }
            for (number, caller) in callers.into_iter().enumerate() {
                assert_eq!(caller.join().expect("no panic"), number as u32 + 100);
            }
        });
        assert!(client.0.answers().of.is_empty());
    }

    #[test]
    fn one_that_is_late_does_not_disturb_the_next() {
        let (client, mut other) = pair();
        assert!(matches!(hello(&client, 1, Duration::from_millis(20)), Err(Failure::Late)));
        let (late, _) = request(&mut other);
        other.write_all(&answer(late, 1)).expect("written");
        thread::scope(|scope| {
            let second = scope.spawn(|| hello(&client, 2, LONG));
            let (number, _) = request(&mut other);
            other.write_all(&answer(number, 2)).expect("written");
            assert_eq!(second.join().expect("no panic").expect("an answer").version, 2);
        });
    }

    #[test]
    fn a_refusal_is_the_agents_words() {
        let (client, mut other) = pair();
        thread::scope(|scope| {
            let caller = scope.spawn(|| client.call::<Empty>("Shutdown", &Empty::new(), None));
            let (number, request) = request(&mut other);
            assert_eq!(request.timeout_nano, 0);
            let mut response = Response::new();
            response.set_status(ttrpc::get_status(Code::INTERNAL, "no".to_owned()));
            let bytes = response.write_to_bytes().expect("bytes");
            let header: Vec<u8> = MessageHeader::new_response(number, bytes.len() as u32).into();
            other.write_all(&[header, bytes].concat()).expect("written");
            assert!(matches!(caller.join().expect("no panic"), Err(Failure::Refused(text)) if text == "no"));
        });
    }

    #[test]
    fn the_end_of_the_connection_is_told_to_all_that_wait() {
        let (client, mut other) = pair();
        thread::scope(|scope| {
            let callers: Vec<_> = (0..3)
                .map(|number| {
                    let client = &client;
                    scope.spawn(move || hello(client, number, LONG))
                })
                .collect();
            for _ in 0..3 {
                request(&mut other);
            }
            drop(other);
            for caller in callers {
                assert!(matches!(caller.join().expect("no panic"), Err(Failure::Lost(_))));
            }
        });
        assert!(matches!(hello(&client, 4, LONG), Err(Failure::Lost(_))));
    }

    #[test]
    fn what_is_no_answer_ends_the_connection() {
        let long = MessageHeader::new_response(1, MESSAGE_LENGTH_MAX as u32 + 1);
        for header in [long, MessageHeader::new_request(1, 0), MessageHeader::new_data(1, 0)] {
            let (client, mut other) = pair();
            let header: Vec<u8> = header.into();
            other.write_all(&header).expect("written");
            assert!(matches!(hello(&client, 1, LONG), Err(Failure::Lost(_))));
        }
    }
}
