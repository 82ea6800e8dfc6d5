//! Names for containers of docker, which are told to ask 127.0.0.11: on the host docker's resolver listens there, in the container's network
//! namespace. A guest's loopback is another, so this listens there and hands what comes to the host, which asks in the guest's stead.
//!
//! Containers are what asks here: whatever they send is a message to be handed on, and whoever does not read has no answer.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, Builder};
use std::time::Duration;

use rt_proto::resolver::{ADDRESS, Message, read_from_tcp, write_to_tcp};

use crate::kmsg;
use crate::server::lock;

/// Questions that wait for an answer; the oldest is given up for one more.
const WAITING: usize = 256;
/// Connections at once.
const CONNECTIONS: usize = 32;
/// Longest question by UDP: they carry one name.
const LONGEST: usize = 4096;
/// How long a connection may say nothing, and how long it may take to take its answer.
const IDLE: Duration = Duration::from_secs(30);
const SLOW: Duration = Duration::from_secs(1);

/// Who gets an answer.
enum Asker {
    Datagram(SocketAddr),
    Connection(TcpStream),
}

#[derive(Default)]
struct Waiting {
    last: u32,
    askers: BTreeMap<u32, Asker>,
}

struct Resolver {
    host: Mutex<UnixStream>,
    waiting: Mutex<Waiting>,
}

/// Listens, and hands questions to the host until `stream` ends.
///
/// # Errors
/// Somebody listens there already, or no thread is to be had.
pub fn serve(stream: OwnedFd) -> io::Result<()> {
    let datagrams = Arc::new(UdpSocket::bind(ADDRESS)?);
    let connections = TcpListener::bind(ADDRESS)?;
    let mut answers = UnixStream::from(stream);
    let resolver = Arc::new(Resolver { host: Mutex::new(answers.try_clone()?), waiting: Mutex::default() });
    let (asking, sending) = (Arc::clone(&resolver), Arc::clone(&datagrams));
    spawn(move || asking.take_datagrams(&datagrams))?;
    let asking = Arc::clone(&resolver);
    spawn(move || asking.take_connections(&connections))?;
    spawn(move || {
        while let Ok(answer) = Message::read(&mut answers) {
            resolver.answer(&answer, &sending);
        }
    })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().name("resolver".to_owned()).stack_size(64 << 10).spawn(work).map(drop)
}

impl Resolver {
    fn ask(&self, asker: Asker, bytes: Vec<u8>) -> io::Result<()> {
        let by_tcp = matches!(asker, Asker::Connection(_));
        let mut waiting = lock(&self.waiting);
        waiting.last = waiting.last.wrapping_add(1);
        let number = waiting.last;
        waiting.askers.insert(number, asker);
        if waiting.askers.len() > WAITING {
            waiting.askers.pop_first();
        }
        drop(waiting);
        Message { number, by_tcp, bytes }.write(&mut *lock(&self.host))
    }

    fn answer(&self, answer: &Message, datagrams: &UdpSocket) {
        // One that was given up, or never asked.
        let Some(asker) = lock(&self.waiting).askers.remove(&answer.number) else { return };
        let sent = match asker {
            Asker::Datagram(address) => datagrams.send_to(&answer.bytes, address).map(drop),
            Asker::Connection(mut connection) => write_to_tcp(&mut connection, &answer.bytes),
        };
        if let Err(error) = sent {
            kmsg::debug!("an answer of the resolver was not taken: {error}");
        }
    }

    fn take_datagrams(&self, socket: &UdpSocket) {
        let mut question = [0; LONGEST];
        loop {
            match socket.recv_from(&mut question) {
                Ok((length, sender)) => {
                    if self.ask(Asker::Datagram(sender), question[..length].to_vec()).is_err() {
                        return;
                    }
                }
                // What an asker that has gone makes of the answer (ICMP).
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return kmsg::warning!("the resolver has ended: {error}"),
            }
        }
    }

    fn take_connections(self: &Arc<Self>, listener: &TcpListener) {
        let open = Arc::new(());
        for connection in listener.incoming() {
            let Ok(connection) = connection else {
                // Too many open files, for one: others may come later.
                thread::sleep(SLOW);
                continue;
            };
            let (resolver, place) = (Arc::clone(self), Arc::clone(&open));
            if Arc::strong_count(&open) > CONNECTIONS + 1 {
                continue;
            }
            let started = spawn(move || {
                let _place = place;
                // It hangs up, says nothing, or the host has gone.
                let _ = resolver.take_questions(connection);
            });
            if let Err(error) = started {
                kmsg::warning!("the resolver cannot start a thread: {error}");
            }
        }
    }

    fn take_questions(&self, mut connection: TcpStream) -> io::Result<()> {
        connection.set_read_timeout(Some(IDLE))?;
        connection.set_write_timeout(Some(SLOW))?;
        loop {
            let question = read_from_tcp(&mut connection)?;
            self.ask(Asker::Connection(connection.try_clone()?), question)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver() -> (Resolver, UnixStream) {
        let (host, far) = UnixStream::pair().expect("a pair");
        (Resolver { host: Mutex::new(host), waiting: Mutex::default() }, far)
    }

    #[test]
    fn an_answer_finds_who_asked() {
        let (resolver, mut host) = resolver();
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let asker = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = asker.local_addr().expect("an address");
        resolver.ask(Asker::Datagram(address), b"who".to_vec()).expect("asked");
        let mut question = Message::read(&mut host).expect("a question");
        assert_eq!((&question.bytes[..], question.by_tcp), (&b"who"[..], false));
        // Numbers that nobody has asked by, and one that is answered twice, do nothing.
        resolver.answer(&Message { number: question.number + 1, ..question.clone() }, &datagrams);
        question.bytes = b"me".to_vec();
        resolver.answer(&question, &datagrams);
        resolver.answer(&question, &datagrams);
        let mut answer = [0; 9];
        let (length, sender) = asker.recv_from(&mut answer).expect("an answer");
        assert_eq!((&answer[..length], sender), (&b"me"[..], datagrams.local_addr().expect("an address")));
        assert!(lock(&resolver.waiting).askers.is_empty());
    }

    #[test]
    fn few_wait_at_once() {
        let (resolver, host) = resolver();
        let reader =
            thread::spawn(move || (0..WAITING + 9).try_for_each(|_| Message::read(&mut &host).map(drop)));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
        for _ in 0..WAITING + 9 {
            resolver.ask(Asker::Datagram(nobody), vec![0; 500]).expect("asked");
        }
        reader.join().expect("no panic").expect("all came");
        assert_eq!(lock(&resolver.waiting).askers.len(), WAITING);
        assert!(!lock(&resolver.waiting).askers.contains_key(&9));
    }
}
