//! The muxer: owns all connections and the host's sockets, knows which packet belongs to whom and whose turn it is.
//!
//! **From the host** come connections to the listener. Each first says `CONNECT PORT\n` (a *greeting*, not yet a
//! connection), gets a host port of its own, and is then requested from the guest. **From the guest** come requests to the
//! beacon port only: the muxer makes a socket pair, keeps one end, and sends the other to rt's parent process through
//! the uplink. Whatever else a guest sends gets RST, as much as there is room for; RSTs beyond that are dropped.
//!
//! **To the guest** nothing is queued but intentions: `ready` holds keys of connections that may have something to
//! say, once each, in turn; each is asked ([`Connection::next`]) when the driver has a buffer. So memory is bounded by the
//! number of connections, and none of them can keep the others from their turn.
//!
//! **Sockets** are watched by one epoll descriptor, edge-triggered: an event only sets flags in a connection, reading happens when the
//! guest has room and goes on until the socket says that it is empty. Room for writing is watched only while
//! a backlog waits for it.
//!
//! A connection's key, which is also its epoll token, is its host port and its guest port. Host ports for
//! connections from the host count up from 2^30, so the two kinds cannot meet.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use rt_proto::{BEACON_PORT, HOST_CID};
use vm_memory::GuestMemory;

use super::Error;
use super::connection::{Connection, End, Outgoing};
use super::packet::{Buffers, Header, TYPE_STREAM, op};

/// Connections and greetings together, Firecracker's number.
const MAX_CONNECTIONS: usize = 1023;
/// Of these, started by the guest and not yet ended.
const MAX_FROM_GUEST: usize = 16;
/// RSTs that wait for a buffer of the driver.
const MAX_RESETS: usize = 128;
/// The longest greeting is `CONNECT 4294967295\n`.
const MAX_GREETING: usize = 32;
const FIRST_HOST_PORT: u32 = 1 << 30;
const LISTENER: u64 = u64::MAX;

const READING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// Host port and guest port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    host_port: u32,
    guest_port: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }

    fn from_token(token: u64) -> Self {
        Self { host_port: (token >> 32) as u32, guest_port: token as u32 }
    }
}

/// What is to go into the driver's next buffer.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    /// Complete: a header.
    Packet(Header),
    /// Up to so many bytes of this connection's socket.
    Data(Key, usize),
}

/// See the module's head.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    epoll: Epoll,
    listener: UnixListener,
    uplink: UnixStream,
    greetings: HashMap<Key, UnixStream>,
    connections: HashMap<Key, Watched>,
    ready: VecDeque<Key>,
    resets: VecDeque<Header>,
    next_host_port: u32,
    /// Set when the guest's first connection has been passed up.
    greeted: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watched {
    connection: Connection,
    /// Its key is in `ready`.
    ready: bool,
    /// epoll watches for room in the socket.
    for_room: bool,
}

impl Muxer {
    /// # Errors
    /// [`Error::Watch`]
    pub fn new(guest_cid: u64, listener: UnixListener, uplink: UnixStream) -> Result<Self, Error> {
        let new = || -> io::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            listener.set_nonblocking(true)?;
            epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, LISTENER))?;
            Ok(Self {
                guest_cid,
                epoll,
                listener,
                uplink,
                greetings: HashMap::new(),
                connections: HashMap::new(),
                ready: VecDeque::new(),
                resets: VecDeque::new(),
                next_host_port: FIRST_HOST_PORT,
                greeted: Arc::default(),
            })
        };
        new().map_err(Error::Watch)
    }

    /// Whether the guest has made a connection.
    pub fn greeted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.greeted)
    }

    /// Readable when [`Self::process_host_events`] has something to do.
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Forgets all connections; their sockets close.
    pub fn reset(&mut self) {
        self.greetings.clear();
        self.connections.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Takes up what the host's sockets report.
    ///
    /// # Errors
    /// [`Error::Watch`]
    pub fn process_host_events(&mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(|errno| Error::Watch(errno.into()))?,
            };
            for event in &events[..count] {
                match Key::from_token(event.data()) {
                    _ if event.data() == LISTENER => self.accept(),
                    key if self.greetings.contains_key(&key) => self.read_greeting(key),
                    key => self.with(key, |connection| {
                        connection.socket_event(event.events());
                        None
                    }),
                }
            }
            if count < events.len() {
                return Ok(());
            }
        }
    }

    /// Takes one packet of the guest.
    pub fn receive<M: GuestMemory>(&mut self, buffers: &Buffers<'_, M>) {
        let header = buffers.header();
        if header.src_cid != self.guest_cid || header.dst_cid != u64::from(HOST_CID) {
            return;
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let sound =
            header.kind == TYPE_STREAM && (header.op != op::RW || header.len as usize <= buffers.data_len());
        if !sound {
            self.connections.remove(&key);
            self.send_reset(&header);
        } else if self.connections.contains_key(&key) {
            self.with(key, |connection| connection.receive(&header, buffers));
        } else if header.op == op::REQUEST && header.dst_port == BEACON_PORT {
            self.pass_up(key, &header);
        } else {
            self.send_reset(&header);
        }
    }

    /// What the guest gets next, if anything. A packet counts as sent; data is then read by [`Self::read`].
    pub fn next(&mut self) -> Option<Next> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(Next::Packet(reset));
        }
        while let Some(&key) = self.ready.front() {
            let watched = self.connections.get_mut(&key);
            match watched.and_then(|watched| Some((watched.connection.next()?, watched))) {
                Some((Outgoing::Data(limit), _)) => return Some(Next::Data(key, limit)),
                Some((Outgoing::Control(op, flags), watched)) => {
                    let mut header = Header { op, flags, ..header(self.guest_cid, key) };
                    watched.connection.stamp(&mut header);
                    return Some(Next::Packet(header));
                }
                None => {
                    self.ready.pop_front();
                    if let Some(watched) = self.connections.get_mut(&key) {
                        watched.ready = false;
                    }
                }
            }
        }
        None
    }

    /// Lets `read` read the connection's socket; gives the count of bytes that it read and the header of packets that carry them, `len` not
    /// yet filled in. It is then another connection's turn.
    pub fn read(
        &mut self,
        key: Key,
        read: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> (usize, Header) {
        let mut header = Header { op: op::RW, ..header(self.guest_cid, key) };
        let Some(watched) = self.connections.get_mut(&key) else { return (0, header) };
        let result = read(watched.connection.socket());
        let count = result.as_ref().map_or(0, |count| *count);
        if watched.connection.data_read(result) {
            watched.connection.stamp(&mut header);
            self.ready.rotate_left(1);
        }
        (count, header)
    }

    /// Lets the connection change, then does what follows from it.
    fn with(&mut self, key: Key, change: impl FnOnce(&mut Connection) -> Option<End>) {
        let Some(watched) = self.connections.get_mut(&key) else { return };
        let end = change(&mut watched.connection).or_else(|| watched.connection.end());
        if let Some(end) = end {
            self.connections.remove(&key);
            if end == End::Reset {
                self.queue_reset(Header { op: op::RST, ..header(self.guest_cid, key) });
            }
            return;
        }
        if !watched.ready {
            watched.ready = true;
            self.ready.push_back(key);
        }
        let for_room = watched.connection.wants_room();
        if for_room != watched.for_room {
            watched.for_room = for_room;
            let flags = if for_room { READING | EpollFlags::EPOLLOUT } else { READING };
            let _ = self.epoll.modify(watched.connection.socket(), &mut EpollEvent::new(flags, key.token()));
        }
    }

    /// Answers `packet` by RST; RST itself is not answered.
    fn send_reset(&mut self, packet: &Header) {
        if packet.op != op::RST {
            self.queue_reset(packet.reset());
        }
    }

    fn queue_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    fn add(&mut self, key: Key, connection: Connection) {
        self.connections.insert(key, Watched { connection, ready: true, for_room: false });
        self.ready.push_back(key);
    }

    /// Takes all connections that wait at the listener.
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() + self.greetings.len() >= MAX_CONNECTIONS && !self.evict() {
                continue;
            }
            let key = Key { host_port: self.host_port(), guest_port: 0 };
            let watch = || -> io::Result<()> {
                stream.set_nonblocking(true)?;
                Ok(self.epoll.add(&stream, EpollEvent::new(READING, key.token()))?)
            };
            if watch().is_ok() {
                self.greetings.insert(key, stream);
                // Most say it at once.
                self.read_greeting(key);
            }
        }
    }

    /// Makes room by ending a connection that only waits for the guest to close its end.
    fn evict(&mut self) -> bool {
        let lingering = self.connections.iter().find(|(_, watched)| watched.connection.is_lingering());
        let Some((&key, _)) = lingering else { return false };
        self.with(key, |_| Some(End::Reset));
        true
    }

    /// A host port that no connection uses: there are 2^30 and at most 1023 connections.
    fn host_port(&mut self) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = FIRST_HOST_PORT | port.wrapping_add(1) & (FIRST_HOST_PORT - 1);
            let taken = |key: &Key| key.host_port == port;
            if !self.connections.keys().any(taken) && !self.greetings.keys().any(taken) {
                return port;
            }
        }
    }

    /// Reads `CONNECT PORT\n` if it is there in whole, and not a byte more.
    fn read_greeting(&mut self, key: Key) {
        let Some(stream) = self.greetings.get_mut(&key) else { return };
        let mut bytes = [0; MAX_GREETING];
        let peeked = recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK).unwrap_or_else(|errno| {
            // As many as there could be: an error is as good as a bad greeting.
            if errno == nix::errno::Errno::EAGAIN { usize::MAX } else { 0 }
        });
        if peeked == usize::MAX {
            return;
        }
        let line = bytes[..peeked].iter().position(|byte| *byte == b'\n');
        if line.is_none() && (1..MAX_GREETING).contains(&peeked) {
            return;
        }
        let Some(mut stream) = self.greetings.remove(&key) else { return };
        let Some(length) = line else { return };
        let port = greeted_port(&bytes[..length]);
        let Some(guest_port) = port else { return };
        let key = Key { guest_port, ..key };
        let mut begin = |epoll: &Epoll| -> io::Result<()> {
            stream.read_exact(&mut bytes[..=length])?;
            Ok(epoll.modify(&stream, &mut EpollEvent::new(READING, key.token()))?)
        };
        if begin(&self.epoll).is_ok() {
            self.add(key, Connection::requested(stream));
        }
    }

    /// Hands the guest's connection to the parent process.
    fn pass_up(&mut self, key: Key, request: &Header) {
        let from_guest = self.connections.keys().filter(|key| key.host_port == BEACON_PORT).count();
        let pass = || -> io::Result<UnixStream> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            self.epoll.add(&ours, EpollEvent::new(READING, key.token()))?;
            let fds = [theirs.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(self.uplink.as_raw_fd(), &[IoSlice::new(&[0])], &rights, flags, None)?;
            Ok(ours)
        };
        if from_guest < MAX_FROM_GUEST
            && self.connections.len() + self.greetings.len() < MAX_CONNECTIONS
            && let Ok(stream) = pass()
        {
            self.add(key, Connection::accepted(stream, request));
            self.greeted.store(true, Ordering::Relaxed);
        } else {
            self.send_reset(request);
        }
    }
}

/// A packet from the host to the guest on this connection.
fn header(guest_cid: u64, key: Key) -> Header {
    Header {
        src_cid: u64::from(HOST_CID),
        dst_cid: guest_cid,
        src_port: key.host_port,
        dst_port: key.guest_port,
        kind: TYPE_STREAM,
        ..Header::default()
    }
}

/// Port 0 is a greeting's place-holder, and no driver listens there.
fn greeted_port(line: &[u8]) -> Option<u32> {
    let port = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    port.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::greeted_port;

    #[test]
    fn greetings() {
        assert_eq!(greeted_port(b"CONNECT 1024"), Some(1024));
        assert_eq!(greeted_port(b"CONNECT 4294967295"), Some(u32::MAX));
        for bad in [
            "CONNECT 0",
            "CONNECT",
            "CONNECT ",
            "CONNECT 4294967296",
            "CONNECT -1",
            "connect 1",
            "CONNECT 1 ",
        ] {
            assert_eq!(greeted_port(bad.as_bytes()), None, "{bad}");
        }
    }
}
