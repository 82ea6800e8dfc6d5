//! The virtio-mmio transport, virtio 1.2 §4.2: registers, and the device's life between reset and DRIVER_OK.
//!
//! ```text
//!            ACKNOWLEDGE      DRIVER      FEATURES_OK        DRIVER_OK
//!   reset ---------------> · --------> · -------------> · ---------------> active
//!     ^                                   refused when      queues checked;   |
//!     |                                   bits are wrong    device activated  | Error::Driver
//!     +--- 0 written to Status, at any time <---- NEEDS_RESET <---------------+
//! ```
//!
//! Buffers are announced in both directions past this code: KVM turns a write to QueueNotify into the queue's kick (ioeventfd), and the
//! interrupt eventfd into an edge on the device's own line (irqfd). Since whoever serves a queue may be another process, which cannot
//! set a bit in InterruptStatus, that register always says that buffers may have been used; the driver then looks and finds what there is.
//!
//! What a driver writes out of turn is ignored, as §2.1 and §4.2.2.1 let a device do. What it reads lies in memory ([`window`]), renewed whenever
//! it writes.

mod window;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

pub use window::{Window, Windows};

use super::{ActivationContext, ActiveQueue, Error, Events, Interrupt, Memory, VirtioDevice};

/// Bytes of one device's registers: 256, and as many for its configuration space.
pub const SIZE: u64 = 0x200;

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"rt  ");

const RESET: u32 = 0;
const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// §3.1.1: the driver's steps. From status to status, FAILED and NEEDS_RESET aside.
const STEPS: [(u32, u32); 4] = [
    (RESET, ACKNOWLEDGE),
    (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
    (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
];

/// A device and its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    state: State,
    wiring: Wiring,
}

/// What connects a device with its guest.
pub struct Wiring {
    pub memory: Memory,
    pub window: Window,
    pub events: Events,
    pub interrupt: Interrupt,
    /// One for each queue.
    pub kicks: Vec<Arc<EventFd>>,
}

/// The registers, as a snapshot keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    config_changed: bool,
    config_generation: u32,
    queue_select: u32,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    max_size: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl MmioTransport {
    pub fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> Self {
        let state = State::new(device.queue_sizes());
        let transport = Self { device, state, wiring };
        transport.show_constants();
        transport.show();
        transport
    }

    /// A device in the state of another one, which had no buffer of the driver's at that time: it goes on from where the used
    /// ring ends.
    ///
    /// # Errors
    /// [`Error::Driver`] when the state is not one of this device.
    pub fn resumed(device: Box<dyn VirtioDevice>, state: State, wiring: Wiring) -> Result<Self, Error> {
        if !state.queues.iter().map(|queue| &queue.max_size).eq(device.queue_sizes()) {
            return Err(virtio_queue::Error::InvalidSize.into());
        }
        let active = state.status & (DRIVER_OK | FAILED | NEEDS_RESET) == DRIVER_OK;
        let mut transport = Self { device, state, wiring };
        transport.show_constants();
        transport.show();
        if active {
            transport.activate(Rings::AsLeft)?;
            // What either side announced last may have got lost.
            for kick in &transport.wiring.kicks {
                kick.write(1).map_err(Error::host("wake a device"))?;
            }
            transport.wiring.interrupt.trigger()?;
        }
        Ok(transport)
    }

    /// The registers; the rest of a device's state is in guest memory while it has no buffer of the driver's.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// For KVM to be told of: QueueNotify's value, and what it stands for.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.wiring.kicks
    }

    pub fn interrupt(&self) -> &EventFd {
        &self.wiring.interrupt.0
    }

    /// The driver writes `data` at `offset`.
    ///
    /// # Errors
    /// Those of the host only; the driver's own are in Status.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Ok(());
        };
        let value = u32::from_le_bytes(bytes);
        let mut result = Ok(());
        if register == VIRTIO_MMIO_STATUS {
            result = self.write_status(value);
            result = self.survive(result);
        } else {
            self.state.write(register, value);
        }
        self.show();
        result
    }

    /// A descriptor that the device watches is readable.
    ///
    /// # Errors
    /// Those of the host only.
    pub fn process(&mut self, source: u32) -> Result<(), Error> {
        if self.state.status & NEEDS_RESET != 0 {
            return Ok(());
        }
        let result = self.device.process(source);
        self.survive(result)?;
        if self.device.config_has_changed() { self.tell_of_change() } else { Ok(()) }
    }

    /// §2.5.1, §4.2.2.1: the configuration space, or the status, is no longer what the driver has read.
    fn tell_of_change(&mut self) -> Result<(), Error> {
        self.state.config_changed = true;
        self.state.config_generation = self.state.config_generation.wrapping_add(1);
        self.wiring.window.set_config(self.device.config());
        self.show();
        self.wiring.interrupt.trigger()
    }

    /// What is the same from the device's first moment on, but for changes of its configuration.
    fn show_constants(&self) {
        let window = &self.wiring.window;
        window.set(VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        window.set(VIRTIO_MMIO_VERSION, VERSION);
        window.set(VIRTIO_MMIO_DEVICE_ID, self.device.device_type());
        window.set(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // No shared memory region: §4.2.2 wants a length of -1.
        window.set(VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX);
        window.set(VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX);
        window.set_config(self.device.config());
    }

    /// What depends on the state.
    fn show(&self) {
        let (window, state) = (&self.wiring.window, &self.state);
        let config = if state.config_changed { VIRTIO_MMIO_INT_CONFIG } else { 0 };
        let queue = state.queue();
        window.set(VIRTIO_MMIO_DEVICE_FEATURES, page(self.device.features(), state.device_features_page));
        window.set(VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max_size.into()));
        window.set(VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(|queue| queue.ready).into());
        window.set(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING | config);
        window.set(VIRTIO_MMIO_STATUS, state.status);
        window.set(VIRTIO_MMIO_CONFIG_GENERATION, state.config_generation);
    }

    /// §2.1.1, §3.1.1.
    fn write_status(&mut self, status: u32) -> Result<(), Error> {
        if status == RESET {
            self.device.reset();
            self.state = State::new(self.device.queue_sizes());
            return Ok(());
        }
        if status & FAILED != 0 {
            self.state.status |= FAILED;
            return Ok(());
        }
        let broken = self.state.status & (FAILED | NEEDS_RESET) != 0;
        if broken || !STEPS.contains(&(self.state.status, status)) {
            return Ok(());
        }
        match status & !self.state.status {
            // Step 6: the driver reads the bit back, and gives up when it is not there.
            FEATURES_OK if !self.features_are_right() => {}
            DRIVER_OK => {
                self.activate(Rings::New)?;
                self.state.status = status;
            }
            _ => self.state.status = status,
        }
        Ok(())
    }

    fn features_are_right(&self) -> bool {
        let driver = self.state.driver_features;
        driver & !self.device.features() == 0 && driver & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self, rings: Rings) -> Result<(), Error> {
        let features = self.state.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.state.queues.len());
        for (state, kick) in self.state.queues.iter().zip(&self.wiring.kicks) {
            let queue = state.build(&self.wiring.memory, event_idx, rings)?;
            queues.push(ActiveQueue { queue, kick: Arc::clone(kick) });
        }
        self.device.activate(ActivationContext {
            memory: self.wiring.memory.clone(),
            features,
            queues,
            interrupt: self.wiring.interrupt.clone(),
            events: self.wiring.events.clone(),
        })
    }

    /// §2.1.1: a device in error asks for its reset. The host's errors are passed on.
    fn survive(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(Error::Driver(_)) = result {
            self.device.reset();
            self.state.status |= NEEDS_RESET;
            return self.tell_of_change();
        }
        result
    }
}

impl State {
    fn new(queue_sizes: &[u16]) -> Self {
        let queue = |&max_size| QueueState { max_size, ..QueueState::default() };
        Self { queues: queue_sizes.iter().map(queue).collect(), ..Self::default() }
    }

    fn queue(&self) -> Option<&QueueState> {
        self.queues.get(self.queue_select as usize)
    }

    /// Every register but Status. §4.2.2: features are chosen before FEATURES_OK, queues set up between it and DRIVER_OK.
    fn write(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status == ACKNOWLEDGE | DRIVER => {
                match self.driver_features_page {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_INTERRUPT_ACK if value & VIRTIO_MMIO_INT_CONFIG != 0 => self.config_changed = false,
            _ if self.status == ACKNOWLEDGE | DRIVER | FEATURES_OK => {
                if let Some(queue) = self.queues.get_mut(self.queue_select as usize) {
                    queue.write(register, value);
                }
            }
            _ => {}
        }
    }
}

impl QueueState {
    fn write(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_QUEUE_READY => self.ready = value == 1,
            _ if self.ready => {}
            VIRTIO_MMIO_QUEUE_NUM => self.size = u16::try_from(value).unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.used, value),
            _ => {}
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

/// 32 of the 64 feature bits.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
