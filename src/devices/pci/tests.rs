//! The transport and the devices behind it, driven as a kernel drives them, and as an enemy would.

use std::sync::Mutex;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::common::*;
use super::config_space::ConfigSpaces;
use super::*;
use crate::devices::rng::Rng;
use crate::devices::{EventLoop, eventfd};

const MEMORY: u64 = 0x10_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

const BARS: Range<u64> = 0xc000_0000..0xd000_0000;
const FIRMWARES_BAR: u32 = 0xc000_4000;

const ACTIVE: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const ALL: [u8; 4] = [
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

/// A driver and its device.
struct Driver {
    transport: PciTransport,
    memory: Memory,
    event_loop: EventLoop,
    lines: Recorder,
}

impl Lines for Recorder {
    fn take_kicks(&mut self, first: Option<u64>) -> Result<(), Error> {
        self.record(format!("kicks {first:x?}"));
        Ok(())
    }

    fn send(&mut self, vector: usize, message: Option<Message>) -> Result<(), Error> {
        self.record(match message {
            Some(Message { address, data }) => format!("{vector} {address:x} {data:x}"),
            None => format!("{vector} waits"),
        });
        Ok(())
    }
}

fn wiring(device: &dyn VirtioDevice, memory: &Memory, event_loop: &EventLoop, lines: &Recorder) -> Wiring {
    let queues = device.queue_sizes().len();
    Wiring {
        memory: memory.clone(),
        config_space: ConfigSpaces::new().expect("memory").of(1),
        bars: BARS,
        events: event_loop.events(0),
        kicks: (0..queues).map(|_| Arc::new(eventfd().expect("an eventfd"))).collect(),
        interrupts: (0..=queues).map(|_| Interrupt::new().expect("an eventfd")).collect(),
        lines: Box::new(lines.clone()),
    }
}

impl Driver {
    fn of(device: impl VirtioDevice + 'static) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
        let event_loop = EventLoop::new().expect("an epoll instance");
        let lines = Recorder::default();
        let wiring = wiring(&device, &memory, &event_loop, &lines);
        Self {
            transport: PciTransport::new(Box::new(device), FIRMWARES_BAR, wiring),
            memory,
            event_loop,
            lines,
        }
    }

    fn read<const WIDTH: usize>(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes[..WIDTH]);
        u32::from_le_bytes(bytes)
    }

    fn write<const WIDTH: usize>(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes()[..WIDTH]).expect("the host is well");
    }

    fn config(&self, register: u64) -> u32 {
        self.transport.wiring.config_space.get(register)
    }

    fn set_config<const WIDTH: usize>(&mut self, register: u64, value: u32) {
        self.transport.write_config(register, &value.to_le_bytes()[..WIDTH]).expect("the host is well");
    }

    fn status(&mut self, status: u8) -> u8 {
        self.write::<1>(DEVICE_STATUS, status.into());
        self.read::<1>(DEVICE_STATUS) as u8
    }

    /// §3.1.1 up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) -> u8 {
        assert_eq!(self.status(RESET), RESET);
        self.status(ALL[0]);
        self.status(ALL[1]);
        for page in [0, 1] {
            self.write::<4>(DRIVER_FEATURE_SELECT, page);
            self.write::<4>(DRIVER_FEATURE, super::page(features, page));
        }
        self.status(ALL[2])
    }

    /// With vector 0 for the configuration, and 1 for queue 0.
    fn set_up_queue(&mut self, size: u32, places: [u64; 3]) {
        self.write::<2>(CONFIG_MSIX_VECTOR, 0);
        self.write::<2>(QUEUE_SELECT, 0);
        self.write::<2>(QUEUE_SIZE, size);
        self.write::<2>(QUEUE_MSIX_VECTOR, 1);
        for (register, place) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(places) {
            for half in [0, 1] {
                self.write::<4>(register + 4 * u64::from(half), super::page(place, half));
                assert_eq!(self.read::<4>(register + 4 * u64::from(half)), super::page(place, half));
            }
        }
        self.write::<2>(QUEUE_ENABLE, 1);
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
        self.transport.wiring.kicks[0].write(1).expect("room in a counter");
        let transport = &mut self.transport;
        self.event_loop.wait(|_, source| transport.process(source)).expect("the host is well");
    }

    /// The used ring's index, and how much was written to the last buffer.
    fn used(&self) -> (u16, u32) {
        let index: u16 = self.memory.read_obj(GuestAddress(USED + 2)).expect("in memory");
        let last = USED + 4 + 8 * u64::from(index.wrapping_sub(1) % 16);
        (index, self.memory.read_obj(GuestAddress(last + 4)).expect("in memory"))
    }

    /// By vector.
    fn interrupted(&self, vector: usize) -> bool {
        self.transport.wiring.interrupts[vector].0.read().is_ok()
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
    assert_eq!(driver.config(ID), (FIRST_DEVICE + 42) << 16 | VENDOR);
    driver.write::<4>(DEVICE_FEATURE_SELECT, 1);
    assert_eq!((driver.read::<4>(DEVICE_FEATURE), driver.read::<2>(NUM_QUEUES)), (1, 2));
    driver.start();
    let expected = ["reset", "activate 100000000 [(16, true), (8, false)]"];
    assert_eq!(recorder.take(), expected);
    driver.write::<2>(QUEUE_SIZE, 4);
    assert_eq!((driver.read::<2>(QUEUE_ENABLE), driver.read::<2>(QUEUE_SIZE)), (1, 16));
    driver.start();
    assert_eq!(recorder.take(), expected);
}

/// As Linux walks them (§4.1.4).
#[test]
fn capabilities_lead_to_all_registers() {
    let driver = Driver::of(Recorder::default());
    assert!(driver.config(COMMAND) & STATUS_CAPABILITIES != 0);
    let mut found = Vec::new();
    let mut place = u64::from(driver.config(CAPABILITIES));
    while place != 0 {
        let head = driver.config(place);
        found.push(match head & 0xff {
            VENDOR_SPECIFIC => (head >> 24, driver.config(place + 8), driver.config(place + 12)),
            MSIX => (MSIX, driver.config(place + 4), head >> 16 & 0x7ff),
            other => panic!("{other:#x}"),
        });
        place = u64::from(head >> 8 & 0xff);
    }
    let expected = [
        (COMMON_CFG, 0, 0x38),
        (ISR_CFG, ISR as u32, 1),
        (DEVICE_CFG, DEVICE as u32, 0x100),
        (NOTIFY_CFG, NOTIFY as u32, 8),
        // Three vectors.
        (MSIX, TABLE as u32, 2),
    ];
    assert_eq!(found, expected);
    assert_eq!(driver.config(NOTIFY_CAPABILITY + 16), 4);
}

#[test]
fn the_configuration_ends_where_it_ends() {
    let driver = Driver::of(Recorder::default());
    let config = |offset: u64, bytes: &mut [u8]| driver.transport.read(DEVICE + offset, bytes);
    let (mut first, mut last, mut behind) = ([0xff; 8], [0xff; 4], [0xff]);
    config(0, &mut first);
    config(12, &mut last);
    config(0xff, &mut behind);
    assert_eq!((&first, &last, behind), (b"configur", b"n\0\0\0", [0]));
}

#[test]
fn kicks_are_taken_where_the_bar_is() {
    let mut driver = Driver::of(Recorder::default());
    let at = |driver: &Driver, address| driver.transport.offset(address);
    assert_eq!(driver.config(BAR), FIRMWARES_BAR);
    assert_eq!(at(&driver, FIRMWARES_BAR.into()), None, "it does not answer yet");
    driver.set_config::<2>(COMMAND, COMMAND_MEMORY);
    assert_eq!(at(&driver, u64::from(FIRMWARES_BAR) + BAR_SIZE - 1), Some(BAR_SIZE - 1));
    assert_eq!(at(&driver, u64::from(FIRMWARES_BAR) + BAR_SIZE), None);
    driver.set_config::<2>(COMMAND, 0);
    // How large it is, and where it goes then.
    driver.set_config::<4>(BAR, u32::MAX);
    assert_eq!(driver.config(BAR), !(BAR_SIZE as u32 - 1));
    driver.set_config::<4>(BAR, 0xc100_0000);
    driver.set_config::<2>(COMMAND, COMMAND_MEMORY);
    assert_eq!(at(&driver, 0xc100_0000 + TABLE), Some(TABLE));
    // Where no BAR may be.
    driver.set_config::<4>(BAR, 0x1000_0000);
    assert_eq!(at(&driver, 0x1000_0000), None);
    driver.set_config::<4>(BAR, (BARS.end - BAR_SIZE) as u32);
    let kicks =
        ["kicks Some(c0006000)", "kicks None", "kicks Some(c1002000)", "kicks None", "kicks Some(cfffe000)"];
    assert_eq!(driver.lines.take(), kicks);
}

#[test]
fn what_nobody_may_write_stays() {
    let mut driver = Driver::of(Recorder::default());
    for register in
        (0..0x100).step_by(4).filter(|register| !matches!(*register, COMMAND | BAR | MSIX_CAPABILITY))
    {
        let before = driver.config(register);
        driver.set_config::<4>(register, !before);
        assert_eq!(driver.config(register), before, "{register:#x}");
    }
    driver.set_config::<4>(COMMAND, u32::MAX);
    assert_eq!(driver.config(COMMAND), STATUS_CAPABILITIES | COMMAND_WRITABLE);
    driver.set_config::<2>(MSIX_CAPABILITY + 2, 0xffff);
    assert_eq!(driver.config(MSIX_CAPABILITY), MSIX_ENABLED | MSIX_MASKED | 2 << 16 | MSIX);
    // Over the end of a register.
    driver.set_config::<4>(COMMAND + 2, 0);
    assert_eq!(driver.config(COMMAND), STATUS_CAPABILITIES | COMMAND_WRITABLE);
}

#[test]
fn a_vector_is_sent_while_nothing_masks_it() {
    let mut driver = Driver::of(Recorder::default());
    let entry = TABLE + ENTRY;
    for (word, value) in [(0, 0xfee0_1000), (4, 0), (8, 0x21), (12, 0)] {
        assert_eq!(driver.read::<4>(entry + 12), ENTRY_MASKED);
        driver.write::<4>(entry + word, value);
    }
    assert_eq!(driver.read::<4>(entry), 0xfee0_1000);
    assert!(driver.lines.take().iter().all(|line| line == "1 waits"), "MSI-X is off");
    let all = |control: u32| ["0 waits", ["1 waits", "1 fee01000 21"][control as usize], "2 waits"];
    for (control, sent) in [(MSIX_ENABLED | MSIX_MASKED, 0), (MSIX_ENABLED, 1), (0, 0), (MSIX_ENABLED, 1)] {
        driver.set_config::<2>(MSIX_CAPABILITY + 2, control >> 16);
        assert_eq!(driver.lines.take(), all(sent));
    }
    driver.write::<4>(entry + 12, ENTRY_MASKED);
    driver.write::<4>(entry + 8, 0x22);
    driver.write::<4>(entry + 12, 0);
    // Behind the table's end, and less than a word.
    driver.write::<4>(TABLE + 3 * ENTRY, 1);
    driver.write::<2>(entry + 8, 0x23);
    assert_eq!(driver.lines.take(), ["1 waits", "1 waits", "1 fee01000 22"]);
}

#[test]
fn a_vector_that_there_is_not_is_none() {
    let mut driver = Driver::of(Rng::default());
    driver.negotiate(1 << VIRTIO_F_VERSION_1);
    driver.set_up_queue(16, [DESCRIPTORS, AVAILABLE, USED]);
    assert_eq!([CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR].map(|register| driver.read::<2>(register)), [0, 1]);
    driver.negotiate(1 << VIRTIO_F_VERSION_1);
    for register in [CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR] {
        driver.write::<2>(register, 2);
        assert_eq!(driver.read::<2>(register) as u16, NO_VECTOR);
    }
    // A driver without interrupts may look by itself.
    for (register, value) in [(QUEUE_DESC, DESCRIPTORS), (QUEUE_DRIVER, AVAILABLE), (QUEUE_DEVICE, USED)] {
        driver.write::<4>(register, value as u32);
    }
    driver.write::<2>(QUEUE_ENABLE, 1);
    assert_eq!(driver.status(ALL[3]), ACTIVE);
    driver.set_descriptor(0, BUFFER, 8, WRITABLE, 0);
    driver.offer(1);
    assert_eq!(driver.used(), (1, 8));
    assert!(!driver.interrupted(0) && !driver.interrupted(1));
}

#[test]
fn a_device_goes_on_where_another_stopped() {
    let mut driver = Driver::of(Rng::default());
    driver.set_config::<2>(COMMAND, COMMAND_MEMORY);
    driver.set_config::<2>(MSIX_CAPABILITY + 2, MSIX_ENABLED >> 16);
    driver.write::<4>(TABLE + ENTRY, 0xfee0_0000);
    driver.write::<4>(TABLE + ENTRY + 12, 0);
    driver.start();
    driver.set_descriptor(0, BUFFER, 8, WRITABLE, 0);
    driver.offer(1);
    let state = postcard::to_stdvec(driver.transport.state()).expect("bytes");
    let state: State = postcard::from_bytes(&state).expect("a state");
    let Driver { memory, event_loop, .. } = driver;

    let other = Recorder::default();
    let refused = PciTransport::resumed(
        Box::new(other.clone()),
        state.clone(),
        wiring(&other, &memory, &event_loop, &other),
    );
    assert!(matches!(refused, Err(Error::Driver(_))), "it has other queues");
    let lines = Recorder::default();
    let wiring = wiring(&Rng::default(), &memory, &event_loop, &lines);
    let transport = PciTransport::resumed(Box::new(Rng::default()), state.clone(), wiring).expect("it fits");
    assert_eq!(lines.take(), ["kicks Some(c0006000)", "0 waits", "1 fee00000 0"]);
    let mut driver = Driver { transport, memory, event_loop, lines };
    assert_eq!(driver.transport.state(), &state);
    assert_eq!(driver.config(BAR), FIRMWARES_BAR);
    driver.transport.wake().expect("the host is well");
    assert!(driver.interrupted(0) && driver.interrupted(1));
    driver.offer(2);
    assert_eq!(driver.used(), (2, 8));
}

#[test]
fn unoffered_features_and_old_drivers_are_refused() {
    let mut driver = Driver::of(Recorder::default());
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << 5), ALL[1]);
    assert_eq!(driver.negotiate(1), ALL[1]);
    assert_eq!(driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1), ALL[2]);
    driver.write::<4>(DRIVER_FEATURE, 1 << 5);
    assert_eq!(driver.transport.state.virtio.driver_features, 1 << VIRTIO_F_VERSION_1 | 1);
}

#[test]
fn only_the_next_step_is_taken() {
    for (index, _) in ALL.iter().enumerate() {
        for wrong in (1..=u8::MAX).filter(|status| status & FAILED == 0) {
            let mut driver = Driver::of(Recorder::default());
            if index > 0 {
                driver.negotiate(1 << VIRTIO_F_VERSION_1);
                driver.transport.state.virtio.status = ALL[index - 1];
            }
            let before = driver.read::<1>(DEVICE_STATUS) as u8;
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
        (0x8000, right),
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
        assert!(driver.interrupted(0) && !driver.interrupted(1));
        assert_eq!(driver.read::<1>(CONFIG_GENERATION), 1);
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
        assert_eq!(driver.read::<1>(DEVICE_STATUS) as u8, ACTIVE | NEEDS_RESET);
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
    assert!(driver.interrupted(1) && !driver.interrupted(0));
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
        assert_eq!(driver.read::<1>(DEVICE_STATUS) as u8, ACTIVE);
    }
}

#[test]
fn an_impossible_index_costs_the_device() {
    let mut driver = Driver::of(Rng::default());
    driver.start();
    driver.set_available(17);
    driver.kick();
    assert_eq!(driver.read::<1>(DEVICE_STATUS) as u8, ACTIVE | NEEDS_RESET);
    driver.set_available(0);
    driver.start();
    driver.set_descriptor(0, BUFFER, 8, WRITABLE, 0);
    driver.offer(1);
    assert_eq!(driver.used(), (1, 8));
}

/// What a guest can do to a device: accesses of any width anywhere, kicks, and any bytes in its memory.
#[derive(Debug, Clone)]
enum Deed {
    Write(u64, u64, usize),
    WriteConfig(u64, u64, usize),
    Read(u64, usize),
    Start,
    Kick,
    Memory(u64, u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let register = || prop_oneof![0u64..SIZE, TABLE..TABLE + 0x40, 0u64..2 * BAR_SIZE, any::<u64>()];
    let config = prop_oneof![Just(COMMAND), Just(BAR), Just(MSIX_CAPABILITY + 2), 0u64..config_space::SIZE];
    let value = || prop_oneof![0u64..256, any::<u64>()];
    prop_oneof![
        (register(), value(), 0usize..=8).prop_map(|(place, value, len)| Deed::Write(place, value, len)),
        (config, value(), 0usize..=8).prop_map(|(place, value, len)| Deed::WriteConfig(place, value, len)),
        (register(), 0usize..=8).prop_map(|(place, len)| Deed::Read(place, len)),
        Just(Deed::Start),
        Just(Deed::Kick),
        (DESCRIPTORS..USED + 0x100, value()).prop_map(|(place, value)| Deed::Memory(place, value)),
    ]
}

proptest! {
    #[test]
    fn nothing_that_a_guest_does_stops_the_vmm(deeds in prop::collection::vec(deed(), 1..200)) {
        let mut driver = Driver::of(Rng::default());
        for deed in deeds {
            let Driver { transport, .. } = &mut driver;
            match deed {
                Deed::Write(place, value, len) => {
                    transport.write(place, &value.to_le_bytes()[..len]).expect("the host is well");
                }
                Deed::WriteConfig(place, value, len) => {
                    transport.write_config(place, &value.to_le_bytes()[..len]).expect("the host is well");
                }
                Deed::Read(place, len) => transport.read(place, &mut [0; 8][..len]),
                Deed::Start => {
                    driver.negotiate(1 << VIRTIO_F_VERSION_1);
                    driver.set_up_queue(16, [DESCRIPTORS, AVAILABLE, USED]);
                    driver.status(ALL[3]);
                }
                Deed::Kick => transport.process(0).expect("the host is well"),
                Deed::Memory(place, value) => {
                    driver.memory.write_obj(value, GuestAddress(place)).expect("in memory");
                }
            }
        }
    }
}
