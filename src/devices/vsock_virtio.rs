//! virtio-vsock over rt's own transport: connects [`VsockDevice`] with queues, kicks and the I/O thread.

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::vsock::{self, QUEUE_SIZES, Turn, VsockDevice};
use super::{ActivationContext, ActiveQueue, Error, VirtioDevice, Watch};

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Source of the host's sockets; those of the queues are their indexes.
const HOST: usize = 3;

/// The device.
pub struct VsockVirtio {
    device: VsockDevice,
    config: [u8; 8],
    active: Option<(ActivationContext, Vec<Watch>)>,
}

impl VsockVirtio {
    pub fn new(device: VsockDevice) -> Self {
        let config = device.config();
        Self { device, config, active: None }
    }
}

impl VirtioDevice for VsockVirtio {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VsockDevice::features()
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        let mut watches = vec![context.events.watch(self.device.epoll_fd(), HOST as u32)?];
        for (index, queue) in context.queues.iter().enumerate() {
            watches.push(context.events.watch(queue.kick_fd(), index as u32)?);
        }
        self.active = Some((context, watches));
        Ok(())
    }

    fn process(&mut self, source: u32) -> Result<(), Error> {
        let Some((context, _)) = &mut self.active else { return Ok(()) };
        let ActivationContext { memory, queues, .. } = context;
        let source = source as usize;
        if let Some(queue) = queues.get(source) {
            queue.drain_kick();
        }
        match source {
            TX => {
                let turn = self.device.process_tx(memory, &mut queues[TX].queue)?;
                end(turn, &queues[TX])?;
            }
            EVENT => {
                let signal = self.device.process_event(memory, &mut queues[EVENT].queue)?;
                end(Turn { signal, more: false }, &queues[EVENT])?;
            }
            HOST => self.device.process_host_events()?,
            _ => {}
        }
        let turn = self.device.process_rx(memory, &mut queues[RX].queue)?;
        end(turn, &queues[RX])
    }

    fn reset(&mut self) {
        self.active = None;
        self.device.reset();
    }
}

/// What a turn leaves to do.
fn end(turn: Turn, queue: &ActiveQueue) -> Result<(), Error> {
    if turn.more {
        queue.come_again()?;
    }
    if turn.signal { queue.interrupt.trigger() } else { Ok(()) }
}

impl From<vsock::Error> for Error {
    fn from(error: vsock::Error) -> Self {
        match error {
            vsock::Error::Queue(error) => Self::Driver(error),
            vsock::Error::Watch(source) => Self::Host { what: "watch the sockets of vsock", source },
        }
    }
}
