//! virtio-rng, virtio 1.2 §5.4: the host's random numbers.

use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{QueueOwnedT, QueueT};
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
        let active = &mut context.queues[0];
        active.drain_kick();
        let mut random = [0; MAX_BYTES];
        let mut used = false;
        while let Some(chain) = active.queue.iter(&context.memory)?.next() {
            let head = chain.head_index();
            let mut written = 0;
            for descriptor in chain.writable() {
                let bytes = &mut random[..MAX_BYTES.min(descriptor.len() as usize)];
                fill_randomly(bytes)?;
                // A buffer outside guest memory stays empty, and so does all behind it.
                if context.memory.write_slice(bytes, descriptor.addr()).is_err() {
                    break;
                }
                written += bytes.len();
            }
            active.queue.add_used(&context.memory, head, written as u32)?;
            used = true;
        }
        if used && active.queue.needs_notification(&context.memory)? {
            context.interrupt.trigger()?;
        }
        Ok(())
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
