//! The VMM moves the frames itself: from a TAP device's queue into the guest's buffers, and back.
//!
//! A frame that finds no room in the guest's buffers stays here, and its TAP queue is not watched, until the guest has made
//! room: the queue in the host's kernel fills, and drops what is too much. A turn moves a queue's worth of frames at most, so that
//! other devices have theirs.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::super::{ActivationContext, ActiveQueue, Error, Memory, TURN, Watch};
use crate::sys::tun::VNET_HEADER;

/// The largest frame: 64 KiB of TCP with all headers (§5.1.6.3.1), and its own header.
const MAX_FRAME: usize = VNET_HEADER + 65_562;
/// In the header: how many buffers a frame is spread over (§5.1.6).
const NUM_BUFFERS: usize = 10;
/// Sources of TAP queues, beside those of the guest's, which are their numbers.
const TAP: u32 = 0x100;

/// Pairs of queues, all moved by one thread.
pub struct Frames {
    pairs: Vec<Pair>,
    /// Of a frame on its way to the TAP device.
    outgoing: Box<[u8]>,
}

struct Pair {
    tap: File,
    /// The frame that waits for room, and its length; 0 for none.
    incoming: Box<[u8]>,
    waiting: usize,
    watch: Option<Watch>,
    started: bool,
    /// The TAP device has been removed.
    gone: bool,
}

impl Frames {
    /// # Errors
    /// [`Error::Host`]
    pub fn new(taps: &[File]) -> Result<Self, Error> {
        let pair = |tap: &File| {
            fcntl(tap, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let incoming = vec![0; MAX_FRAME].into();
            Ok(Pair { tap: tap.try_clone()?, incoming, waiting: 0, watch: None, started: false, gone: false })
        };
        let pairs: io::Result<Vec<Pair>> = taps.iter().map(pair).collect();
        Ok(Self {
            pairs: pairs.map_err(Error::host("use a TAP device"))?,
            outgoing: vec![0; MAX_FRAME].into(),
        })
    }

    /// Starts a pair; gives what watches the guest's queues.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn start(&mut self, number: usize, context: &ActivationContext) -> Result<[Watch; 2], Error> {
        let pair = &mut self.pairs[number];
        pair.waiting = 0;
        pair.started = true;
        pair.watch = Some(context.events.watch(pair.tap.as_fd(), TAP + number as u32)?);
        let watch = |queue: usize| context.events.watch(context.queues[queue].kick_fd(), queue as u32);
        Ok([watch(2 * number)?, watch(2 * number + 1)?])
    }

    pub fn stop(&mut self) {
        for pair in &mut self.pairs {
            pair.watch = None;
            pair.started = false;
        }
    }

    /// # Errors
    /// [`Error`]
    pub fn process(&mut self, source: u32, context: &mut ActivationContext) -> Result<(), Error> {
        let (number, transmits) = match source.checked_sub(TAP) {
            Some(number) => (number as usize, false),
            None => ((source / 2) as usize, source % 2 == 1),
        };
        let Some(pair) = self.pairs.get_mut(number).filter(|pair| pair.started) else { return Ok(()) };
        let queue = &mut context.queues[2 * number + usize::from(transmits)];
        if source < TAP {
            queue.drain_kick();
        }
        let used = if transmits {
            transmit(&pair.tap, &mut self.outgoing, queue, &context.memory)?
        } else {
            let mergeable = context.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
            let used = pair.receive(&mut queue.queue, &context.memory, mergeable)?;
            pair.watch = match (pair.waiting, pair.watch.take()) {
                _ if pair.gone => None,
                (0, None) => Some(context.events.watch(pair.tap.as_fd(), TAP + number as u32)?),
                (0, watch) => watch,
                _ => None,
            };
            used
        };
        if used && queue.queue.needs_notification(&context.memory)? {
            queue.interrupt.trigger()?;
        }
        Ok(())
    }
}

impl Pair {
    /// Moves what the TAP device has into the guest's buffers; true when some were used.
    fn receive(&mut self, queue: &mut Queue, memory: &Memory, mergeable: bool) -> Result<bool, Error> {
        let mut used = false;
        for _ in 0..TURN {
            if self.waiting == 0 {
                match self.tap.read(&mut self.incoming) {
                    Ok(count) if count > VNET_HEADER => self.waiting = count,
                    Ok(_) => continue,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => {
                        self.gone = error.kind() != ErrorKind::WouldBlock;
                        break;
                    }
                }
            }
            let frame = &self.incoming[..self.waiting];
            if !put(frame, queue, memory, mergeable)? {
                return Ok(used);
            }
            self.waiting = 0;
            used = true;
        }
        Ok(used)
    }
}

/// Puts a frame into as many buffers as it takes; false, and none is used, when there are too few: the driver then kicks when it has
/// made more available, whose number is counted from all that there are, taken back or not. A driver that wants frames in one piece
/// has to have buffers for them.
fn put(frame: &[u8], queue: &mut Queue, memory: &Memory, mergeable: bool) -> Result<bool, Error> {
    let mut rest = frame;
    let mut header = None;
    let mut used: Vec<(u16, u32)> = Vec::new();
    while !rest.is_empty() {
        let Some(chain) = queue.iter(memory)?.next() else {
            // More may have come just before kicks were asked for.
            if queue.enable_notification(memory)? {
                continue;
            }
            for _ in &used {
                queue.go_to_previous_position();
            }
            return Ok(false);
        };
        let head = chain.head_index();
        let mut writer = chain.writer(memory)?;
        if header.is_none() {
            // Later, when the number of buffers is known.
            let behind = writer.split_at(VNET_HEADER)?;
            header = Some(std::mem::replace(&mut writer, behind));
            rest = &rest[VNET_HEADER..];
        }
        let count = rest.len().min(writer.available_bytes());
        let one_piece = mergeable || count == rest.len();
        // A buffer without room, one after the other, would be taken for ever.
        if !one_piece || (count == 0 && !used.is_empty()) {
            return Err(virtio_queue::Error::InvalidChain.into());
        }
        writer.write_all(&rest[..count]).map_err(|_| virtio_queue::Error::InvalidChain)?;
        let header_bytes = if used.is_empty() { VNET_HEADER } else { 0 };
        used.push((head, (count + header_bytes) as u32));
        rest = &rest[count..];
    }
    if let Some(mut header) = header {
        let mut bytes: [u8; VNET_HEADER] =
            frame[..VNET_HEADER].try_into().expect("the slice has this length");
        bytes[NUM_BUFFERS..].copy_from_slice(&(used.len() as u16).to_le_bytes());
        header.write_all(&bytes).map_err(|_| virtio_queue::Error::InvalidChain)?;
    }
    for (head, length) in used {
        queue.add_used(memory, head, length)?;
    }
    Ok(true)
}

/// Moves the guest's frames to the TAP device; true when buffers were used. What the device does not take is lost, as on a wire.
fn transmit(
    mut tap: &File,
    buffer: &mut [u8],
    active: &mut ActiveQueue,
    memory: &Memory,
) -> Result<bool, Error> {
    let mut used = false;
    for _ in 0..TURN {
        let Some(chain) = active.queue.iter(memory)?.next() else {
            if active.queue.enable_notification(memory)? {
                continue;
            }
            return Ok(used);
        };
        let head = chain.head_index();
        let mut reader = chain.reader(memory)?;
        let length = reader.available_bytes();
        if let Some(frame) = buffer.get_mut(..length).filter(|frame| frame.len() > VNET_HEADER) {
            reader.read_exact(frame).map_err(|_| virtio_queue::Error::InvalidChain)?;
            let _ = tap.write(frame);
        }
        active.queue.add_used(memory, head, 0)?;
        used = true;
    }
    // The rest has its turn after the other devices'.
    active.come_again()?;
    Ok(used)
}
