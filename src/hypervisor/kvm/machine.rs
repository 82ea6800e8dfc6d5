//! What the processors reach by ports and by memory that is none: the devices' registers, and the way out.
//!
//! Reads of what is not there give ones, as on a bus without a device; writes vanish. The devices' configuration spaces are memory that cannot be
//! written ([`ConfigSpaces`]): no read of them gets here.
//!
//! [`ConfigSpaces`]: crate::devices::pci::config_space::ConfigSpaces

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::End;
use super::acpi::{POWER_PORT, RESET, SLEEP_S5};
use super::memory::{BARS, CONFIG_SPACES};
use crate::devices::pci::PciTransport;
use crate::devices::pci::config_space::{self, MAX_DEVICES};
use crate::devices::serial::{self, Serial};

/// Command port of the keyboard controller, and its command "pulse the reset line": the last resort of a kernel that reboots.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// All devices. Locks are held for one access, or one event.
pub struct Machine {
    /// By number, in all places of the bus.
    devices: Vec<Mutex<Option<PciTransport>>>,
    serial: Mutex<Serial>,
}

impl Machine {
    pub fn new(devices: Vec<PciTransport>, serial: Serial) -> Self {
        let places = devices.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        Self { devices: places.take(MAX_DEVICES).map(Mutex::new).collect(), serial: Mutex::new(serial) }
    }

    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<End> {
        let written = match address.checked_sub(CONFIG_SPACES) {
            Some(offset) => {
                let (device, register) = (offset / config_space::SIZE, offset % config_space::SIZE);
                let mut device = lock(self.devices.get(usize::try_from(device).ok()?)?);
                device.as_mut()?.write_config(register, data)
            }
            None => self.with_bar(address, |device, offset| device.write(offset, data))?,
        };
        written.err().map(End::from)
    }

    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.with_bar(address, |device, offset| device.read(offset, data));
    }

    /// What `access` gives for the device that answers at `address`.
    fn with_bar<T>(&self, address: u64, access: impl FnOnce(&mut PciTransport, u64) -> T) -> Option<T> {
        if !BARS.contains(&address) {
            return None;
        }
        for device in &self.devices {
            let mut device = lock(device);
            if let Some(device) = device.as_mut()
                && let Some(offset) = device.offset(address)
            {
                return Some(access(device, offset));
            }
        }
        None
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
        lock(device).as_mut()?.process(source).err().map(End::from)
    }

    /// Puts a device where none is.
    pub fn put(&self, index: usize, device: PciTransport) {
        if let Some(place) = self.devices.get(index) {
            *lock(place) = Some(device);
        }
    }

    /// All places for devices, in which nothing happens meanwhile.
    pub fn frozen(&self) -> Vec<MutexGuard<'_, Option<PciTransport>>> {
        self.devices.iter().map(lock).collect()
    }

    /// The guest has ended: what it printed last goes out.
    pub fn flush(&self) {
        lock(&self.serial).flush();
    }
}

/// A panic while a lock is held ends the process (profile) or, in tests, a test.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
