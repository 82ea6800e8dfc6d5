//! virtio-balloon, virtio 1.2 §5.5, for free page reporting alone: the driver says which pages the guest has freed, and the host has them back. The
//! balloon itself stays empty.
//!
//! A reported page is the guest's all the while: it may take it again without a word once the report is used, and finds zeros.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueT;

use super::{ActivationContext, Error, VirtioDevice, Watch, give_back};

/// §5.5.3
const F_PAGE_REPORTING: u32 = 5;
/// Inflate and deflate, which nobody uses here.
const UNUSED: usize = 2;
/// struct virtio_balloon_config: number of pages, actual; both 0.
const CONFIG: [u8; 8] = [0; 8];

/// The device; it has no state but its queues.
#[derive(Default)]
pub struct Balloon {
    active: Option<(ActivationContext, Vec<Watch>)>,
}

impl Balloon {
    fn process_queue(context: &mut ActivationContext, index: usize) -> Result<(), Error> {
        let ActivationContext { memory, queues, .. } = context;
        let Some(active) = queues.get_mut(index) else { return Ok(()) };
        active.serve(memory, |chain| {
            // §5.5.6.7: device-writable, since their contents are lost.
            for pages in chain.writable() {
                give_back(memory, pages.addr().0, pages.len().into())?;
            }
            Ok(0)
        })
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    /// §5.5.2: the last is for reports. Linux takes the first that no feature needs instead, which is that of the statistics.
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 16, 32, 32, 32]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << F_PAGE_REPORTING
    }

    fn config(&self) -> &[u8] {
        &CONFIG
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        let reports = context.queues.iter().enumerate().skip(UNUSED);
        let reports = reports.filter(|(_, active)| active.queue.ready());
        let watches = reports.map(|(index, active)| context.events.watch(active.kick_fd(), index as u32));
        let watches = watches.collect::<Result<_, _>>()?;
        self.active = Some((context, watches));
        Ok(())
    }

    fn process(&mut self, source: u32) -> Result<(), Error> {
        match &mut self.active {
            Some((context, _)) => Self::process_queue(context, source as usize),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::driver::Driver;

    const REPORTS: u32 = 2;

    #[test]
    fn reported_pages_are_the_hosts_again() {
        let mut driver = Driver::new();
        let mut balloon = Balloon::default();
        balloon.activate(driver.context(5, REPORTS as usize)).unwrap();
        driver.fill(0x8_0000, 0x8000, 7);
        let before = driver.resident();
        // Of the second only the whole pages.
        driver.offer(&[(0x8_0000, 0x4000, true), (0x8_4800, 0x1800, true)]);
        balloon.process(REPORTS).unwrap();
        assert_eq!(driver.used(), [(0, 0)]);
        assert_eq!(before - driver.resident(), 0x5000);
        assert_eq!(driver.byte(0x8_3fff), 0);
        assert_eq!((driver.byte(0x8_4800), driver.byte(0x8_4fff), driver.byte(0x8_5000)), (7, 7, 0));
        assert_eq!(driver.byte(0x8_6000), 7);
    }

    #[test]
    fn what_is_not_guest_memory_is_passed_over() {
        let mut driver = Driver::new();
        let mut balloon = Balloon::default();
        balloon.activate(driver.context(5, REPORTS as usize)).unwrap();
        driver.fill(0x8_0000, 0x1000, 7);
        let before = driver.resident();
        // Read-only; beyond the end; around the end of the address space; of no length.
        driver.offer(&[(0x8_0000, 0x1000, false)]);
        driver.offer(&[(1 << 40, u32::MAX, true), (u64::MAX - 0xfff, 0x2000, true), (0x8_0000, 0, true)]);
        balloon.process(REPORTS).unwrap();
        assert_eq!(driver.used().len(), 2);
        assert_eq!(before, driver.resident());
        balloon.process(9).unwrap();
        balloon.reset();
        balloon.process(REPORTS).unwrap();
    }
}
