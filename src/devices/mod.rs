//! Virtio devices, apart from their transport.
//!
//! A transport ([`pci`]) owns registers, queue addresses and interrupts, and knows nothing of what a device does. At
//! DRIVER_OK it moves all that the device needs for operation into it ([`ActivationContext`]); reset takes it back.
//!
//! Devices run on the VMM's one I/O thread: a device watches descriptors ([`Events`]) and is called when one is readable
//! ([`VirtioDevice::process`]). vCPU threads come in only for registers; a lock per device keeps the two apart. A device whose queues another
//! process serves ([`fs`]) watches none of them: guest and server then signal each other past the VMM.
//!
//! A turn of a device takes so much from a queue and no more ([`TURN`]), and the rest comes after the other devices' turns: a driver that makes
//! buffers available as fast as they are used does not keep the thread for itself.
//!
//! Memory, queues and registers are the guest's, so an enemy's: what makes no sense costs the guest its device ([`Error::Driver`]), what
//! the host cannot do ends the VMM ([`Error::Host`]), and nothing panics.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub mod balloon;
pub mod block;
#[cfg(test)]
mod driver;
pub mod fs;
pub mod mem;
pub mod net;
pub mod pci;
pub mod rng;
pub mod serial;
pub mod vsock;
pub mod vsock_virtio;

/// Chains of descriptors that a device takes from a queue before it is another device's turn.
pub const TURN: usize = 256;

/// Guest memory, mapped shared from a memfd.
pub type Memory = GuestMemoryMmap<()>;

/// One virtio device.
pub trait VirtioDevice: Send {
    /// virtio 1.2 §5.
    fn device_type(&self) -> u32;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Feature bits offered, VIRTIO_F_VERSION_1 among them.
    fn features(&self) -> u64;

    /// The device-specific configuration space. No device here has anything that a driver may write.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Whether the configuration space has changed, for the driver to be told; true once for each change.
    fn config_has_changed(&mut self) -> bool {
        false
    }

    /// Starts operation: the driver is ready.
    ///
    /// # Errors
    /// [`Error`]; the device is as after a reset then.
    fn activate(&mut self, context: ActivationContext) -> Result<(), Error>;

    /// A watched descriptor is readable. May come late, when it no longer is, or the device no longer active.
    ///
    /// # Errors
    /// [`Error`]
    fn process(&mut self, source: u32) -> Result<(), Error>;

    /// Ends operation and gives up all of the [`ActivationContext`]. No buffer is touched afterwards.
    fn reset(&mut self);
}

/// All that a device needs for operation, moved into it at activation.
pub struct ActivationContext {
    pub memory: Memory,
    /// Negotiated feature bits.
    pub features: u64,
    /// As many as [`VirtioDevice::queue_sizes`]; one that the driver does not use is not `ready`.
    pub queues: Vec<ActiveQueue>,
    pub events: Events,
}

/// A queue in operation.
#[derive(Debug)]
pub struct ActiveQueue {
    pub queue: Queue,
    /// Readable when the driver has made buffers available.
    pub kick: Arc<EventFd>,
    pub interrupt: Interrupt,
}

impl ActiveQueue {
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd keeps its descriptor open at least as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.kick.as_raw_fd()) }
    }

    /// Makes the kick unreadable until the next one. The queue is to be looked at afterwards, not before.
    pub fn drain_kick(&self) {
        // Non-blocking; it fails only when there was no kick.
        let _ = self.kick.read();
    }

    /// Has it be this queue's turn again after the other devices': it may not be empty.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn come_again(&self) -> Result<(), Error> {
        self.kick.write(1).map_err(Error::host("kick a queue"))
    }

    /// Takes requests for one turn. `serve` gives how many bytes it has written into one.
    ///
    /// # Errors
    /// [`Error`]
    pub fn serve(
        &mut self,
        memory: &Memory,
        mut serve: impl FnMut(DescriptorChain<&Memory>) -> Result<u32, Error>,
    ) -> Result<(), Error> {
        self.drain_kick();
        let (mut used, mut is_empty) = (false, false);
        for _ in 0..TURN {
            let Some(chain) = self.queue.iter(memory)?.next() else {
                // More may have come just before kicks were asked for.
                if self.queue.enable_notification(memory)? {
                    continue;
                }
                is_empty = true;
                break;
            };
            let head = chain.head_index();
            let written = serve(chain)?;
            self.queue.add_used(memory, head, written)?;
            used = true;
        }
        if !is_empty {
            self.come_again()?;
        }
        if used && self.queue.needs_notification(memory)? { self.interrupt.trigger() } else { Ok(()) }
    }
}

/// A queue's interrupt.
#[derive(Debug, Clone)]
pub struct Interrupt(pub Arc<EventFd>);

impl Interrupt {
    /// One that reaches nobody yet.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn new() -> Result<Self, Error> {
        eventfd().map(|eventfd| Self(Arc::new(eventfd)))
    }

    /// Tells the driver that buffers were used.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn trigger(&self) -> Result<(), Error> {
        self.0.write(1).map_err(Error::host("signal an interrupt"))
    }
}

/// For kicks and interrupts: reading does not wait.
///
/// # Errors
/// [`Error::Host`]
pub fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("make an eventfd"))
}

/// Gives whole pages of guest memory back to the host: the guest finds zeros there. What is not guest memory, or of no file, is passed over.
fn give_back(memory: &Memory, start: u64, length: u64) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    let (mut start, end) = (start, start.saturating_add(length));
    while start < end {
        let Some(region) = memory.find_region(GuestAddress(start)) else { return Ok(()) };
        let (base, stop) = (region.start_addr().0, end.min(region.start_addr().0 + region.len()));
        let (first, last) = ((start - base).next_multiple_of(PAGE), (stop - base) / PAGE * PAGE);
        if let Some(file) = region.file_offset().filter(|_| first < last) {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (offset, length) = (file.start() + first, last - first);
            fallocate(file.file().as_fd(), flags, offset as i64, length as i64)
                .map_err(|errno| Error::host("give guest memory back")(errno.into()))?;
        }
        start = stop;
    }
    Ok(())
}

/// What a device may fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's fault: the device needs a reset, and nobody else notices.
    #[error("the driver broke a queue: {0}")]
    Driver(#[from] virtio_queue::Error),
    /// The host's: the VM cannot go on.
    #[error("cannot {what}")]
    Host {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the file server has ended")]
    FileServerGone,
    #[error("cannot set up the file server's {what}")]
    FileServer {
        what: &'static str,
        #[source]
        source: vhost::Error,
    },
}

impl Error {
    /// For `map_err`: names what failed.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Where one device has its descriptors watched.
#[derive(Debug, Clone)]
pub struct Events {
    epoll: Arc<Epoll>,
    device: u32,
}

/// A watched descriptor; dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    epoll: Arc<Epoll>,
    fd: OwnedFd,
}

impl Events {
    /// `source` comes back in [`VirtioDevice::process`] while `fd` is readable.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn watch(&self, fd: impl AsFd, source: u32) -> Result<Watch, Error> {
        self.watch_for(EpollFlags::EPOLLIN, fd, source)
    }

    /// `source` comes back in [`VirtioDevice::process`] once the peer of `fd` is gone.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn watch_hangup(&self, fd: impl AsFd, source: u32) -> Result<Watch, Error> {
        self.watch_for(EpollFlags::EPOLLRDHUP, fd, source)
    }

    fn watch_for(&self, flags: EpollFlags, fd: impl AsFd, source: u32) -> Result<Watch, Error> {
        let failed = "watch a descriptor";
        // A duplicate, so that it is still open, whatever becomes of `fd`, when the watch ends.
        let fd = fd.as_fd().try_clone_to_owned().map_err(Error::host(failed))?;
        let token = u64::from(self.device) << 32 | u64::from(source);
        let event = EpollEvent::new(flags, token);
        self.epoll.add(&fd, event).map_err(|errno| Error::host(failed)(errno.into()))?;
        Ok(Watch { epoll: Arc::clone(&self.epoll), fd })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only for a descriptor that is not watched, which is what is asked for.
        let _ = self.epoll.delete(&self.fd);
    }
}

/// The I/O thread's side of [`Events`].
#[derive(Debug, Clone)]
pub struct EventLoop(Arc<Epoll>);

impl EventLoop {
    /// # Errors
    /// [`Error::Host`]
    pub fn new() -> Result<Self, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        Ok(Self(Arc::new(epoll.map_err(|errno| Error::host("make an epoll instance")(errno.into()))?)))
    }

    /// Events of device number `device`.
    pub fn events(&self, device: u32) -> Events {
        Events { epoll: Arc::clone(&self.0), device }
    }

    /// Waits for events, and calls `process` with device and source of each.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn wait<E: From<Error>>(&self, mut process: impl FnMut(u32, u32) -> Result<(), E>) -> Result<(), E> {
        let mut events = [EpollEvent::empty(); 16];
        let count = match self.0.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => 0,
            result => result.map_err(|errno| Error::host("wait for events")(errno.into()))?,
        };
        for event in &events[..count] {
            process((event.data() >> 32) as u32, event.data() as u32)?;
        }
        Ok(())
    }
}
