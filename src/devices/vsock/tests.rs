//! The device against a driver: real queues in guest memory, real sockets on the host.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rt_proto::{BEACON_PORT, GUEST_CID, HOST_CID};
use tempfile::TempDir;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::connection::BUF_ALLOC;
use super::packet::{Header, TYPE_STREAM, op, shutdown};
use super::{Error, Turn, VsockDevice};
use crate::hypervisor::vsock::receive_connection;

const SIZE: u16 = 64;
/// What Linux gives, about.
const RX_BUFFER: u32 = 3776;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Where a test's guest listens.
const PORT: u32 = 5000;

/// The driver's side of one queue, and its buffers: `SIZE` of 128 KiB each from `data` on.
struct Ring {
    base: u64,
    data: u64,
    queue: Queue,
    avail: u16,
    seen: u16,
}

impl Ring {
    fn new(base: u64, data: u64) -> Self {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(base as u32), None);
        queue.set_avail_ring_address(Some((base + 0x1000) as u32), None);
        queue.set_used_ring_address(Some((base + 0x2000) as u32), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        Self { base, data, queue, avail: 0, seen: 0 }
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.data + u64::from(slot) * 0x2_0000
    }

    fn describe(&self, mem: &GuestMemoryMmap, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(self.base + u64::from(index) * 16);
        mem.write_obj(RawDescriptor::from(descriptor), at).unwrap();
    }

    fn offer(&mut self, mem: &GuestMemoryMmap, head: u16) {
        let slot = u64::from(self.avail % SIZE);
        mem.write_obj(head, GuestAddress(self.base + 0x1004 + slot * 2)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        mem.write_obj(self.avail, GuestAddress(self.base + 0x1002)).unwrap();
    }

    /// The next used chain: head and length.
    fn used(&mut self, mem: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index: u16 = mem.read_obj(GuestAddress(self.base + 0x2002)).unwrap();
        if index == self.seen {
            return None;
        }
        let at = self.base + 0x2004 + u64::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        let head: u32 = mem.read_obj(GuestAddress(at)).unwrap();
        Some((head as u16, mem.read_obj(GuestAddress(at + 4)).unwrap()))
    }
}

/// A guest with its device.
struct Guest {
    mem: GuestMemoryMmap,
    device: VsockDevice,
    rx: Ring,
    tx: Ring,
    uplink: UnixStream,
    directory: TempDir,
}

impl Guest {
    /// With all receive buffers given to the device.
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        for slot in 0..SIZE {
            guest.give(slot);
        }
        guest
    }

    fn without_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let (uplink, below) = UnixStream::pair().unwrap();
        Self {
            mem: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x200_0000)]).unwrap(),
            device: VsockDevice::new(GUEST_CID.into(), listener, below).unwrap(),
            rx: Ring::new(0x1_0000, 0x10_0000),
            tx: Ring::new(0x2_0000, 0x100_0000),
            uplink,
            directory,
        }
    }

    fn give(&mut self, slot: u16) {
        let buffer = Descriptor::new(self.rx.buffer(slot), RX_BUFFER, WRITE, 0);
        self.rx.describe(&self.mem, slot, buffer);
        self.rx.offer(&self.mem, slot);
    }

    /// Sends one packet in a chain of `pieces` descriptors, and lets the device take it.
    fn send_in(&mut self, header: Header, data: &[u8], pieces: u16) {
        let start = self.tx.buffer(0);
        let bytes = [&header.to_bytes()[..], data].concat();
        self.mem.write_slice(&bytes, GuestAddress(start)).unwrap();
        let step = bytes.len() as u32 / u32::from(pieces);
        for piece in 0..pieces {
            let last = piece + 1 == pieces;
            let offset = u32::from(piece) * step;
            let len = if last { bytes.len() as u32 - offset } else { step };
            let (flags, next) = if last { (0, 0) } else { (NEXT, piece + 1) };
            let descriptor = Descriptor::new(start + u64::from(offset), len, flags, next);
            self.tx.describe(&self.mem, piece, descriptor);
        }
        self.tx.offer(&self.mem, 0);
        self.device.process_tx(&self.mem, &mut self.tx.queue).unwrap();
        assert_eq!(self.tx.used(&self.mem), Some((0, 0)));
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.send_in(header, data, 1);
    }

    /// All packets that the device has for the guest now; the buffers go back to the device.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.device.process_host_events().unwrap();
        let mut packets = Vec::new();
        loop {
            self.device.process_rx(&self.mem, &mut self.rx.queue).unwrap();
            let before = packets.len();
            while let Some((slot, len)) = self.rx.used(&self.mem) {
                let mut bytes = vec![0; len as usize];
                self.mem.read_slice(&mut bytes, GuestAddress(self.rx.buffer(slot))).unwrap();
                let data = bytes.split_off(Header::SIZE);
                let header = Header::from_bytes(&bytes.try_into().unwrap());
                assert_eq!(header.len as usize, data.len());
                packets.push((header, data));
                self.give(slot);
            }
            if packets.len() == before {
                return packets;
            }
        }
    }

    /// The next packets, waiting for the host's sockets as long as there are none.
    fn wait(&mut self) -> Vec<(Header, Vec<u8>)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let packets = self.receive();
            if !packets.is_empty() {
                return packets;
            }
            assert!(Instant::now() < deadline, "the device has nothing for the guest");
            std::thread::yield_now();
        }
    }

    fn only(&mut self) -> Header {
        let packets = self.wait();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].0
    }

    fn dial(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A connection from the host that the guest has accepted, with so much credit for the host.
    fn connection(&mut self, credit: u32) -> (UnixStream, Peer) {
        let mut stream = self.dial(PORT);
        let request = self.only();
        assert_eq!((request.op, request.dst_port, request.buf_alloc), (op::REQUEST, PORT, BUF_ALLOC));
        let peer = Peer::new(&request, credit);
        self.send(peer.packet(op::RESPONSE), &[]);
        let mut line = [0; 8];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK 5000\n");
        (stream, peer)
    }
}

/// What the guest's kernel keeps of a connection.
#[derive(Debug, Clone)]
struct Peer {
    host_port: u32,
    guest_port: u32,
    credit: u32,
    fwd_cnt: u32,
    sent: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
}

impl Peer {
    fn new(from_host: &Header, credit: u32) -> Self {
        Self {
            host_port: from_host.src_port,
            guest_port: from_host.dst_port,
            credit,
            fwd_cnt: 0,
            sent: 0,
            host_buf_alloc: from_host.buf_alloc,
            host_fwd_cnt: from_host.fwd_cnt,
        }
    }

    fn packet(&self, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.credit,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header { flags, ..self.packet(op::SHUTDOWN) }
    }

    fn data(&mut self, data: &[u8]) -> Header {
        self.sent = self.sent.wrapping_add(data.len() as u32);
        Header { len: data.len() as u32, ..self.packet(op::RW) }
    }

    fn learn(&mut self, header: &Header) {
        (self.host_buf_alloc, self.host_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    fn room(&self) -> usize {
        self.host_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.host_fwd_cnt)) as usize
    }
}

fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn ops(packets: &[(Header, Vec<u8>)]) -> Vec<(u16, u32)> {
    packets.iter().map(|(header, _)| (header.op, header.flags)).collect()
}

#[test]
fn a_connection_from_the_host_carries_bytes_and_half_closes() {
    let mut guest = Guest::new();
    let (mut stream, mut peer) = guest.connection(1 << 20);

    stream.write_all(b"to the guest").unwrap();
    let packets = guest.wait();
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (op::RW, &b"to the guest"[..]));

    for pieces in [1, 2, 5] {
        let header = peer.data(b"to the host");
        guest.send_in(header, b"to the host", pieces);
        let mut bytes = [0; 11];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to the host");
    }

    stream.shutdown(Shutdown::Write).unwrap();
    let header = guest.only();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SEND));
    let header = peer.data(b"still");
    guest.send(header, b"still");
    guest.send(peer.shutdown(shutdown::SEND), &[]);
    assert_eq!(read_to_end(&mut stream), b"still");
    // Both directions have ended: the guest is told, and answers as Linux does.
    let header = guest.only();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::BOTH));
    guest.send(peer.packet(op::RST), &[]);
    assert!(guest.receive().is_empty());
    // Gone: any further packet is a stray.
    guest.send(peer.packet(op::CREDIT_REQUEST), &[]);
    assert_eq!(guest.only().op, op::RST);
}

#[test]
fn the_guest_reaches_the_beacon_port_only() {
    let mut guest = Guest::new();
    let request = |port| Header {
        src_cid: GUEST_CID.into(),
        dst_cid: HOST_CID.into(),
        src_port: 77,
        dst_port: port,
        kind: TYPE_STREAM,
        op: op::REQUEST,
        buf_alloc: 1000,
        ..Header::default()
    };
    guest.send(request(BEACON_PORT + 1), &[]);
    let reset = guest.only();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, BEACON_PORT + 1, 77));

    guest.send(request(BEACON_PORT), &[]);
    let response = guest.only();
    assert_eq!(response.op, op::RESPONSE);
    let mut peer = Peer::new(&response, 1000);
    let mut stream = UnixStream::from(receive_connection(&guest.uplink).unwrap());
    let header = peer.data(b"beacon");
    guest.send(header, b"beacon");
    guest.send(peer.shutdown(shutdown::BOTH), &[]);
    assert_eq!(read_to_end(&mut stream), b"beacon");
    assert_eq!(guest.only().op, op::RST);
}

#[test]
fn many_megabytes_both_ways_at_once_arrive_whole() {
    const TOTAL: usize = 24 << 20;
    let to_guest = |at: usize| ((at * 7) >> 3) as u8;
    let to_host = |at: usize| ((at * 13) >> 2) as u8;
    let mut guest = Guest::new();
    let (stream, mut peer) = guest.connection(64 * 1024);
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), stream);
    let writing = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..TOTAL).map(to_guest).collect();
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reading = std::thread::spawn(move || {
        let bytes = read_to_end(&mut reader);
        assert_eq!(bytes.len(), TOTAL);
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == to_host(at)));
    });

    let (mut received, mut sent, mut ended) = (0, 0, false);
    let mut unread: VecDeque<usize> = VecDeque::new();
    while !(ended && sent == TOTAL && unread.is_empty()) {
        let packets = guest.receive();
        let idle = packets.is_empty();
        for (header, data) in packets {
            peer.learn(&header);
            match header.op {
                op::RW => {
                    assert!(data.iter().enumerate().all(|(i, byte)| *byte == to_guest(received + i)));
                    received += data.len();
                    unread.push_back(data.len());
                    assert!(received as u32 - peer.fwd_cnt <= peer.credit, "more than there is credit for");
                }
                op::SHUTDOWN => ended = true,
                op::CREDIT_UPDATE => {}
                other => panic!("unexpected op {other}"),
            }
        }
        // An application that reads now and then.
        if unread.len() > 8 || idle {
            peer.fwd_cnt += unread.drain(..).sum::<usize>() as u32;
            guest.send(peer.packet(op::CREDIT_UPDATE), &[]);
        }
        let count = peer.room().min(TOTAL - sent).min(30_000);
        if count > 0 {
            let data: Vec<u8> = (sent..sent + count).map(to_host).collect();
            let header = peer.data(&data);
            guest.send(header, &data);
            sent += count;
        }
    }
    assert_eq!(received, TOTAL);
    guest.send(peer.shutdown(shutdown::BOTH), &[]);
    writing.join().unwrap();
    while !reading.is_finished() {
        guest.receive();
    }
    reading.join().unwrap();
}

#[test]
fn nothing_is_read_that_the_guest_has_no_credit_for() {
    let mut guest = Guest::new();
    let (mut stream, mut peer) = guest.connection(10_000);
    stream.write_all(&[1; 30_000]).unwrap();
    let count = |packets: Vec<(Header, Vec<u8>)>| packets.iter().map(|(_, data)| data.len()).sum::<usize>();
    assert_eq!(count(guest.wait()), 10_000);
    assert!(guest.receive().is_empty());
    peer.fwd_cnt = 4000;
    guest.send(peer.packet(op::CREDIT_UPDATE), &[]);
    assert_eq!(count(guest.wait()), 4000);
    // A lie: more read than was sent. Taken for no credit at all, not for 4 GiB of it.
    peer.fwd_cnt = 20_000;
    guest.send(peer.packet(op::CREDIT_UPDATE), &[]);
    assert!(guest.receive().is_empty());
    peer.fwd_cnt = 14_000;
    guest.send(peer.packet(op::CREDIT_UPDATE), &[]);
    assert_eq!(count(guest.wait()), 10_000);
}

#[test]
fn a_host_that_does_not_read_stalls_nobody_else() {
    let mut guest = Guest::new();
    let (mut lazy, mut lazy_peer) = guest.connection(0);
    let mut total = 0;
    loop {
        let size = lazy_peer.room().min(60_000);
        if size == 0 {
            break;
        }
        let header = lazy_peer.data(&vec![7; size]);
        guest.send(header, &vec![7; size]);
        total += size;
        guest.receive().iter().for_each(|(header, _)| lazy_peer.learn(header));
    }
    assert!(total >= BUF_ALLOC as usize);

    let (mut other, mut peer) = guest.connection(1000);
    let header = peer.data(b"hello");
    guest.send(header, b"hello");
    let mut bytes = [0; 5];
    other.read_exact(&mut bytes).unwrap();

    // More than its credit ends a connection.
    let header = lazy_peer.data(&[7]);
    guest.send(header, &[7]);
    assert_eq!(guest.only().op, op::RST);
    let mut bytes = Vec::new();
    let _ = lazy.read_to_end(&mut bytes);
    assert!(bytes.len() <= total);
}

#[test]
fn what_a_guest_sent_before_it_went_reaches_a_slow_host() {
    for last in [op::RST, op::SHUTDOWN] {
        let mut guest = Guest::new();
        let (mut stream, mut peer) = guest.connection(0);
        let mut total = 0;
        while peer.room() > 0 {
            let data = vec![3; peer.room().min(60_000)];
            let header = peer.data(&data);
            guest.send(header, &data);
            total += data.len();
            guest.receive().iter().for_each(|(header, _)| peer.learn(header));
        }
        guest.send(Header { flags: shutdown::BOTH, ..peer.packet(last) }, &[]);
        assert!(guest.receive().is_empty(), "the answer waits until all is delivered");
        let reader = std::thread::spawn(move || read_to_end(&mut stream).len());
        let mut answers = Vec::new();
        while !reader.is_finished() {
            answers.extend(guest.receive());
        }
        answers.extend(guest.receive());
        assert_eq!(reader.join().unwrap(), total);
        let expected = if last == op::SHUTDOWN { vec![(op::RST, 0)] } else { vec![] };
        assert_eq!(ops(&answers), expected);
    }
}

#[test]
fn a_host_that_goes_is_told_after_its_last_bytes() {
    let mut guest = Guest::new();
    let (mut stream, mut peer) = guest.connection(1 << 20);
    stream.write_all(&[9; 5000]).unwrap();
    drop(stream);
    let packets = guest.wait();
    assert_eq!(packets.iter().map(|(_, data)| data.len()).sum::<usize>(), 5000);
    assert_eq!(*ops(&packets).last().unwrap(), (op::SHUTDOWN, shutdown::BOTH));
    // Data to nobody.
    let header = peer.data(b"?");
    guest.send(header, b"?");
    assert_eq!(guest.only().op, op::RST);
}

/// So the guest need not wait for a host that is slow to see that it was accepted.
#[test]
fn bytes_behind_a_greeting_are_the_streams_first() {
    let mut guest = Guest::new();
    let mut stream = UnixStream::connect(guest.directory.path().join("vsock")).unwrap();
    let mut said = format!("CONNECT {PORT}\n").into_bytes();
    said.extend([b'\n'; 20]);
    stream.write_all(&said).unwrap();
    let request = guest.only();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
    guest.send(Peer::new(&request, 4096).packet(op::RESPONSE), &[]);
    let packets = guest.wait();
    assert_eq!((packets[0].0.op, packets[0].1.as_slice()), (op::RW, &[b'\n'; 20][..]));
}

#[test]
fn a_refused_or_abandoned_request_ends() {
    let mut guest = Guest::new();
    let mut stream = guest.dial(PORT);
    let peer = Peer::new(&guest.only(), 0);
    guest.send(peer.packet(op::RST), &[]);
    assert_eq!(read_to_end(&mut stream), b"");

    drop(guest.dial(PORT));
    let packets = guest.wait();
    let all = [packets, guest.receive()].concat();
    assert_eq!(ops(&all).last(), Some(&(op::RST, 0)));

    for bad in ["CONNECT x\n", "GET / HTTP/1.1\r\n\r\n", "CONNECT 111111111111111111111111111111"] {
        let mut stream = UnixStream::connect(guest.directory.path().join("vsock")).unwrap();
        stream.write_all(bad.as_bytes()).unwrap();
        assert!(guest.receive().is_empty());
        let _ = stream.read(&mut [0]).map(|count| assert_eq!(count, 0));
    }
}

#[test]
fn at_most_1023_connections_and_lingering_ones_make_room() {
    let mut guest = Guest::new();
    let (stream, _) = guest.connection(1000);
    let waiting: Vec<UnixStream> = (1..1023)
        .map(|_| {
            let stream = UnixStream::connect(guest.directory.path().join("vsock")).unwrap();
            guest.device.process_host_events().unwrap();
            stream
        })
        .collect();
    let mut refused = guest.dial(PORT);
    assert!(guest.receive().is_empty());
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    drop(stream);
    assert_eq!(ops(&guest.wait()), [(op::SHUTDOWN, shutdown::BOTH)]);
    let _accepted = guest.dial(PORT);
    assert_eq!(ops(&guest.wait()), [(op::RST, 0), (op::REQUEST, 0)]);
    drop(waiting);
}

#[test]
fn packets_wait_for_buffers_of_the_driver() {
    let mut guest = Guest::without_buffers();
    let _stream = guest.dial(PORT);
    assert!(guest.receive().is_empty());
    guest.give(0);
    assert_eq!(guest.only().op, op::REQUEST);
}

#[test]
fn impossible_rings_are_an_error() {
    let mut guest = Guest::new();
    guest.mem.write_obj(SIZE + 5, GuestAddress(guest.tx.base + 0x1002)).unwrap();
    let result = guest.device.process_tx(&guest.mem, &mut guest.tx.queue);
    assert!(matches!(result, Err(Error::Queue(_))));
    let mut guest = Guest::without_buffers();
    let _stream = guest.dial(PORT);
    guest.device.process_host_events().unwrap();
    guest.rx.offer(&guest.mem, SIZE + 1);
    let result = guest.device.process_rx(&guest.mem, &mut guest.rx.queue);
    assert!(matches!(result, Err(Error::Queue(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of packets, sound or not: no panic, no more memory than there is credit for, and the next
    /// connection works.
    #[test]
    fn hostile_packets(packets in proptest::collection::vec(
        (0..9_u16, 0..3_u32, 0..5_u32, any::<u32>(), 0..4_u32, prop_oneof![Just(0_u32), Just(4000), any::<u32>()], 0..5000_usize),
        1..60,
    )) {
        let mut guest = Guest::new();
        let (_stream, peer) = guest.connection(5000);
        for (op, cid, port, credit, flags, len, size) in packets {
            let header = Header {
                src_cid: u64::from(GUEST_CID + cid / 2),
                dst_cid: u64::from(HOST_CID),
                src_port: [PORT, PORT, 77, 78, 0][port as usize],
                dst_port: [peer.host_port, BEACON_PORT, peer.host_port, BEACON_PORT, 0][port as usize],
                len,
                kind: if credit % 16 == 0 { 2 } else { TYPE_STREAM },
                op,
                flags,
                buf_alloc: credit,
                fwd_cnt: credit.rotate_left(7),
            };
            guest.send(header, &vec![1; size]);
            guest.receive();
        }
        drop(_stream);
        guest.receive();
        guest.connection(1000);
    }

    /// Any descriptor table: no panic, and no endless loop.
    #[test]
    fn hostile_descriptors(
        descriptors in proptest::collection::vec((prop_oneof![0..0x300_0000_u64, any::<u64>()], any::<u32>(), 0..8_u16, 0..70_u16), 1..64),
        heads in proptest::collection::vec(0..70_u16, 1..60),
    ) {
        let mut guest = Guest::without_buffers();
        let mut stream = guest.dial(PORT);
        stream.write_all(&[1; 1000]).unwrap();
        guest.device.process_host_events().unwrap();
        for ring in [&mut guest.rx, &mut guest.tx] {
            for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
                ring.describe(&guest.mem, index as u16, Descriptor::new(*address, *len, *flags, *next));
            }
            for head in &heads {
                ring.offer(&guest.mem, *head);
            }
        }
        let _ = guest.device.process_tx(&guest.mem, &mut guest.tx.queue);
        let _ = guest.device.process_rx(&guest.mem, &mut guest.rx.queue);
    }
}

/// With a driver that makes chains available as fast as they are used, the device would otherwise have no end.
#[test]
fn a_turn_has_an_end() {
    let mut guest = Guest::without_buffers();
    let _stream = guest.dial(PORT);
    guest.device.process_host_events().unwrap();
    let mut bases = Vec::new();
    for ring in [&mut guest.rx, &mut guest.tx] {
        // No buffer of any use to the device: empty, and no packet.
        ring.describe(&guest.mem, 0, Descriptor::new(0x8_0000, 0, WRITE, 0));
        (0..SIZE).for_each(|_| ring.offer(&guest.mem, 0));
        bases.push(ring.base);
    }
    let (mem, stop) = (guest.mem.clone(), Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&stop);
    let driver = std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            for base in &bases {
                let used: u16 = mem.read_obj(GuestAddress(base + 0x2002)).unwrap();
                mem.write_obj(used.wrapping_add(SIZE), GuestAddress(base + 0x1002)).unwrap();
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut until_full = |process: &mut dyn FnMut(&mut Guest) -> Turn| {
        while !process(&mut guest).more {
            assert!(Instant::now() < deadline, "the driver has no turn itself");
        }
    };
    until_full(&mut |guest| guest.device.process_tx(&guest.mem, &mut guest.tx.queue).unwrap());
    until_full(&mut |guest| guest.device.process_rx(&guest.mem, &mut guest.rx.queue).unwrap());
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}
