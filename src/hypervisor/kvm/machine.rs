//! What the processors reach by ports and by memory that is none: the devices' registers, and the way out.
//!
//! Reads of what is not there give ones, as on a bus without a device; writes vanish. What the devices show is memory ([`Windows`]): no read of it gets here.
//!
//! [`Windows`]: crate::devices::mmio::Windows

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::End;
use super::acpi::{POWER_PORT, RESET, SLEEP_S5};
use super::memory::DEVICES;
use crate::devices::mmio::{self, MmioTransport};
use crate::devices::serial::{self, Serial};

/// Command port of the keyboard controller, and its command "pulse the reset line": the last resort of a kernel that reboots.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// All devices. Locks are held for one access, or one event.
pub struct Machine {
    devices: Vec<Mutex<MmioTransport>>,
    serial: Mutex<Serial>,
}

impl Machine {
    pub fn new(devices: Vec<MmioTransport>, serial: Serial) -> Self {
        Self { devices: devices.into_iter().map(Mutex::new).collect(), serial: Mutex::new(serial) }
    }

    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<End> {
        let (device, offset) = self.device(address)?;
        lock(device).write(offset, data).err().map(End::from)
    }

    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<End> {
        match (port, data) {
            (port, data) if serial::PORTS.contains(&port) => {
                let mut serial = lock(&self.serial);
                // More than one byte: a string instruction to the one port.
                data.iter().for_each(|byte| serial.write(port, *byte));
                None
            }
            (POWER_PORT, &[SLEEP_S5]) => Some(End::PowerOff),
            (POWER_PORT, &[RESET]) | (I8042_COMMAND, &[I8042_RESET]) => Some(End::Reset),
            _ => None,
        }
    }

    pub fn read_port(&self, port: u16, data: &mut [u8]) -> Option<End> {
        match port {
            port if serial::PORTS.contains(&port) => {
                let mut serial = lock(&self.serial);
                data.iter_mut().for_each(|byte| *byte = serial.read(port));
            }
            // Sleep status: awake.
            POWER_PORT => data.fill(0),
            _ => data.fill(0xff),
        }
        None
    }

    /// One of device `index`'s descriptors is readable.
    pub fn process(&self, index: u32, source: u32) -> Option<End> {
        let device = self.devices.get(index as usize)?;
        lock(device).process(source).err().map(End::from)
    }

    /// Puts another device in the place of one that no driver uses.
    pub fn replace(&self, index: usize, device: MmioTransport) {
        if let Some(place) = self.devices.get(index) {
            *lock(place) = device;
        }
    }

    /// All devices, none of which does anything meanwhile.
    pub fn frozen(&self) -> Vec<MutexGuard<'_, MmioTransport>> {
        self.devices.iter().map(lock).collect()
    }

    /// The guest has ended: what it printed last goes out.
    pub fn flush(&self) {
        lock(&self.serial).flush();
    }

    fn device(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(DEVICES)?;
        let device = self.devices.get(usize::try_from(offset / mmio::SIZE).ok()?)?;
        Some((device, offset % mmio::SIZE))
    }
}

/// A panic while a lock is held ends the process (profile) or, in tests, a test.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
