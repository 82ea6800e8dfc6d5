//! virtio-rng, virtio 1.2 §5.4: the host's random numbers.

use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes;

use super::{ActivationContext, Error, VirtioDevice, Watch};

const QUEUE: u32 = 0;
/// So much of a descriptor is filled: a driver asks again for more.
const MAX_BYTES: usize = 256;

/// The device; it has no state but its queue.
#[derive(Default)]
pub struct Rng {
    active: Option<(ActivationContext, Watch)>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        let watch = context.events.watch(context.queues[0].kick_fd(), QUEUE)?;
        self.active = Some((context, watch));
        Ok(())
    }

    fn process(&mut self, _source: u32) -> Result<(), Error> {
        let Some((context, _)) = &mut self.active else { return Ok(()) };
        let mut random = [0; MAX_BYTES];
        let ActivationContext { memory, queues, .. } = context;
        queues[0].serve(memory, |chain| {
            let mut written = 0;
            for descriptor in chain.writable() {
                let bytes = &mut random[..MAX_BYTES.min(descriptor.len() as usize)];
                fill_randomly(bytes)?;
                // A buffer outside guest memory stays empty, and so does all behind it.
                if memory.write_slice(bytes, descriptor.addr()).is_err() {
                    break;
                }
                written += bytes.len();
            }
            Ok(written as u32)
        })
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

fn fill_randomly(bytes: &mut [u8]) -> Result<(), Error> {
    // SAFETY: the pointer and the length are those of one exclusive slice.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole and without interruption, getrandom(2).
    if count == bytes.len() as isize {
        Ok(())
    } else {
        Err(Error::host("get random numbers")(io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::devices::driver::Driver;

    #[test]
    fn buffers_are_filled_and_what_is_not_guest_memory_is_passed_over() {
        let mut driver = Driver::new();
        let mut rng = Rng::default();
        rng.activate(driver.context(1, 0)).unwrap();
        driver.offer(&[(0x8_0000, 64, true)]);
        driver.offer(&[(1 << 40, 64, true), (0x8_0000, 64, true)]);
        driver.offer(&[(0x8_0000, 64, false)]);
        rng.process(QUEUE).unwrap();
        assert_eq!(driver.used(), [(0, 64), (1, 0), (3, 0)]);
        assert!((0..64).any(|place| driver.byte(0x8_0000 + place) != 0));
        assert!(!driver.kicked());
    }

    #[test]
    fn a_driver_does_not_keep_the_thread() {
        let mut driver = Driver::new();
        let mut rng = Rng::default();
        rng.activate(driver.context(1, 0)).unwrap();
        driver.offer(&[(0x8_0000, 1, true)]);
        let deadline = Instant::now() + Duration::from_secs(60);
        driver.while_offering_all(|| {
            // A turn that the driver has kept full comes again.
            while !driver.kicked() || driver.used().len() < 1000 {
                assert!(Instant::now() < deadline, "the driver has no turn itself");
                rng.process(QUEUE).unwrap();
            }
        });
    }
}
