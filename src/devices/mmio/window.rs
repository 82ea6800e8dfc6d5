//! What drivers read: the registers and configuration spaces of all devices, as memory.
//!
//! A guest maps it and cannot write it. A read then costs what one of memory costs, and no exit to the VMM: a driver reads
//! InterruptStatus at each interrupt. What it writes still exits, or is an ioeventfd.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::SIZE;
use crate::devices::Error;

const PAGE: usize = 4096;

/// Those of all devices of a machine, in whole pages.
#[derive(Clone)]
pub struct Windows(Arc<MmapRegion>);

impl Windows {
    /// # Errors
    /// [`Error::Host`]
    pub fn new(devices: usize) -> Result<Self, Error> {
        let length = (devices * SIZE as usize).next_multiple_of(PAGE);
        let region = MmapRegion::new(length).map_err(|error| {
            Error::host("map the registers of devices")(match error {
                MmapRegionError::Mmap(source) => source,
                other => io::Error::other(other),
            })
        })?;
        Ok(Self(Arc::new(region)))
    }

    /// For KVM: where it is in this process, and its bytes. It is unmapped with the last [`Window`].
    pub fn place(&self) -> (u64, u64) {
        (self.0.as_ptr() as u64, self.0.size() as u64)
    }

    /// Device number `index`'s.
    ///
    /// # Panics
    /// When there are not that many.
    pub fn of(&self, index: usize) -> Window {
        let start = index * SIZE as usize;
        assert!(start + SIZE as usize <= self.0.size(), "device {index} has registers");
        Window { all: Arc::clone(&self.0), start }
    }
}

/// Those of one device.
pub struct Window {
    all: Arc<MmapRegion>,
    start: usize,
}

impl Window {
    /// `register` is below the configuration space.
    pub fn set(&self, register: u32, value: u32) {
        self.at(register).store(value.to_le(), Ordering::Release);
    }

    /// The configuration space; the rest of it is zeros. A driver that reads while it changes may see parts of both: it learns of the
    /// change and reads again.
    pub fn set_config(&self, config: &[u8]) {
        let start = self.start + VIRTIO_MMIO_CONFIG as usize;
        let room = SIZE as usize - VIRTIO_MMIO_CONFIG as usize;
        let written = self.all.as_volatile_slice().write_slice(&config[..config.len().min(room)], start);
        written.expect("within the window");
    }

    fn at(&self, register: u32) -> &AtomicU32 {
        self.all.get_atomic_ref(self.start + register as usize).expect("aligned and within the window")
    }

    #[cfg(test)]
    pub fn get(&self, register: u32) -> u32 {
        u32::from_le(self.at(register).load(Ordering::Acquire))
    }

    #[cfg(test)]
    pub fn config(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; length];
        let start = self.start + VIRTIO_MMIO_CONFIG as usize + offset;
        self.all.as_volatile_slice().read_slice(&mut bytes, start).expect("within the window");
        bytes
    }
}
