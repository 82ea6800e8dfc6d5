//! A device that is not there yet: its transport says so by the device ID 0 (virtio 1.2 §4.2.3.1), and a driver leaves it alone.

use super::{ActivationContext, Error, VirtioDevice};

/// The device without function.
pub struct Placeholder;

impl VirtioDevice for Placeholder {
    fn device_type(&self) -> u32 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[]
    }

    fn features(&self) -> u64 {
        0
    }

    fn activate(&mut self, _context: ActivationContext) -> Result<(), Error> {
        Ok(())
    }

    fn process(&mut self, _source: u32) -> Result<(), Error> {
        Ok(())
    }

    fn reset(&mut self) {}
}
