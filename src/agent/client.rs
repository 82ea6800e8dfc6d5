//! The client's side of ttRPC on one connection: requests with odd stream numbers, each answered once.
//!
//! It has no thread of its own, and so costs nothing while nobody calls. Of those who wait for an answer one reads, for all of them;
//! when it has its own another takes over. (The ttrpc crate's client starts two threads a connection, one of which
//! wakes every ten milliseconds for as long as the connection is open.)
//!
//! The other end is the guest's. An answer is no longer than its caller allows, which the header of its message tells before the rest is
//! read; one that comes too late is dropped; and what is no answer to a call, or the second one to it, ends the connection. A guest that
//! does not read is waited for a while by those who have something to say, whatever time they have for the answer.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use protobuf::Message;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE, Status};
use ttrpc::{MessageHeader, Request};

use super::wire;

const SERVICE: &str = "rt.agent.Agent";
/// The least that every answer may have: an error has its text.
pub const SHORT: usize = 64 << 10;
/// What an answer has around its payload.
const ENVELOPE: usize = 16;
/// For a request to be taken.
const SENDING: Duration = Duration::from_secs(120);
/// Calls that have not been answered, late ones among them.
const MAX_AWAITED: usize = 1024;

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
    /// By the number of the request.
    of: HashMap<u32, Awaited>,
    /// Somebody reads.
    is_read: bool,
    /// There will be no more, and why.
    lost: Option<String>,
}

/// What is known of a request's answer.
enum Awaited {
    /// It may have so many bytes.
    Wanted(usize),
    Here(Vec<u8>),
    /// Nobody wants it.
    Late(usize),
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

    /// Makes a call, and waits at most `timeout` for its answer, which has at most so many bytes.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn call(
        &self,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
        most: usize,
    ) -> Result<Vec<u8>, Failure> {
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
        let number = self.0.send(&bytes, deadline, most.max(SHORT) + ENVELOPE)?;
        let answer = self.0.wait(number, deadline)?;
        open(&answer)
    }

    /// Ends the connection: whoever waits for an answer gets none.
    pub fn close(&self) {
        // One that has ended already needs no end.
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }
}

/// Takes the payload, or the agent's error, out of an answer.
fn open(answer: &[u8]) -> Result<Vec<u8>, Failure> {
    let wrong = |what: String| Failure::Lost(format!("the answer is damaged: {what}"));
    let mut payload = &[][..];
    for field in wire::fields(answer) {
        match field.map_err(|what| wrong(what.to_owned()))? {
            (1, status) => {
                let status = Status::parse_from_bytes(status).map_err(|error| wrong(error.to_string()))?;
                if status.code.value() != Code::OK as i32 {
                    return Err(Failure::Refused(status.message));
                }
            }
            (2, bytes) => payload = bytes,
            (number, _) => return Err(wrong(format!("it has a field {number}"))),
        }
    }
    Ok(payload.to_owned())
}

impl Shared {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        // No code that holds it can panic half-way.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a request: its number.
    fn send(&self, request: &[u8], deadline: Option<Instant>, most: usize) -> Result<u32, Failure> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next;
        *next = next.wrapping_add(2);
        {
            let mut answers = self.answers();
            if answers.of.len() >= MAX_AWAITED {
                self.lose(answers, "it has left too many calls without an answer");
                answers = self.answers();
            }
            if let Some(reason) = &answers.lost {
                return Err(Failure::Lost(reason.clone()));
            }
            answers.of.insert(number, Awaited::Wanted(most));
        }
        let mut message: Vec<u8> = MessageHeader::new_request(number, request.len() as u32).into();
        message.extend_from_slice(request);
        // Others wait for their turn to write meanwhile: also one that may wait for its answer for ever has an end here.
        let latest = Instant::now() + SENDING;
        let deadline = deadline.map_or(latest, |at| at.min(latest));
        self.write(&message, deadline).map(|()| number).map_err(|error| {
            // A part of it may have gone.
            let reason = match error {
                Errno::ETIMEDOUT => "the guest does not take a request",
                error => error.desc(),
            };
            let mut answers = self.answers();
            answers.of.remove(&number);
            self.lose(answers, reason);
            match error {
                Errno::ETIMEDOUT => Failure::Late,
                _ => Failure::Lost(reason.to_owned()),
            }
        })
    }

    /// A guest that takes it byte by byte has no more time than another.
    fn write(&self, mut message: &[u8], deadline: Instant) -> Result<(), Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !message.is_empty() {
            match send(self.stream.as_raw_fd(), message, flags) {
                Ok(count) => message = &message[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => match self.poll(PollFlags::POLLOUT, Some(deadline))? {
                    true => {}
                    false => return Err(Errno::ETIMEDOUT),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the stream is ready; false when the time is up.
    fn poll(&self, event: PollFlags, deadline: Option<Instant>) -> Result<bool, Errno> {
        // Rounded up, so that the time is up when it says so.
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(self.stream.as_fd(), event)], timeout) {
            Err(Errno::EINTR) => Ok(true),
            other => Ok(other? > 0),
        }
    }

    /// Waits for an answer, and meanwhile reads if nobody else does.
    fn wait(&self, number: u32, deadline: Option<Instant>) -> Result<Vec<u8>, Failure> {
        let mut answers = self.answers();
        loop {
            if let Some(Awaited::Here(answer)) = answers.of.get_mut(&number) {
                let answer = std::mem::take(answer);
                answers.of.remove(&number);
                return Ok(answer);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let reason = match &answers.lost {
                Some(reason) => Some(Failure::Lost(reason.clone())),
                None => left.filter(Duration::is_zero).map(|_| Failure::Late),
            };
            if let Some(reason) = reason {
                if let Some(Awaited::Wanted(most)) = answers.of.remove(&number) {
                    answers.of.insert(number, Awaited::Late(most));
                }
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
                // It is in `of`, since it was when its header came.
                Ok(Some((number, answer))) => match answers.of.get_mut(&number) {
                    Some(place @ Awaited::Wanted(_)) => *place = Awaited::Here(answer),
                    _ => drop(answers.of.remove(&number)),
                },
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
            if let Some(message) = self.take_message(&mut partial)? {
                return Ok(Some(message));
            }
            if !self.poll(PollFlags::POLLIN, deadline).map_err(|error| error.desc().to_owned())? {
                return Ok(None);
            }
            let mut chunk = [0; 16 * 1024];
            match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err("the guest's end is closed".to_owned()),
                Ok(length) => partial.extend_from_slice(&chunk[..length]),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(error.desc().to_owned()),
            }
        }
    }

    /// The first message, if it is whole.
    fn take_message(&self, bytes: &mut Vec<u8>) -> Result<Option<(u32, Vec<u8>)>, String> {
        let Some(header) = bytes.first_chunk::<MESSAGE_HEADER_LENGTH>() else { return Ok(None) };
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        let most = match self.answers().of.get(&header.stream_id) {
            Some(Awaited::Wanted(most) | Awaited::Late(most)) if header.type_ == MESSAGE_TYPE_RESPONSE => {
                *most
            }
            _ => {
                return Err(format!(
                    "a message of type {} and {length} bytes came that nobody asked for",
                    header.type_
                ));
            }
        };
        if length > most {
            return Err(format!("an answer has {length} bytes, and {most} are the most"));
        }
        let end = MESSAGE_HEADER_LENGTH + length;
        if bytes.len() < end {
            return Ok(None);
        }
        let rest = bytes.split_off(end);
        let message = std::mem::replace(bytes, rest).split_off(MESSAGE_HEADER_LENGTH);
        Ok(Some((header.stream_id, message)))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use std::io::{Read, Write};

    use rt_proto::messages::{Empty, HelloRequest, HelloResponse};
    use ttrpc::Response;

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
        let reply = client.call("Hello", &request, Some(timeout), SHORT)?;
        Ok(HelloResponse::parse_from_bytes(&reply).expect("a reply"))
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
            let caller = scope.spawn(|| client.call("Shutdown", &Empty::new(), None, SHORT));
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
        let long = MessageHeader::new_response(1, (SHORT + ENVELOPE) as u32 + 1);
        for header in [
            long,
            MessageHeader::new_request(1, 0),
            MessageHeader::new_data(1, 0),
            MessageHeader::new_response(3, 0),
        ] {
            let (client, mut other) = pair();
            let header: Vec<u8> = header.into();
            other.write_all(&header).expect("written");
            assert!(matches!(hello(&client, 1, LONG), Err(Failure::Lost(_))));
        }
    }

    #[test]
    fn a_second_answer_ends_the_connection() {
        let (client, mut other) = pair();
        thread::scope(|scope| {
            let caller = scope.spawn(|| hello(&client, 1, LONG));
            let (number, _) = request(&mut other);
            other.write_all(&[answer(number, 1), answer(number, 2)].concat()).expect("written");
            assert_eq!(caller.join().expect("no panic").expect("an answer").version, 1);
        });
        assert!(matches!(hello(&client, 2, LONG), Err(Failure::Lost(_))));
    }

    #[test]
    fn a_caller_that_expects_more_gets_more() {
        let (client, mut other) = pair();
        let text = "x".repeat(2 * SHORT);
        thread::scope(|scope| {
            let caller = scope.spawn(|| client.call("Hello", &Empty::new(), Some(LONG), 3 * SHORT));
            let (number, _) = request(&mut other);
            let response = Response { payload: text.clone().into_bytes(), ..Default::default() };
            let bytes = response.write_to_bytes().expect("bytes");
            let header: Vec<u8> = MessageHeader::new_response(number, bytes.len() as u32).into();
            other.write_all(&[header, bytes].concat()).expect("written");
            assert_eq!(caller.join().expect("no panic").expect("an answer"), text.as_bytes());
        });
    }

    /// Whoever waits for ever has written within a time, too, so that others get to theirs.
    #[test]
    fn a_guest_that_takes_no_request_holds_up_nobody() {
        let (client, other) = pair();
        // Fills the socket.
        let long = HelloRequest { hostname: "x".repeat(3 << 20), ..Default::default() };
        let begin = Instant::now();
        let call = client.call("Hello", &long, Some(Duration::from_millis(100)), SHORT);
        assert!(matches!(call, Err(Failure::Late)));
        // A part of it is gone, so that nothing can follow.
        assert!(matches!(hello(&client, 1, LONG), Err(Failure::Lost(_))));
        assert!(begin.elapsed() < LONG);
        drop(other);
    }

    #[test]
    fn the_end_of_ones_own_is_told_to_those_that_wait() {
        let (client, mut other) = pair();
        thread::scope(|scope| {
            let caller = scope.spawn(|| client.call("WaitProcess", &Empty::new(), None, SHORT));
            request(&mut other);
            client.close();
            assert!(matches!(caller.join().expect("no panic"), Err(Failure::Lost(_))));
        });
    }

    #[test]
    fn calls_without_an_answer_are_bounded() {
        let (client, _other) = pair();
        client
            .0
            .answers()
            .of
            .extend((0..MAX_AWAITED as u32).map(|number| (2 * number, Awaited::Late(SHORT))));
        assert!(matches!(hello(&client, 1, LONG), Err(Failure::Lost(_))));
    }
}
