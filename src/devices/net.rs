//! virtio-net, virtio 1.2 §5.1, before a TAP device with a queue of its own for each pair of the guest's.
//!
//! Two ways for frames. With vhost-net the host's kernel moves them: queues, kicks and interrupts are handed over at activation, and the VMM
//! sees no frame ([`kernel`]). Without, the VMM's I/O thread copies them, one system call each ([`frames`]).
//!
//! Checksums and segmentation are left to whoever ends up with a frame, in both directions: up to 64 KiB pass at once,
//! spread over as many of the guest's buffers as it takes (mergeable buffers). With several pairs the guest says by the control queue how many
//! it uses, and the TAP device is told.

mod frames;
mod kernel;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_OK,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::{ActivationContext, Error, Memory, VirtioDevice, Watch};
use crate::sys::tun::{self, Offloads};
use frames::Frames;
use kernel::VhostNet;

/// Pairs of queues that a device may have.
pub const MAX_PAIRS: usize = 8;
/// Receive and transmit queues of all pairs, and the control queue.
const QUEUE_SIZES: [u16; 2 * MAX_PAIRS + 1] = [QUEUE_SIZE; 2 * MAX_PAIRS + 1];
const QUEUE_SIZE: u16 = 256;

/// §5.1.3: what driver and TAP device leave to each other.
const OFFLOADS: [u32; 8] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
];

/// The device.
pub struct Net {
    config: [u8; 10],
    taps: Vec<File>,
    mover: Mover,
    offloads: bool,
    active: Option<Active>,
}

/// Who moves the frames.
enum Mover {
    Kernel(Vec<VhostNet>),
    Vmm(Frames),
}

struct Active {
    context: ActivationContext,
    /// Of the queues that the VMM serves itself.
    _watches: Vec<Watch>,
}

impl Net {
    /// `taps` are the queues of one TAP device, made by [`tun::make`]; `vhost`, empty or as many, come from /dev/vhost-net.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn new(
        mac: [u8; 6],
        taps: Vec<OwnedFd>,
        vhost: Vec<OwnedFd>,
        memory: &Memory,
    ) -> Result<Self, Error> {
        let wrong = Error::host("make a network device of these descriptors");
        if !(1..=MAX_PAIRS).contains(&taps.len()) || (!vhost.is_empty() && vhost.len() != taps.len()) {
            return Err(wrong(std::io::ErrorKind::InvalidInput.into()));
        }
        let mut config = [0; 10];
        config[..6].copy_from_slice(&mac);
        // Between them the status, which is of no use without its feature.
        config[8..].copy_from_slice(&(taps.len() as u16).to_le_bytes());
        let taps: Vec<File> = taps.into_iter().map(File::from).collect();
        let mover = if vhost.is_empty() {
            Mover::Vmm(Frames::new(&taps)?)
        } else {
            Mover::Kernel(vhost.into_iter().map(|fd| VhostNet::new(fd, memory)).collect::<Result<_, _>>()?)
        };
        Ok(Self { config, taps, mover, offloads: true, active: None })
    }

    /// With `wanted` false every frame has its checksum and none is longer than the MTU, in both directions.
    pub fn with_offloads(self, wanted: bool) -> Self {
        Self { offloads: wanted, ..self }
    }

    fn pairs(&self) -> usize {
        self.taps.len()
    }

    /// §5.1.2: where the control queue is, when there is one.
    fn control_queue(&self, features: u64) -> Option<usize> {
        let has = |feature: u32| features & 1 << feature != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs() } else { 1 };
        has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs)
    }

    /// §5.1.6.5.5: how many pairs the guest uses. The TAP device spreads flows over its attached queues only.
    fn use_pairs(&self, count: usize) -> Result<(), Error> {
        for (index, tap) in self.taps.iter().enumerate().skip(1) {
            match tun::attach_queue(tap.as_fd(), index < count) {
                // It is so already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other.map_err(Error::host("attach a queue of a TAP device"))?,
            }
        }
        Ok(())
    }

    fn process_control(&mut self, index: usize) -> Result<(), Error> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let result = self.answer(&mut active.context, index);
        self.active = Some(active);
        result
    }

    fn answer(&self, context: &mut ActivationContext, index: usize) -> Result<(), Error> {
        let ActivationContext { memory, queues, .. } = context;
        queues[index].serve(memory, |chain| {
            let mut command = [0; 4];
            let whole = chain.clone().reader(memory)?.read_exact(&mut command).is_ok();
            let [class, number, pairs @ ..] = command;
            let pairs = usize::from(u16::from_le_bytes(pairs));
            let known = (u32::from(class), u32::from(number))
                == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
            let status = if whole && known && (1..=self.pairs()).contains(&pairs) {
                self.use_pairs(pairs)?;
                VIRTIO_NET_OK
            } else {
                VIRTIO_NET_ERR
            };
            Ok(chain.writer(memory)?.write_obj(status as u8).is_ok().into())
        })
    }

    /// What the guest's driver can finish itself, the TAP device need not.
    fn set_offloads(&self, features: u64) -> Result<(), Error> {
        let has = |feature: u32| features & 1 << feature != 0;
        let offloads = Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
        };
        // One device, so through one of its queues.
        tun::set_offloads(self.taps[0].as_fd(), offloads)
            .map_err(Error::host("set the offloads of a TAP device"))
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &'static [u16] {
        match self.pairs() {
            1 => &QUEUE_SIZES[..2],
            pairs => &QUEUE_SIZES[..2 * pairs + 1],
        }
    }

    fn features(&self) -> u64 {
        let mut features = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
        ]
        .iter()
        .chain(OFFLOADS.iter().filter(|_| self.offloads))
        .fold(0, |features, feature| features | 1 << feature);
        if self.pairs() > 1 {
            features |= 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
        }
        features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        self.set_offloads(context.features)?;
        self.use_pairs(1)?;
        let mut watches = Vec::new();
        if let Some(control) = self.control_queue(context.features)
            && let Some(queue) = context.queues.get(control).filter(|queue| queue.queue.ready())
        {
            watches.push(context.events.watch(queue.kick_fd(), control as u32)?);
        }
        for (pair, tap) in self.taps.iter().enumerate() {
            let queues = &context.queues[2 * pair..2 * pair + 2];
            // A driver without multi-queue sets up the first pair only.
            if !queues.iter().all(|queue| queue.queue.ready()) {
                continue;
            }
            match &mut self.mover {
                Mover::Kernel(vhost) => vhost[pair].start(tap, queues, &context)?,
                Mover::Vmm(frames) => watches.extend(frames.start(pair, &context)?),
            }
        }
        self.active = Some(Active { context, _watches: watches });
        Ok(())
    }

    fn process(&mut self, source: u32) -> Result<(), Error> {
        let features = self.active.as_ref().map_or(0, |active| active.context.features);
        if Some(source as usize) == self.control_queue(features) {
            return self.process_control(source as usize);
        }
        match (&mut self.mover, &mut self.active) {
            (Mover::Vmm(frames), Some(active)) => frames.process(source, &mut active.context),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.active = None;
        match &mut self.mover {
            Mover::Kernel(vhost) => vhost.iter_mut().for_each(VhostNet::stop),
            Mover::Vmm(frames) => frames.stop(),
        }
    }
}
