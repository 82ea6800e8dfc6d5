//! What drivers read before they use a device: the configuration spaces of all devices of a PCI bus, as memory.
//!
//! Memory, laid out as PCI Express has it (ECAM): 4 KiB for each function of each device, all zeros where there is none, which Linux takes
//! as such. A guest maps it and cannot write it: enumerating costs no exits to the VMM but for what is written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::MmapRegion;
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegionError;

use crate::devices::Error;

/// Bytes of one device's: of its function 0, and of seven that it does not have.
pub const SIZE: u64 = FUNCTION << 3;
/// Bytes of one function's.
const FUNCTION: u64 = 4096;
/// Devices of a bus.
pub const MAX_DEVICES: usize = 32;

/// Those of a bus. Of its memory only that is there which something was written to.
#[derive(Clone)]
pub struct ConfigSpaces(Arc<MmapRegion>);

impl ConfigSpaces {
    /// Of a bus without devices.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn new() -> Result<Self, Error> {
        let region = MmapRegion::new(MAX_DEVICES * SIZE as usize).map_err(|error| {
            Error::host("map the configuration spaces of devices")(match error {
                MmapRegionError::Mmap(source) => source,
                other => io::Error::other(other),
            })
        })?;
        Ok(Self(Arc::new(region)))
    }

    /// For KVM: where it is in this process, and its bytes. It is unmapped with the last [`ConfigSpace`].
    pub fn place(&self) -> (u64, u64) {
        (self.0.as_ptr() as u64, self.0.size() as u64)
    }

    /// Device number `device`'s.
    ///
    /// # Panics
    /// When a bus has not that many.
    pub fn of(&self, device: usize) -> ConfigSpace {
        assert!(device < MAX_DEVICES, "a bus has no device {device}");
        ConfigSpace { all: Arc::clone(&self.0), start: device * SIZE as usize }
    }
}

/// That of one device.
pub struct ConfigSpace {
    all: Arc<MmapRegion>,
    start: usize,
}

impl ConfigSpace {
    /// `register` is a multiple of 4.
    pub fn set(&self, register: u64, value: u32) {
        self.at(register).store(value.to_le(), Ordering::Release);
    }

    pub fn get(&self, register: u64) -> u32 {
        u32::from_le(self.at(register).load(Ordering::Acquire))
    }

    fn at(&self, register: u64) -> &AtomicU32 {
        assert!(register < FUNCTION, "a function has no register {register:#x}");
        self.all.get_atomic_ref(self.start + register as usize).expect("aligned and within the bus")
    }
}
