//! The transport and the devices behind it, driven as a kernel drives them, and as an enemy would.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::devices::EventLoop;
use crate::devices::rng::Rng;

const MEMORY: u64 = 0x10_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

const ACTIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const ALL: [u32; 4] = [
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

/// A driver and its device.
struct Driver {
    transport: MmioTransport,
    memory: Memory,
    event_loop: EventLoop,
}

impl Driver {
    fn of(device: impl VirtioDevice + 'static) -> Self {
        let eventfd = || Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an eventfd"));
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
        let event_loop = EventLoop::new().expect("an epoll instance");
        let kicks = device.queue_sizes().iter().map(|_| eventfd()).collect();
        let wiring = Wiring {
            memory: memory.clone(),
            window: Windows::new(1).expect("a window").of(0),
            events: event_loop.events(0),
            interrupt: Interrupt(eventfd()),
            kicks,
        };
        Self { transport: MmioTransport::new(Box::new(device), wiring), memory, event_loop }
    }

    fn read(&self, register: u32) -> u32 {
        self.transport.wiring.window.get(register)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes()).expect("the host is well");
    }

    fn status(&mut self, status: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, status);
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// §3.1.1 up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) -> u32 {
        assert_eq!(self.status(RESET), RESET);
        self.status(ALL[0]);
        self.status(ALL[1]);
        for (page, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.status(ALL[2])
    }

    fn set_up_queue(&mut self, size: u32, [descriptors, available, used]: [u64; 3]) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn start(&mut self) {
        assert_eq!(self.negotiate(1 << VIRTIO_F_VERSION_1), ALL[2]);
        self.set_up_queue(16, [DESCRIPTORS, AVAILABLE, USED]);
        assert_eq!(self.status(ALL[3]), ACTIVE);
    }

    fn set_descriptor(&self, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let place = DESCRIPTORS + 16 * index;
        self.memory.write_obj(address, GuestAddress(place)).expect("in memory");
        self.memory.write_obj(len, GuestAddress(place + 8)).expect("in memory");
        self.memory.write_obj(flags, GuestAddress(place + 12)).expect("in memory");
        self.memory.write_obj(next, GuestAddress(place + 14)).expect("in memory");
    }

    /// Makes descriptor 0 available for the `count`th time, and lets the device work.
    fn offer(&mut self, count: u16) {
        self.memory
            .write_obj(0u16, GuestAddress(AVAILABLE + 4 + 2 * u64::from(count - 1)))
            .expect("in memory");
        self.set_available(count);
        self.kick();
    }

    fn set_available(&self, index: u16) {
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).expect("in memory");
    }

    /// As the I/O thread does, with nothing else to wait for.
    fn kick(&mut self) {
        self.transport.kicks()[0].write(1).expect("room in a counter");
        let transport = &mut self.transport;
        self.event_loop.wait(|_, source| transport.process(source)).expect("the host is well");
    }

    /// The used ring's index, and how much was written to the last buffer.
    fn used(&self) -> (u16, u32) {
        let index: u16 = self.memory.read_obj(GuestAddress(USED + 2)).expect("in memory");
        let last = USED + 4 + 8 * u64::from(index.wrapping_sub(1) % 16);
        (index, self.memory.read_obj(GuestAddress(last + 4)).expect("in memory"))
    }

    fn interrupted(&self) -> bool {
        self.transport.interrupt().read().is_ok()
    }
}

/// A device that remembers what happens to it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn record(&self, what: String) {
        self.0.lock().expect("no panic").push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1
    }

    fn config(&self) -> &[u8] {
        b"configuration"
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        let queues = context.queues.iter().map(|active| (active.queue.size(), active.queue.ready()));
        self.record(format!("activate {:x} {:?}", context.features, queues.collect::<Vec<_>>()));
        Ok(())
    }

    fn process(&mut self, _: u32) -> Result<(), Error> {
        Err(Error::Driver(virtio_queue::Error::InvalidChain))
    }

    fn reset(&mut self) {
        self.record("reset".to_owned());
    }
}

#[test]
fn a_driver_finds_and_starts_a_device() {
    let recorder = Recorder::default();
    let mut driver = Driver::of(recorder.clone());
    let identity = [VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION, VIRTIO_MMIO_DEVICE_ID];
    assert_eq!(identity.map(|register| driver.read(register)), [MAGIC, 2, 42]);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.start();
    let expected = ["reset", "activate 100000000 [(16, true), (8, false)]"];
    assert_eq!(recorder.take(), expected);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 4);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.start();
    assert_eq!(recorder.take(), expected);
}

#[test]
fn the_configuration_space_ends_where_it_ends() {
    let driver = Driver::of(Recorder::default());
    let window = &driver.transport.wiring.window;
    assert_eq!(window.config(0, 8), b"configur");
    assert_eq!(window.config(12, 4), b"n\0\0\0");
    assert_eq!(window.config(0xff, 1), [0]);
}

#[test]
fn unoffered_features_and_old_drivers_are_refused() {
    let mut driver = Driver::of(Recorder::default());
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << 5), ALL[1]);
    assert_eq!(driver.negotiate(1), ALL[1]);
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1), ALL[2]);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1 << 5);
    assert_eq!(driver.transport.state.driver_features, 1 << VIRTIO_F_VERSION_1 | 1);
}

#[test]
fn only_the_next_step_is_taken() {
    for (index, _) in ALL.iter().enumerate() {
        for wrong in (1..=u32::from(u8::MAX)).filter(|status| status & FAILED == 0) {
            let mut driver = Driver::of(Recorder::default());
            if index > 0 {
                driver.negotiate(1 << VIRTIO_F_VERSION_1);
                driver.transport.state.status = ALL[index - 1];
                driver.transport.show();
            }
            let before = driver.read(VIRTIO_MMIO_STATUS);
            if wrong != ALL[index] {
                assert_eq!(driver.status(wrong), before, "{before:#x} to {wrong:#x}");
            }
        }
    }
}

#[test]
fn a_driver_that_gave_up_starts_again_with_a_reset() {
    let mut driver = Driver::of(Recorder::default());
    driver.start();
    assert_eq!(driver.status(ACTIVE | FAILED), ACTIVE | FAILED);
    assert_eq!(driver.status(ALL[0]), ACTIVE | FAILED);
    driver.start();
}

#[test]
fn impossible_queues_cost_the_device() {
    let right = [DESCRIPTORS, AVAILABLE, USED];
    let at = |index: usize, address| {
        let mut places = right;
        places[index] = address;
        (16, places)
    };
    let cases = [
        (0, right),
        (3, right),
        (32, right),
        (0x1_0010, right),
        at(0, DESCRIPTORS + 1),
        at(1, AVAILABLE + 1),
        at(2, USED + 2),
        at(0, MEMORY),
        at(1, MEMORY - 2),
        at(2, u64::MAX - 3),
        at(0, u64::MAX - 15),
    ];
    for (size, places) in cases {
        let mut driver = Driver::of(Rng::default());
        driver.negotiate(1 << VIRTIO_F_VERSION_1);
        driver.set_up_queue(size, places);
        assert_eq!(driver.status(ALL[3]), ALL[2] | NEEDS_RESET, "size {size}, {places:x?}");
        assert!(driver.interrupted());
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
        driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 3);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.start();
    }
}

#[test]
fn a_broken_device_stays_so_until_its_reset() {
    let recorder = Recorder::default();
    let mut driver = Driver::of(recorder.clone());
    driver.start();
    recorder.take();
    for _ in 0..2 {
        driver.transport.process(0).expect("the driver's fault");
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), ACTIVE | NEEDS_RESET);
    }
    assert_eq!(recorder.take(), ["reset"]);
    driver.start();
}

#[test]
fn random_numbers_fill_buffers() {
    let mut driver = Driver::of(Rng::default());
    driver.start();
    driver.set_descriptor(0, BUFFER, 64, WRITABLE | NEXT, 1);
    driver.set_descriptor(1, BUFFER + 64, 1 << 20, WRITABLE, 0);
    driver.offer(1);
    assert_eq!(driver.used(), (1, 64 + 256));
    assert!(driver.interrupted());
    let mut bytes = [0u8; 64 + 256];
    driver.memory.read_slice(&mut bytes, GuestAddress(BUFFER)).expect("in memory");
    assert!(bytes.chunks(64).all(|part| part.iter().any(|byte| *byte != 0)));
}

#[test]
fn hostile_buffers_are_returned_empty() {
    let cases: [&[(u64, u32, u16, u16)]; 5] = [
        &[(BUFFER, 64, 0, 0)],
        &[(MEMORY, 64, WRITABLE, 0)],
        &[(u64::MAX, u32::MAX, WRITABLE, 0)],
        &[(BUFFER, 0, WRITABLE, 0)],
        &[(BUFFER, 0, WRITABLE | NEXT, 0)],
    ];
    let mut driver = Driver::of(Rng::default());
    driver.start();
    for (count, descriptors) in (1..).zip(cases) {
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            driver.set_descriptor(index, *address, *len, *flags, *next);
        }
        driver.offer(count);
        assert_eq!(driver.used(), (count, 0), "{descriptors:x?}");
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), ACTIVE);
    }
}

#[test]
fn an_impossible_index_costs_the_device() {
    let mut driver = Driver::of(Rng::default());
    driver.start();
    driver.set_available(17);
    driver.kick();
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), ACTIVE | NEEDS_RESET);
    driver.set_available(0);
    driver.start();
    driver.set_descriptor(0, BUFFER, 8, WRITABLE, 0);
    driver.offer(1);
    assert_eq!(driver.used(), (1, 8));
}

/// What a guest can do to a device: writes of any width anywhere, kicks, and any bytes in its memory.
#[derive(Debug, Clone)]
enum Deed {
    Write(u64, u64, usize),
    Start,
    Kick,
    Memory(u64, u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let register = prop_oneof![(0u64..0x120).prop_map(|offset| offset & !3), 0u64..SIZE];
    let value = prop_oneof![0u64..256, any::<u64>(), Just(u64::from(VIRTIO_MMIO_QUEUE_NOTIFY))];
    prop_oneof![
        (register, value.clone(), 0usize..=8)
            .prop_map(|(offset, value, len)| Deed::Write(offset, value, len)),
        Just(Deed::Start),
        Just(Deed::Kick),
        (DESCRIPTORS..USED + 0x100, value).prop_map(|(place, value)| Deed::Memory(place, value)),
    ]
}

proptest! {
    #[test]
    fn nothing_that_a_guest_does_stops_the_vmm(deeds in prop::collection::vec(deed(), 1..200)) {
        let mut driver = Driver::of(Rng::default());
        for deed in deeds {
            match deed {
                Deed::Write(offset, value, len) => {
                    driver.transport.write(offset, &value.to_le_bytes()[..len]).expect("the host is well");
                }
                Deed::Start => {
                    driver.negotiate(1 << VIRTIO_F_VERSION_1);
                    driver.set_up_queue(16, [DESCRIPTORS, AVAILABLE, USED]);
                    driver.status(ALL[3]);
                }
                Deed::Kick => driver.transport.process(0).expect("the host is well"),
                Deed::Memory(place, value) => {
                    driver.memory.write_obj(value, GuestAddress(place)).expect("in memory");
                }
            }
        }
    }
}
