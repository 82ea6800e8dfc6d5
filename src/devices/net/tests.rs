//! Frames between a driver's queues and a socket that keeps their boundaries, as a TAP device does.

use std::io::{Read, Write};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use virtio_queue::Queue;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::{ActiveQueue, EventLoop, Interrupt};
use crate::sys::tun::VNET_HEADER;

const SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const RX: usize = 0;
const TX: usize = 1;

struct Driver {
    frames: Frames,
    context: ActivationContext,
    wire: File,
    offered: [u16; 2],
}

fn queue(index: u64) -> Queue {
    let base = 0x1_0000 + index * 0x1_0000;
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(base as u32), None);
    queue.set_avail_ring_address(Some(base as u32 + 0x1000), None);
    queue.set_used_ring_address(Some(base as u32 + 0x2000), None);
    queue.set_ready(true);
    queue
}

fn base(queue: usize) -> u64 {
    0x1_0000 + queue as u64 * 0x1_0000
}

impl Driver {
    fn new() -> Self {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (tap, wire) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let eventfd = || Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap());
        let context = ActivationContext {
            memory: Memory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap(),
            features: 1 << VIRTIO_NET_F_MRG_RXBUF,
            queues: (0..2)
                .map(|index| ActiveQueue {
                    queue: queue(index),
                    kick: eventfd(),
                    interrupt: Interrupt(eventfd()),
                })
                .collect(),
            events: EventLoop::new().unwrap().events(0),
        };
        let mut frames = Frames::new(&[File::from(tap)]).unwrap();
        frames.start(0, &context).unwrap();
        Self { frames, context, wire: wire.into(), offered: [0; 2] }
    }

    fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(base(queue) + u64::from(index) * 16);
        self.context.memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let ring = base(queue) + 0x1000;
        let slot = u64::from(self.offered[queue] % SIZE);
        self.context.memory.write_obj(head, GuestAddress(ring + 4 + slot * 2)).unwrap();
        self.offered[queue] += 1;
        self.context.memory.write_obj(self.offered[queue], GuestAddress(ring + 2)).unwrap();
    }

    /// Descriptor `index` is a buffer of its own, at `buffer(index)`.
    fn give(&mut self, index: u16, length: u32) {
        self.describe(RX, index, Descriptor::new(buffer(index), length, WRITE, 0));
        self.offer(RX, index);
    }

    fn used(&self, queue: usize) -> Vec<u32> {
        let ring = base(queue) + 0x2000;
        let count: u16 = self.context.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let length =
            |slot| self.context.memory.read_obj(GuestAddress(ring + 8 + u64::from(slot) * 8)).unwrap();
        (0..count).map(length).collect()
    }

    fn process(&mut self, source: usize) -> Result<(), Error> {
        self.frames.process(source as u32, &mut self.context)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.context.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn buffer(index: u16) -> u64 {
    0x8_0000 + u64::from(index) * 0x1000
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend((0..length).map(|byte| byte as u8));
    frame
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_takes() {
    let mut driver = Driver::new();
    (0..3).for_each(|index| driver.give(index, 2048));
    driver.wire.write_all(&frame(3000)).unwrap();
    driver.process(RX).unwrap();
    assert_eq!(driver.used(RX), [2048, (3000 + VNET_HEADER - 2048) as u32]);
    let header = driver.bytes(buffer(0), VNET_HEADER);
    assert_eq!(header[10..], [2, 0]);
    let all = [driver.bytes(buffer(0), 2048), driver.bytes(buffer(1), 964)].concat();
    assert_eq!(all[VNET_HEADER..], frame(3000)[VNET_HEADER..]);
}

#[test]
fn a_frame_waits_for_room() {
    let mut driver = Driver::new();
    driver.give(0, 1000);
    for _ in 0..2 {
        driver.wire.write_all(&frame(1500)).unwrap();
    }
    driver.process(RX).unwrap();
    assert!(driver.used(RX).is_empty());
    driver.give(1, 1000);
    driver.process(RX).unwrap();
    assert_eq!(driver.used(RX), [1000, 512]);
    driver.give(2, 4000);
    driver.process(RX).unwrap();
    assert_eq!(driver.used(RX), [1000, 512, 1512]);
    assert_eq!(driver.bytes(buffer(2) + 10, 2), [1, 0]);
}

/// §2.7.10: a driver kicks when it passes the number that the device names, and by then it has passed those of too little room.
#[test]
fn who_waits_for_room_is_kicked_for_the_next_buffer() {
    let mut driver = Driver::new();
    driver.context.queues[RX].queue.set_event_idx(true);
    driver.wire.write_all(&frame(3000)).unwrap();
    for index in 0..2 {
        driver.give(index, 1000);
        driver.process(RX).unwrap();
        let named = GuestAddress(base(RX) + 0x2000 + 4 + 8 * u64::from(SIZE));
        let named: u16 = driver.context.memory.read_obj(named).unwrap();
        assert_eq!(named, index + 1);
    }
    driver.give(2, 4000);
    driver.process(RX).unwrap();
    assert_eq!(driver.used(RX), [1000, 1000, 1012]);
}

#[test]
fn a_driver_that_wants_one_piece_has_room_for_it_or_fails() {
    let mut driver = Driver::new();
    driver.context.features = 0;
    (0..2).for_each(|index| driver.give(index, 1000));
    driver.wire.write_all(&frame(900)).unwrap();
    driver.process(RX).unwrap();
    assert_eq!(driver.used(RX), [912]);
    driver.wire.write_all(&frame(1500)).unwrap();
    assert!(matches!(driver.process(RX), Err(Error::Driver(_))));
}

#[test]
fn a_chain_goes_out_as_one_frame() {
    let mut driver = Driver::new();
    let content = frame(100);
    driver.context.memory.write_slice(&content, GuestAddress(0x8_0000)).unwrap();
    driver.describe(TX, 0, Descriptor::new(0x8_0000, 12, NEXT, 1));
    driver.describe(TX, 1, Descriptor::new(0x8_000c, 100, 0, 0));
    driver.offer(TX, 0);
    driver.process(TX).unwrap();
    let mut out = [0; 2000];
    let length = driver.wire.read(&mut out).unwrap();
    assert_eq!(out[..length], content);
    assert_eq!(driver.used(TX), [0]);
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut driver = Driver::new();
    // Too short, and too long.
    driver.describe(TX, 0, Descriptor::new(0x8_0000, 12, 0, 0));
    driver.describe(TX, 1, Descriptor::new(0, 0x1_1000, 0, 0));
    driver.describe(TX, 2, Descriptor::new(0x8_0000, 60, 0, 0));
    (0..3).for_each(|head| driver.offer(TX, head));
    driver.process(TX).unwrap();
    let mut out = [0; 2000];
    assert_eq!(driver.wire.read(&mut out).unwrap(), 60);
    assert_eq!(driver.used(TX), [0, 0, 0]);
}

#[test]
fn the_device_says_what_it_has() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let tap = || File::open("/dev/null").unwrap().into();
    let one = Net::new([2, 0, 0, 0, 0, 1], vec![tap()], Vec::new(), &memory).unwrap();
    assert_eq!(one.config(), [2, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
    assert_eq!((one.queue_sizes().len(), one.features() & 1 << VIRTIO_NET_F_MQ), (2, 0));
    assert_ne!(one.features() & 1 << VIRTIO_NET_F_CSUM, 0);
    let plain = one.with_offloads(false).features();
    assert!(OFFLOADS.iter().all(|feature| plain & 1 << feature == 0));
    assert_ne!(plain & 1 << VIRTIO_NET_F_MRG_RXBUF, 0);
    let four = Net::new([0; 6], (0..4).map(|_| tap()).collect(), Vec::new(), &memory).unwrap();
    assert_eq!(four.queue_sizes().len(), 9);
    let features = four.features();
    assert_eq!(four.control_queue(features), Some(8));
    assert_eq!(four.control_queue(features & !(1 << VIRTIO_NET_F_MQ)), Some(2));
    assert!(Net::new([0; 6], Vec::new(), Vec::new(), &memory).is_err());
    assert!(Net::new([0; 6], (0..9).map(|_| tap()).collect(), Vec::new(), &memory).is_err());
}

proptest! {
    /// Whatever a driver writes into its rings: an error or none, and no panic.
    #[test]
    fn any_descriptors(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, any::<u16>()), 16),
        low in any::<bool>(),
        heads in prop::collection::vec(any::<u16>(), 1..16),
        source in 0usize..2,
    ) {
        let mut driver = Driver::new();
        for (index, (address, length, flags, next)) in descriptors.into_iter().enumerate() {
            let (address, length) = if low { (address % 0x10_0000, length % 0x8000) } else { (address, length) };
            let next = if low { next % SIZE } else { next };
            driver.describe(source, index as u16, Descriptor::new(address, length, flags, next));
        }
        for head in heads {
            driver.offer(source, if low { head % SIZE } else { head });
        }
        driver.wire.write_all(&frame(9000)).unwrap();
        let _ = driver.process(source);
    }
}
