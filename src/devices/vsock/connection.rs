//! One connection: the state machine between a host socket and the guest's driver.
//!
//! ```text
//!   host connects          guest connects
//!        |                        |
//!    Requested --RESPONSE--+      |
//!        |                 v      v
//!   RST, host gone        Open <--+
//!        |                 |  \
//!        |    host closed, |   \ guest shut down both ways, or RST
//!        |    all told     |    \
//!        |                 v     v
//!        |          Lingering   Draining: what the guest sent last still goes to the host
//!        v                 |     |
//!       end <--------------+-----+
//! ```
//!
//! **Credit**, virtio 1.2 §5.10.6.3, both ways at once and independently. Towards the host: the guest may have
//! [`BUF_ALLOC`] bytes under way that the host's socket has not taken; what does not fit into the socket at once waits
//! in `backlog`, which credit bounds, so a slow host never keeps the transmit queue from being consumed. Towards the guest: nothing
//! is read from the host's socket that the guest has no credit for; there is no buffer in that direction at all.
//!
//! **Half-close**: the host's end of file becomes SHUTDOWN with SEND, its refusal to read SHUTDOWN with RCV;
//! the guest's SHUTDOWN becomes shutdown(2), once the backlog is flushed.
//!
//! The machine asks for nothing: it tells what it would send ([`Connection::next`]) whenever the muxer has room for a packet.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vm_memory::GuestMemory;

use super::packet::{Buffers, Header, MAX_DATA, op, shutdown};

/// What the guest may send ahead of the host's reading; the bound of a connection's memory.
pub const BUF_ALLOC: u32 = 256 * 1024;
/// The guest is told of freed room once it is this much, unless a packet goes out anyway.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Requested,
    Open,
    Lingering,
    Draining { answer: bool },
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest is to be sent RST.
    Reset,
    /// Both sides know.
    Silent,
}

/// What a connection has for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// A packet without data: op and flags.
    Control(u16, u32),
    /// Up to so many bytes, to be read from the socket; what came of it is told to [`Connection::data_read`].
    Data(usize),
}

/// See the module's head.
#[derive(Debug)]
pub struct Connection {
    state: State,
    stream: UnixStream,

    backlog: Backlog,
    /// Bytes that came from the guest, modulo 2^32 as on the wire; likewise the next two.
    received: u32,
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    announced: u32,
    /// SHUTDOWN flags that came from the guest.
    guest_flags: u32,
    /// The guest asked for our credit, or needs to know.
    credit_wanted: bool,

    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// The host's socket may have something to read.
    readable: bool,
    /// Both directions of the host's socket have ended.
    hung_up: bool,
    /// SHUTDOWN flags due to the guest, and those it was sent.
    host_flags: u32,
    told_flags: u32,
    /// REQUEST or RESPONSE, still to be sent.
    opening: Option<u16>,
}

impl Connection {
    /// The host wants to talk to the guest.
    pub fn requested(stream: UnixStream) -> Self {
        Self::new(State::Requested, op::REQUEST, stream)
    }

    /// The guest sent `request` and the host accepted.
    pub fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(State::Open, op::RESPONSE, stream);
        connection.learn_credit(request);
        connection
    }

    fn new(state: State, opening: u16, stream: UnixStream) -> Self {
        Self {
            state,
            stream,
            backlog: Backlog::default(),
            received: 0,
            forwarded: 0,
            announced: 0,
            guest_flags: 0,
            credit_wanted: false,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            readable: true,
            hung_up: false,
            host_flags: 0,
            told_flags: 0,
            opening: Some(opening),
        }
    }

    /// The host's socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether the host's socket is to be watched for room.
    pub fn wants_room(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Nothing is left to do but to wait for the guest to close its end.
    pub fn is_lingering(&self) -> bool {
        self.state == State::Lingering
    }

    /// Fills in what each packet to the guest says about credit.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded;
        self.announced = self.forwarded;
        self.credit_wanted = false;
    }

    /// The next packet for the guest; `Control` counts as sent.
    pub fn next(&mut self) -> Option<Outgoing> {
        if let Some(op) = self.opening.take() {
            return Some(Outgoing::Control(op, 0));
        }
        if self.state != State::Open {
            return None;
        }
        if self.readable && self.guest_credit() > 0 {
            return Some(Outgoing::Data(self.guest_credit().min(MAX_DATA)));
        }
        if self.host_flags != self.told_flags {
            self.told_flags = self.host_flags;
            if self.told_flags == shutdown::BOTH {
                self.state = State::Lingering;
            }
            return Some(Outgoing::Control(op::SHUTDOWN, self.told_flags));
        }
        if self.credit_wanted || self.forwarded.wrapping_sub(self.announced) >= CREDIT_STEP {
            return Some(Outgoing::Control(op::CREDIT_UPDATE, 0));
        }
        None
    }

    /// What reading the socket for `Outgoing::Data` gave. True when bytes were read, which are then as good as sent.
    pub fn data_read(&mut self, result: io::Result<usize>) -> bool {
        match result {
            Ok(0) => self.host_sends_no_more(),
            Ok(count) => {
                self.sent = self.sent.wrapping_add(count as u32);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.host_is_gone(),
        }
        false
    }

    /// epoll reported the host's socket.
    pub fn socket_event(&mut self, events: nix::sys::epoll::EpollFlags) {
        use nix::sys::epoll::EpollFlags as E;
        if events.intersects(E::EPOLLIN | E::EPOLLRDHUP | E::EPOLLHUP | E::EPOLLERR) {
            self.readable = self.host_flags & shutdown::SEND == 0;
        }
        self.hung_up |= events.intersects(E::EPOLLHUP | E::EPOLLERR);
        self.flush();
    }

    /// A packet from the guest. Its data, when it has any, is `header.len` bytes of `buffers`.
    pub fn receive<M: GuestMemory>(&mut self, header: &Header, buffers: &Buffers<'_, M>) -> Option<End> {
        self.learn_credit(header);
        match (self.state, header.op) {
            (State::Requested | State::Lingering, op::RST) => return Some(End::Silent),
            (State::Open | State::Draining { .. }, op::RST) => self.state = State::Draining { answer: false },
            (State::Requested, op::RESPONSE) => {
                self.state = State::Open;
                // The socket's buffer is empty: this is its first line.
                if writeln!(self.stream, "OK {}", header.src_port).is_err() {
                    self.host_is_gone();
                }
            }
            (State::Open, op::RW) => return self.receive_data(header.len, buffers),
            (State::Open, op::CREDIT_UPDATE) => {}
            (State::Open, op::CREDIT_REQUEST) => self.credit_wanted = true,
            (State::Open | State::Lingering, op::SHUTDOWN) => self.guest_shuts_down(header.flags),
            (State::Lingering | State::Draining { .. }, op::CREDIT_UPDATE | op::CREDIT_REQUEST) => {}
            _ => return Some(End::Reset),
        }
        None
    }

    /// Whether the connection has come to its end.
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Requested if self.hung_up => Some(End::Reset),
            State::Draining { answer } if self.backlog.is_empty() => {
                Some(if answer { End::Reset } else { End::Silent })
            }
            _ => None,
        }
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
    }

    /// Bytes that the guest has room for. A guest that claims to have read more than it was sent gets none.
    fn guest_credit(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(under_way) as usize
    }

    fn receive_data<M: GuestMemory>(&mut self, len: u32, buffers: &Buffers<'_, M>) -> Option<End> {
        let under_way = self.received.wrapping_sub(self.forwarded);
        if len > BUF_ALLOC - under_way || self.guest_flags & shutdown::SEND != 0 {
            return Some(End::Reset);
        }
        self.received = self.received.wrapping_add(len);
        let mut passed = 0;
        if self.host_flags & shutdown::RCV != 0 {
            self.forwarded = self.received;
            return None;
        }
        if self.backlog.is_empty() && len > 0 {
            match buffers.send_data(0, len as usize, &self.stream) {
                Ok(count) => passed = count,
                Err(error) if is_full(&error) => {}
                Err(_) => {
                    self.host_reads_no_more();
                    return None;
                }
            }
            self.forwarded = self.forwarded.wrapping_add(passed as u32);
        }
        self.backlog.push(|bytes| buffers.append_data(passed, len as usize - passed, bytes));
        None
    }

    /// Passes on what waits for the host, and then what was to follow it.
    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match (&self.stream).write(self.backlog.bytes()) {
                Ok(count) => {
                    self.backlog.consume(count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if is_full(&error) => break,
                Err(_) => self.host_reads_no_more(),
            }
        }
        if self.backlog.is_empty() {
            if self.guest_flags & shutdown::SEND != 0 {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            if self.hung_up {
                self.host_reads_no_more();
            }
        }
    }

    fn guest_shuts_down(&mut self, flags: u32) {
        self.guest_flags |= flags & shutdown::BOTH;
        if self.guest_flags & shutdown::RCV != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
            self.host_sends_no_more();
        }
        if self.guest_flags == shutdown::BOTH {
            self.state = State::Draining { answer: true };
        }
        self.flush();
    }

    fn host_sends_no_more(&mut self) {
        self.readable = false;
        self.host_flags |= shutdown::SEND;
    }

    fn host_reads_no_more(&mut self) {
        self.backlog.clear();
        self.forwarded = self.received;
        self.host_flags |= shutdown::RCV;
    }

    fn host_is_gone(&mut self) {
        self.hung_up = true;
        self.host_sends_no_more();
        self.host_reads_no_more();
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Bytes from the guest that the host's socket had no room for. Holds memory only while it holds bytes.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// So many of `bytes` are gone already.
    start: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn push(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        // Moved to the front at most once for each half a buffer that went out.
        if self.start >= BUF_ALLOC as usize / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        append(&mut self.bytes);
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
