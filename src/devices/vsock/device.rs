//! The device: moves packets between virtqueues and muxer.
//!
//! Both directions go in batches with few system calls: one sendmsg(2) takes a whole packet from guest memory into the host's socket,
//! one readv(2) spreads what the socket holds over as many of the driver's buffers as the connection's turn allows (Linux gives
//! less than 4 KiB each, and a packet may not span buffers). Kicks are asked for only while the device waits for them.

use std::num::Wrapping;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use super::super::TURN;
use super::Error;
use super::muxer::{Key, Muxer, Next};
use super::packet::{Buffers, Direction, Header, receive_data};

/// Receive, transmit, event: virtio 1.2 §5.10.2.
pub const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Buffers that one turn of one connection may fill: about 64 KiB.
const BATCH: usize = 18;

/// What came of one turn of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// The driver is to be signalled.
    pub signal: bool,
    /// The queue is to be looked at again, unasked, when others have had their turn.
    pub more: bool,
}

/// A virtio-vsock device without a transport. After anything that may have given the guest
/// something to read ([`Self::process_host_events`], [`Self::process_tx`]), call [`Self::process_rx`].
#[derive(Debug)]
pub struct VsockDevice {
    guest_cid: u64,
    muxer: Muxer,
}

impl VsockDevice {
    /// `listener` takes connections to the guest; each first sends `CONNECT PORT\n` and gets `OK PORT\n` once
    /// the guest has accepted. `uplink` gets each of the guest's connections to [`rt_proto::BEACON_PORT`]: one byte and one descriptor.
    ///
    /// # Errors
    /// [`Error::Watch`]
    pub fn new(guest_cid: u64, listener: UnixListener, uplink: UnixStream) -> Result<Self, Error> {
        Ok(Self { guest_cid, muxer: Muxer::new(guest_cid, listener, uplink)? })
    }

    /// Feature bits that the device offers.
    pub fn features() -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// struct virtio_vsock_config, virtio 1.2 §5.10.4.
    pub fn config(&self) -> [u8; 8] {
        self.guest_cid.to_le_bytes()
    }

    /// Becomes true when the guest has made its first connection.
    pub fn greeted(&self) -> Arc<AtomicBool> {
        self.muxer.greeted()
    }

    /// Readable (level-triggered) when [`Self::process_host_events`] has something to do.
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        self.muxer.epoll_fd()
    }

    /// Ends all connections; the listener and the uplink stay.
    pub fn reset(&mut self) {
        self.muxer.reset();
    }

    /// Takes up what happened on the host's sockets.
    ///
    /// # Errors
    /// [`Error::Watch`]
    pub fn process_host_events(&mut self) -> Result<(), Error> {
        self.muxer.process_host_events()
    }

    /// Takes packets out of the transmit queue, as many as one turn is for.
    ///
    /// # Errors
    /// [`Error::Queue`]
    pub fn process_tx<M: GuestMemory>(&mut self, mem: &M, queue: &mut Queue) -> Result<Turn, Error> {
        let mut turn = Turn { more: true, ..Turn::default() };
        queue.disable_notification(mem)?;
        for _ in 0..TURN {
            let Some(chain) = pop(mem, queue)? else {
                if queue.enable_notification(mem)? {
                    continue;
                }
                turn.more = false;
                break;
            };
            let head = chain.head_index();
            if let Some(buffers) = Buffers::gather(mem, chain, Direction::FromGuest) {
                self.muxer.receive(&buffers);
            }
            queue.add_used(mem, head, 0)?;
            turn.signal = true;
        }
        turn.signal = turn.signal && queue.needs_notification(mem)?;
        Ok(turn)
    }

    /// Fills buffers of the receive queue with what there is for the guest, as many as one turn is for.
    ///
    /// # Errors
    /// [`Error::Queue`]
    pub fn process_rx<M: GuestMemory>(&mut self, mem: &M, queue: &mut Queue) -> Result<Turn, Error> {
        let mut turn = Turn { more: true, ..Turn::default() };
        queue.disable_notification(mem)?;
        for _ in 0..TURN {
            let Some(chain) = pop(mem, queue)? else {
                if queue.enable_notification(mem)? {
                    continue;
                }
                turn.more = false;
                break;
            };
            let head = chain.head_index();
            let buffers = Buffers::gather(mem, chain, Direction::ToGuest);
            let Some(buffers) = buffers.filter(|buffers| buffers.data_len() > 0) else {
                // Of no use to anybody.
                queue.add_used(mem, head, 0)?;
                turn.signal = true;
                continue;
            };
            match self.muxer.next() {
                Some(Next::Packet(header)) => {
                    buffers.set_header(header);
                    queue.add_used(mem, head, Header::SIZE as u32)?;
                    turn.signal = true;
                }
                Some(Next::Data(key, limit)) => {
                    turn.signal |= self.fill(mem, queue, (head, buffers), key, limit)?;
                }
                None => {
                    give_back(queue, 1);
                    turn.more = false;
                    break;
                }
            }
        }
        turn.signal = turn.signal && queue.needs_notification(mem)?;
        Ok(turn)
    }

    /// The event queue is for snapshots (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET): its buffers are kept until then.
    ///
    /// # Errors
    /// None so far.
    pub fn process_event<M: GuestMemory>(&mut self, _mem: &M, _queue: &mut Queue) -> Result<bool, Error> {
        Ok(false)
    }

    /// One turn of one connection: `first` and more buffers, filled by one read.
    fn fill<'m, M: GuestMemory>(
        &mut self,
        mem: &'m M,
        queue: &mut Queue,
        first: (u16, Buffers<'m, M>),
        key: Key,
        limit: usize,
    ) -> Result<bool, Error> {
        let mut room = first.1.data_len();
        let (mut heads, mut chains) = (vec![first.0], vec![first.1]);
        while room < limit && heads.len() < BATCH {
            let Some(chain) = pop(mem, queue)? else { break };
            let head = chain.head_index();
            let Some(buffers) = Buffers::gather(mem, chain, Direction::ToGuest) else {
                // One that is returned unusable could not be given back in order.
                give_back(queue, 1);
                break;
            };
            room += buffers.data_len();
            heads.push(head);
            chains.push(buffers);
        }
        let (read, header) = self.muxer.read(key, |socket| receive_data(socket, &chains, limit));
        let (mut left, mut filled) = (read, 0);
        for (head, buffers) in heads.iter().zip(&chains) {
            if left == 0 {
                break;
            }
            let len = left.min(buffers.data_len());
            buffers.set_header(Header { len: len as u32, ..header });
            queue.add_used(mem, *head, (Header::SIZE + len) as u32)?;
            left -= len;
            filled += 1;
        }
        give_back(queue, heads.len() - filled);
        Ok(filled > 0)
    }
}

/// The next available chain. Unlike `pop_descriptor_chain`, never `None` while the driver claims that there is more: a
/// ring with impossible indices is an error, not something to try for ever.
fn pop<'m, M: GuestMemory>(mem: &'m M, queue: &mut Queue) -> Result<Option<DescriptorChain<&'m M>>, Error> {
    if queue.avail_idx(mem, Ordering::Acquire)? == Wrapping(queue.next_avail()) {
        return Ok(None);
    }
    let chain = queue.iter(mem)?.next().ok_or(virtio_queue::Error::InvalidAvailRingIndex)?;
    Ok(Some(chain))
}

/// Makes the last `count` chains that were taken available again.
fn give_back(queue: &mut Queue, count: usize) {
    queue.set_next_avail(queue.next_avail().wrapping_sub(count as u16));
}
