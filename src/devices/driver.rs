//! A driver of one queue, for tests of devices: 1 MiB of memory, in which the queue is at [`RING`].

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivationContext, ActiveQueue, EventLoop, Interrupt, Memory};

const SIZE: u16 = 16;
const RING: u64 = 0x1_0000;
const AVAILABLE: u64 = RING + 0x1000;
const USED: u64 = RING + 0x2000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub struct Driver {
    pub memory: Memory,
    pub event_loop: EventLoop,
    file: File,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    descriptors: u16,
    offered: u16,
}

fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap())
}

impl Driver {
    pub fn new() -> Self {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(1 << 20).unwrap();
        let part = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = Memory::from_ranges_with_files([(GuestAddress(0), 1 << 20, Some(part))]).unwrap();
        // Pages of the rings are there, so that none comes when they are used.
        memory.write_slice(&[0; 0x3000], GuestAddress(RING)).unwrap();
        let event_loop = EventLoop::new().unwrap();
        Self {
            memory,
            event_loop,
            file,
            kick: eventfd(),
            interrupt: Interrupt(eventfd()),
            descriptors: 0,
            offered: 0,
        }
    }

    /// For a device of so many queues, of which `used` is the driver's.
    pub fn context(&self, queues: usize, used: usize) -> ActivationContext {
        let queue = |index| {
            let mut queue = Queue::new(SIZE).unwrap();
            if index == used {
                queue.set_desc_table_address(Some(RING as u32), None);
                queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
                queue.set_used_ring_address(Some(USED as u32), None);
                queue.set_ready(true);
            }
            let kick = if index == used { Arc::clone(&self.kick) } else { eventfd() };
            ActiveQueue { queue, kick, interrupt: self.interrupt.clone() }
        };
        ActivationContext {
            memory: self.memory.clone(),
            features: 0,
            queues: (0..queues).map(queue).collect(),
            events: self.event_loop.events(0),
        }
    }

    /// A chain of buffers: address, length, whether the device writes. Kicks.
    pub fn offer(&mut self, chain: &[(u64, u32, bool)]) {
        let head = self.descriptors;
        for (place, (address, length, writable)) in chain.iter().enumerate() {
            let next = if place + 1 < chain.len() { NEXT } else { 0 };
            let flags = next | if *writable { WRITE } else { 0 };
            let descriptor = Descriptor::new(*address, *length, flags, self.descriptors + 1);
            let at = GuestAddress(RING + u64::from(self.descriptors) * 16);
            self.memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
            self.descriptors += 1;
        }
        let slot = u64::from(self.offered % SIZE);
        self.memory.write_obj(head, GuestAddress(AVAILABLE + 4 + slot * 2)).unwrap();
        self.offered += 1;
        self.memory.write_obj(self.offered, GuestAddress(AVAILABLE + 2)).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Heads and lengths of the chains that the device has used.
    pub fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let element = |slot: u16| {
            let at = USED + 4 + u64::from(slot) * 8;
            let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
            (read(at), read(at + 4))
        };
        (0..count).map(element).collect()
    }

    /// Whether the device is to look at the queue; not afterwards.
    pub fn kicked(&self) -> bool {
        self.kick.read().is_ok()
    }

    /// Offers all chains again and again, as fast as they are used, while `work` is done.
    pub fn while_offering_all<T>(&self, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_secs(60);
                while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                    let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
                    self.memory.write_obj(used.wrapping_add(SIZE), GuestAddress(AVAILABLE + 2)).unwrap();
                }
            });
            let result = work();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    pub fn fill(&self, address: u64, length: usize, byte: u8) {
        self.memory.write_slice(&vec![byte; length], GuestAddress(address)).unwrap();
    }

    pub fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Bytes of memory that there are pages for.
    pub fn resident(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }
}
