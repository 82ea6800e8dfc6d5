//! The virtio-pci transport, virtio 1.2 §4.1: a function of a PCI bus, and the device's life between reset and DRIVER_OK.
//!
//! ```text
//!            ACKNOWLEDGE      DRIVER      FEATURES_OK        DRIVER_OK
//!   reset ---------------> · --------> · -------------> · ---------------> active
//!     ^                                   refused when      queues checked;   |
//!     |                                   bits are wrong    device activated  | Error::Driver
//!     +--- 0 written to the status, at any time <---- NEEDS_RESET <-----------+
//! ```
//!
//! Buffers are announced in both directions past this code, by what the hypervisor does for a device ([`Lines`]): a write to a queue's place
//! in the BAR is its kick, and an eventfd for each vector of MSI-X is the message that the driver wants for it. Neither interrupt line nor
//! status of it exist.
//!
//! What a driver writes out of turn is ignored, as §2.1 lets a device do. The configuration space, which it reads often, lies in memory
//! ([`config_space`]); the BAR's registers, which it needs for its start, are read from here.

pub mod config_space;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{ActivationContext, ActiveQueue, Error, Events, Interrupt, Memory, VirtioDevice};
use config_space::ConfigSpace;

/// Bytes of a device's BAR, and what lies where in it.
pub const BAR_SIZE: u64 = 0x4000;
const COMMON: u64 = 0;
const ISR: u64 = 0x100;
const DEVICE: u64 = 0x200;
const DEVICE_SIZE: u64 = 0x100;
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x1800;
/// Each queue has a place of its own.
const NOTIFY: u64 = 0x2000;
pub const NOTIFY_MULTIPLIER: u64 = 4;
/// Vectors of a device: its configuration's, and one for each of its queues.
pub const MAX_VECTORS: usize = 32;

/// Registers of the configuration space (PCI 3.0 §6.1), and where the capabilities of this one are.
const ID: u64 = 0x0;
const COMMAND: u64 = 0x4;
const CLASS: u64 = 0x8;
const BAR: u64 = 0x10;
const SUBSYSTEM: u64 = 0x2c;
const CAPABILITIES: u64 = 0x34;
const COMMON_CAPABILITY: u64 = 0x40;
const ISR_CAPABILITY: u64 = 0x50;
const DEVICE_CAPABILITY: u64 = 0x60;
const NOTIFY_CAPABILITY: u64 = 0x70;
const MSIX_CAPABILITY: u64 = 0x84;

/// "Red Hat", whose numbers virtio devices have (§4.1.2).
const VENDOR: u32 = 0x1af4;
const FIRST_DEVICE: u32 = 0x1040;
const REVISION: u32 = 1;
/// In COMMAND: answers to the BAR's address; may start transfers; has no interrupt line.
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_WRITABLE: u32 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
/// In the status behind it: there are capabilities.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// PCI 3.0 §6.8.2: the capability, and in its control (the register's upper half) on and all masked.
const MSIX: u32 = 0x11;
const MSIX_ENABLED: u32 = 1 << 31;
const MSIX_MASKED: u32 = 1 << 30;
/// Bytes of an entry of the table, and in the last word of it: masked.
const ENTRY: u64 = 16;
const ENTRY_MASKED: u32 = 1;
/// §4.1.4: a capability of virtio's, and what it says where to find.
const VENDOR_SPECIFIC: u32 = 0x9;
const COMMON_CFG: u32 = 1;
const NOTIFY_CFG: u32 = 2;
const ISR_CFG: u32 = 3;
const DEVICE_CFG: u32 = 4;

/// §4.1.4.3, struct virtio_pci_common_cfg.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x0;
    pub const DEVICE_FEATURE: u64 = 0x4;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x8;
    pub const DRIVER_FEATURE: u64 = 0xc;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const SIZE: u64 = 0x38;
}
/// VIRTIO_MSI_NO_VECTOR
const NO_VECTOR: u16 = 0xffff;

const RESET: u8 = 0;
const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

/// §3.1.1: the driver's steps. From status to status, FAILED and NEEDS_RESET aside.
const STEPS: [(u8, u8); 4] = [
    (RESET, ACKNOWLEDGE),
    (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
    (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
];

/// A device and its registers.
pub struct PciTransport {
    device: Box<dyn VirtioDevice>,
    state: State,
    wiring: Wiring,
}

/// What connects a device with its guest.
pub struct Wiring {
    pub memory: Memory,
    pub config_space: ConfigSpace,
    /// Where the guest may lay BARs.
    pub bars: Range<u64>,
    pub events: Events,
    /// One for each queue.
    pub kicks: Vec<Arc<EventFd>>,
    /// One for each vector, of which there are as many and one.
    pub interrupts: Vec<Interrupt>,
    pub lines: Box<dyn Lines>,
}

/// What the hypervisor does for a device.
pub trait Lines: Send {
    /// From now on a write to the first of these addresses is queue 0's kick; each [`NOTIFY_MULTIPLIER`] bytes are the next queue's. `None`: no
    /// write is any.
    ///
    /// # Errors
    /// [`Error::Host`]
    fn take_kicks(&mut self, first: Option<u64>) -> Result<(), Error>;

    /// From now on the interrupt of this vector reaches the guest as `message`; `None`: it waits.
    ///
    /// # Errors
    /// [`Error::Host`]
    fn send(&mut self, vector: usize, message: Option<Message>) -> Result<(), Error>;
}

/// A message-signalled interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub address: u64,
    pub data: u32,
}

/// The registers, as a snapshot keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    command: u32,
    bar: u32,
    msix: Msix,
    virtio: Virtio,
}

/// Those of MSI-X.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Msix {
    control: u32,
    /// Address, its upper half, data, control.
    table: Vec<[u32; 4]>,
}

/// Those of virtio, which a reset of the device resets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Virtio {
    status: u8,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    config_vector: u16,
    config_generation: u8,
    queue_select: u16,
    queues: Vec<QueueState>,
}

/// Where a device begins in its rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rings {
    /// The driver has just made them.
    New,
    /// Where another one, which had given all buffers back, stopped.
    AsLeft,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    max_size: u16,
    size: u16,
    vector: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl PciTransport {
    /// A device that firmware has given the BAR at `bar`.
    pub fn new(device: Box<dyn VirtioDevice>, bar: u32, wiring: Wiring) -> Self {
        let vectors = wiring.interrupts.len();
        let msix = Msix { control: 0, table: vec![[0, 0, 0, ENTRY_MASKED]; vectors] };
        let state = State { command: 0, bar, msix, virtio: Virtio::new(device.queue_sizes()) };
        let transport = Self { device, state, wiring };
        transport.show_constants();
        transport.show();
        transport
    }

    /// A device in the state of another one, which had no buffer of the driver's at that time: it goes on from where the used
    /// ring ends. It is to be [woken](Self::wake).
    ///
    /// # Errors
    /// [`Error::Driver`] when the state is not one of this device.
    pub fn resumed(device: Box<dyn VirtioDevice>, state: State, wiring: Wiring) -> Result<Self, Error> {
        let queues = &state.virtio.queues;
        let fits = queues.iter().map(|queue| &queue.max_size).eq(device.queue_sizes())
            && state.msix.table.len() == wiring.interrupts.len();
        if !fits {
            return Err(virtio_queue::Error::InvalidSize.into());
        }
        let mut transport = Self { device, state, wiring };
        transport.show_constants();
        transport.show();
        transport.wiring.lines.take_kicks(transport.notify())?;
        for vector in 0..transport.state.msix.table.len() {
            transport.wiring.lines.send(vector, transport.state.msix.message(vector))?;
        }
        if transport.is_active() {
            transport.activate(Rings::AsLeft)?;
        }
        Ok(transport)
    }

    /// Both sides of an active device look at its queues: what either announced last may have got lost.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn wake(&self) -> Result<(), Error> {
        if self.is_active() {
            for kick in &self.wiring.kicks {
                kick.write(1).map_err(Error::host("wake a device"))?;
            }
            self.wiring.interrupts.iter().try_for_each(Interrupt::trigger)?;
        }
        Ok(())
    }

    /// The registers; the rest of a device's state is in guest memory while it has no buffer of the driver's.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where in the BAR `address` is, if there.
    pub fn offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.bar()?)?;
        (offset < BAR_SIZE).then_some(offset)
    }

    /// The driver reads at `offset` of the BAR. What is not there is zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            COMMON..common::SIZE => self.read_common(offset, data.len()),
            DEVICE.. if offset < DEVICE + DEVICE_SIZE => {
                let config = self.device.config().get((offset - DEVICE) as usize..).unwrap_or_default();
                let count = config.len().min(data.len());
                data[..count].copy_from_slice(&config[..count]);
                return;
            }
            // What is pending KVM knows, and no driver asks.
            TABLE..PENDING if offset.is_multiple_of(4) && data.len() == 4 => {
                self.state.msix.word((offset - TABLE) / 4).copied().unwrap_or(0)
            }
            _ => 0,
        };
        let count = data.len().min(4);
        data[..count].copy_from_slice(&value.to_le_bytes()[..count]);
    }

    /// The driver writes `data` at `offset` of the BAR.
    ///
    /// # Errors
    /// Those of the host only; the driver's own are in the status.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let value = match *data {
            [a] => a.into(),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return Ok(()),
        };
        match (offset, data.len()) {
            (common::DEVICE_STATUS, 1) => {
                let result = self.write_status(value as u8);
                self.survive(result)
            }
            (COMMON..common::SIZE, length) => {
                self.state.virtio.write(offset, length, value, self.wiring.interrupts.len());
                Ok(())
            }
            (TABLE..PENDING, 4) if offset.is_multiple_of(4) => {
                let word = (offset - TABLE) / 4;
                if let Some(place) = self.state.msix.word_mut(word) {
                    *place = value;
                    self.send((word * 4 / ENTRY) as usize)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The driver writes `data` at `register` of the configuration space.
    ///
    /// # Errors
    /// Those of the host only.
    pub fn write_config(&mut self, register: u64, data: &[u8]) -> Result<(), Error> {
        let (word, first) = (register & !3, (register & 3) as usize);
        let Some(end) = Some(first + data.len()).filter(|end| *end <= 4) else { return Ok(()) };
        if !matches!(word, COMMAND | BAR | MSIX_CAPABILITY) {
            return Ok(());
        }
        let mut bytes = self.wiring.config_space.get(word).to_le_bytes();
        bytes[first..end].copy_from_slice(data);
        let value = u32::from_le_bytes(bytes);
        let before = self.notify();
        match word {
            COMMAND => self.state.command = value & COMMAND_WRITABLE,
            BAR => self.state.bar = value & !(BAR_SIZE as u32 - 1),
            _ => {
                self.state.msix.control = value & (MSIX_ENABLED | MSIX_MASKED);
                (0..self.state.msix.table.len()).try_for_each(|vector| self.send(vector))?;
            }
        }
        self.show();
        if self.notify() != before {
            self.wiring.lines.take_kicks(self.notify())?;
        }
        Ok(())
    }

    /// A descriptor that the device watches is readable.
    ///
    /// # Errors
    /// Those of the host only.
    pub fn process(&mut self, source: u32) -> Result<(), Error> {
        if self.state.virtio.status & NEEDS_RESET != 0 {
            return Ok(());
        }
        let result = self.device.process(source);
        self.survive(result)?;
        if self.device.config_has_changed() { self.tell_of_change() } else { Ok(()) }
    }

    /// §2.5.1, §4.1.4.3: the configuration, or the status, is no longer what the driver has read.
    fn tell_of_change(&mut self) -> Result<(), Error> {
        let virtio = &mut self.state.virtio;
        virtio.config_generation = virtio.config_generation.wrapping_add(1);
        match self.wiring.interrupts.get(usize::from(virtio.config_vector)) {
            Some(interrupt) => interrupt.trigger(),
            None => Ok(()),
        }
    }

    /// Where the BAR is, while the device answers there.
    fn bar(&self) -> Option<u64> {
        let bar = u64::from(self.state.bar);
        let (answers, bars) = (self.state.command & COMMAND_MEMORY != 0, &self.wiring.bars);
        (answers && bars.contains(&bar) && bar + BAR_SIZE <= bars.end).then_some(bar)
    }

    fn notify(&self) -> Option<u64> {
        self.bar().map(|bar| bar + NOTIFY)
    }

    /// As the registers say it.
    fn send(&mut self, vector: usize) -> Result<(), Error> {
        self.wiring.lines.send(vector, self.state.msix.message(vector))
    }

    /// What is the same from the device's first moment on.
    fn show_constants(&self) {
        let show = |register, value| self.wiring.config_space.set(register, value);
        let kind = self.device.device_type();
        let class = match kind {
            VIRTIO_ID_NET => 0x02_0000,
            VIRTIO_ID_BLOCK => 0x01_8000,
            _ => 0xff_0000,
        };
        show(ID, (FIRST_DEVICE + kind) << 16 | VENDOR);
        show(CLASS, class << 8 | REVISION);
        show(SUBSYSTEM, kind << 16 | VENDOR);
        show(CAPABILITIES, COMMON_CAPABILITY as u32);
        let capability = |place, next: u64, length: u32, kind: u32, offset: u64, size: u64| {
            show(place, kind << 24 | length << 16 | (next as u32) << 8 | VENDOR_SPECIFIC);
            // Of BAR 0.
            show(place + 4, 0);
            show(place + 8, offset as u32);
            show(place + 12, size as u32);
        };
        capability(COMMON_CAPABILITY, ISR_CAPABILITY, 16, COMMON_CFG, COMMON, common::SIZE);
        capability(ISR_CAPABILITY, DEVICE_CAPABILITY, 16, ISR_CFG, ISR, 1);
        capability(DEVICE_CAPABILITY, NOTIFY_CAPABILITY, 16, DEVICE_CFG, DEVICE, DEVICE_SIZE);
        let places = self.wiring.kicks.len() as u64 * NOTIFY_MULTIPLIER;
        capability(NOTIFY_CAPABILITY, MSIX_CAPABILITY, 20, NOTIFY_CFG, NOTIFY, places);
        show(NOTIFY_CAPABILITY + 16, NOTIFY_MULTIPLIER as u32);
        show(MSIX_CAPABILITY + 4, TABLE as u32);
        show(MSIX_CAPABILITY + 8, PENDING as u32);
    }

    /// What the driver can change.
    fn show(&self) {
        let State { command, bar, msix, .. } = &self.state;
        let show = |register, value| self.wiring.config_space.set(register, value);
        show(COMMAND, STATUS_CAPABILITIES | command);
        show(BAR, *bar);
        let last = msix.table.len() as u32 - 1;
        show(MSIX_CAPABILITY, msix.control | last << 16 | MSIX);
    }

    /// `length` bytes at most are wanted of it.
    fn read_common(&self, register: u64, length: usize) -> u32 {
        let state = &self.state.virtio;
        let queue = state.queue();
        let of_queue = |value: fn(&QueueState) -> u16| queue.map_or(0, value).into();
        match (register, length) {
            (common::DEVICE_FEATURE_SELECT, 4) => state.device_features_page,
            (common::DEVICE_FEATURE, 4) => page(self.device.features(), state.device_features_page),
            (common::DRIVER_FEATURE_SELECT, 4) => state.driver_features_page,
            (common::DRIVER_FEATURE, 4) => page(state.driver_features, state.driver_features_page),
            (common::CONFIG_MSIX_VECTOR, 2) => state.config_vector.into(),
            (common::NUM_QUEUES, 2) => state.queues.len() as u32,
            (common::DEVICE_STATUS, 1) => state.status.into(),
            (common::CONFIG_GENERATION, 1) => state.config_generation.into(),
            (common::QUEUE_SELECT, 2) => state.queue_select.into(),
            (common::QUEUE_SIZE, 2) => of_queue(|queue| queue.size),
            (common::QUEUE_MSIX_VECTOR, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (common::QUEUE_ENABLE, 2) => of_queue(|queue| queue.ready.into()),
            (common::QUEUE_NOTIFY_OFF, 2) => state.queue_select.into(),
            (common::QUEUE_DESC.., 4) => {
                let mut queue = queue.copied();
                let address = queue.as_mut().and_then(|queue| queue.address(register));
                address.map_or(0, |address| page(*address, half(register)))
            }
            _ => 0,
        }
    }

    /// §2.1.1, §3.1.1.
    fn write_status(&mut self, status: u8) -> Result<(), Error> {
        if status == RESET {
            self.device.reset();
            self.state.virtio = Virtio::new(self.device.queue_sizes());
            return Ok(());
        }
        let current = self.state.virtio.status;
        if status & FAILED != 0 {
            self.state.virtio.status |= FAILED;
            return Ok(());
        }
        if current & (FAILED | NEEDS_RESET) != 0 || !STEPS.contains(&(current, status)) {
            return Ok(());
        }
        match status & !current {
            // Step 6: the driver reads the bit back, and gives up when it is not there.
            FEATURES_OK if !self.features_are_right() => {}
            DRIVER_OK => {
                self.activate(Rings::New)?;
                self.state.virtio.status = status;
            }
            _ => self.state.virtio.status = status,
        }
        Ok(())
    }

    fn features_are_right(&self) -> bool {
        let driver = self.state.virtio.driver_features;
        driver & !self.device.features() == 0 && driver & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn is_active(&self) -> bool {
        self.state.virtio.status & (DRIVER_OK | FAILED | NEEDS_RESET) == DRIVER_OK
    }

    fn activate(&mut self, rings: Rings) -> Result<(), Error> {
        let features = self.state.virtio.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.state.virtio.queues.len());
        for (state, kick) in self.state.virtio.queues.iter().zip(&self.wiring.kicks) {
            let queue = state.build(&self.wiring.memory, event_idx, rings)?;
            let interrupt = match self.wiring.interrupts.get(usize::from(state.vector)) {
                Some(interrupt) => interrupt.clone(),
                None => Interrupt::new()?,
            };
            queues.push(ActiveQueue { queue, kick: Arc::clone(kick), interrupt });
        }
        self.device.activate(ActivationContext {
            memory: self.wiring.memory.clone(),
            features,
            queues,
            events: self.wiring.events.clone(),
        })
    }

    /// §2.1.1: a device in error asks for its reset. The host's errors are passed on.
    fn survive(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(Error::Driver(_)) = result {
            self.device.reset();
            self.state.virtio.status |= NEEDS_RESET;
            return self.tell_of_change();
        }
        result
    }
}

impl Msix {
    fn message(&self, vector: usize) -> Option<Message> {
        let [low, high, data, control] = self.table[vector];
        let sent = self.control & (MSIX_ENABLED | MSIX_MASKED) == MSIX_ENABLED;
        let address = u64::from(high) << 32 | u64::from(low);
        (sent && control & ENTRY_MASKED == 0).then_some(Message { address, data })
    }

    fn word(&self, word: u64) -> Option<&u32> {
        self.table.as_flattened().get(word as usize)
    }

    fn word_mut(&mut self, word: u64) -> Option<&mut u32> {
        self.table.as_flattened_mut().get_mut(word as usize)
    }
}

impl Virtio {
    fn new(queue_sizes: &[u16]) -> Self {
        let queue = |&max_size| QueueState {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        };
        Self {
            status: RESET,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    fn queue(&self) -> Option<&QueueState> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Every register but the status, each by its own width. §3.1.1: features are chosen before FEATURES_OK, queues set up between it
    /// and DRIVER_OK. A vector that there is not is none (§4.1.5.1.2).
    fn write(&mut self, register: u64, length: usize, value: u32, vectors: usize) {
        let vector = || u16::try_from(value).ok().filter(|vector| usize::from(*vector) < vectors);
        match (register, length) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_features_page = value,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_features_page = value,
            (common::DRIVER_FEATURE, 4) if self.status == ACKNOWLEDGE | DRIVER => {
                match self.driver_features_page {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                }
            }
            (common::CONFIG_MSIX_VECTOR, 2) => self.config_vector = vector().unwrap_or(NO_VECTOR),
            (common::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            _ if self.status == ACKNOWLEDGE | DRIVER | FEATURES_OK => {
                let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
                match (register, length) {
                    _ if queue.ready => {}
                    (common::QUEUE_MSIX_VECTOR, 2) => queue.vector = vector().unwrap_or(NO_VECTOR),
                    (common::QUEUE_SIZE, 2) => queue.size = value as u16,
                    (common::QUEUE_ENABLE, 2) => queue.ready = value == 1,
                    (common::QUEUE_DESC.., 4) => match (queue.address(register), half(register)) {
                        (Some(address), 0) => set_low(address, value),
                        (Some(address), _) => set_high(address, value),
                        (None, _) => {}
                    },
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

impl QueueState {
    /// The address of which `register` is a half.
    fn address(&mut self, register: u64) -> Option<&mut u64> {
        match register & !7 {
            common::QUEUE_DESC => Some(&mut self.descriptors),
            common::QUEUE_DRIVER => Some(&mut self.available),
            common::QUEUE_DEVICE => Some(&mut self.used),
            _ => None,
        }
    }

    /// A queue to work with; size, alignment and addresses are the driver's, so checked.
    fn build(&self, memory: &Memory, event_idx: bool, rings: Rings) -> Result<Queue, Error> {
        let mut queue = Queue::new(self.max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress::new(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress::new(self.available))?;
        queue.try_set_used_ring_address(GuestAddress::new(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory) {
            return Err(virtio_queue::Error::FindMemoryRegion.into());
        }
        if rings == Rings::AsLeft {
            let used = queue.used_idx(memory, Ordering::Acquire)?.0;
            queue.set_next_used(used);
            queue.set_next_avail(used);
        }
        Ok(queue)
    }
}

/// 32 of 64 bits.
fn page(value: u64, page: u32) -> u32 {
    match page {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Which half of its 64 bits a register is.
fn half(register: u64) -> u32 {
    (register & 4 != 0).into()
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
