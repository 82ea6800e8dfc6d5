//! virtio-fs, virtio 1.2 §5.11, served by another process over vhost-user: here is its front end only.
//!
//! Until the driver is ready nothing is asked of the server, so that the guest can boot while it still starts; what the
//! device says of itself until then is agreed by both being rt. From DRIVER_OK on the server has guest memory and the queues, kicks reach it
//! and its interrupts reach the guest without the VMM. The VMM notices only its end, which is the VM's end too: requests
//! under way would wait for ever.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::{ActivationContext, ActiveQueue, Error, Events, Memory, VirtioDevice, Watch};

/// struct virtio_fs_config's tag, §5.11.4.
pub const MAX_TAG: usize = 36;
/// hiprio, and one request queue: virtiofsd serves no more. Linux bounds a request's pages by the queue's size, and FUSE by 256.
const QUEUE_SIZES: [u16; 2] = [128, 512];
const REQUEST_QUEUES: u32 = 1;

/// The front end.
pub struct Fs {
    config: [u8; MAX_TAG + 4],
    server: Frontend,
    negotiated: bool,
    /// Guest memory that the server does not see: no buffer is there.
    hidden: Vec<Range<u64>>,
    /// Queues that the server works on.
    active: Vec<usize>,
    _hangup: Watch,
}

impl Fs {
    /// `socket` leads to the server. `tag` is what the guest mounts. `hidden` is guest memory, ascending and below its first gap, that
    /// other processes cannot see.
    ///
    /// # Errors
    /// [`Error::Host`]; also for a tag that is empty or longer than [`MAX_TAG`].
    pub fn new(
        tag: &str,
        socket: UnixStream,
        hidden: Vec<Range<u64>>,
        events: &Events,
    ) -> Result<Self, Error> {
        if tag.is_empty() || tag.len() > MAX_TAG {
            return Err(Error::host("use this virtio-fs tag")(io::ErrorKind::InvalidInput.into()));
        }
        let mut config = [0; MAX_TAG + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[MAX_TAG..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let hangup = events.watch_hangup(&socket, 0)?;
        let server = Frontend::from_stream(socket, QUEUE_SIZES.len() as u64);
        Ok(Self { config, server, negotiated: false, hidden, active: Vec::new(), _hangup: hangup })
    }

    /// Once for the life of the connection. Messages are not acknowledged: a server that dislikes one closes the
    /// connection, which is noticed.
    fn negotiate(&mut self) -> Result<(), Error> {
        if self.negotiated {
            return Ok(());
        }
        let server = &mut self.server;
        server.set_owner().map_err(failed("session"))?;
        let offered = server.get_features().map_err(failed("features"))?;
        let wanted = self.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & wanted != wanted {
            let missing = io::Error::other(format!("it lacks {:#x}", wanted & !offered));
            return Err(Error::host("use the file server's features")(missing));
        }
        let server = &mut self.server;
        server.get_protocol_features().map_err(failed("protocol features"))?;
        server.set_protocol_features(VhostUserProtocolFeatures::MQ).map_err(failed("protocol features"))?;
        self.negotiated = true;
        Ok(())
    }

    fn start_queue(
        &self,
        index: usize,
        active: &ActiveQueue,
        context: &ActivationContext,
    ) -> Result<(), Error> {
        let queue = &active.queue;
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host_address(&context.memory, queue.desc_table())?,
            used_ring_addr: host_address(&context.memory, queue.used_ring())?,
            avail_ring_addr: host_address(&context.memory, queue.avail_ring())?,
            log_addr: None,
        };
        let server = &self.server;
        server
            .set_vring_num(index, queue.size())
            .and_then(|()| server.set_vring_addr(index, &addresses))
            .and_then(|()| server.set_vring_base(index, queue.next_avail()))
            .and_then(|()| server.set_vring_call(index, &active.interrupt.0))
            .and_then(|()| server.set_vring_kick(index, &active.kick))
            .and_then(|()| server.clone().set_vring_enable(index, true))
            .map_err(failed("queue"))
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        self.negotiate()?;
        let features = context.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.server.set_features(features).map_err(failed("features"))?;
        self.server.set_mem_table(&regions(&context.memory, &self.hidden)?).map_err(failed("memory"))?;
        for (index, queue) in context.queues.iter().enumerate() {
            if queue.queue.ready() {
                self.start_queue(index, queue, &context)?;
                self.active.push(index);
            }
        }
        Ok(())
    }

    fn process(&mut self, _source: u32) -> Result<(), Error> {
        Err(Error::FileServerGone)
    }

    fn reset(&mut self) {
        for index in std::mem::take(&mut self.active) {
            // The reply to the second comes when the server has let go of the queue. Should it have ended, that is noticed elsewhere.
            let _ = self.server.set_vring_enable(index, false);
            let _ = self.server.get_vring_base(index);
        }
    }
}

/// Where the VMM has `address` mapped, by which vhost-user names places in memory.
fn host_address(memory: &Memory, address: u64) -> Result<u64, Error> {
    let pointer = memory.get_host_address(GuestAddress(address));
    pointer.map(|pointer| pointer as u64).map_err(|_| virtio_queue::Error::FindMemoryRegion.into())
}

/// Guest memory, but for what is hidden.
fn regions(memory: &Memory, hidden: &[Range<u64>]) -> Result<Vec<VhostUserMemoryRegionInfo>, Error> {
    let mut parts = Vec::new();
    for region in memory.iter() {
        let no_file = || Error::host("share guest memory")(io::ErrorKind::Unsupported.into());
        let file = region.file_offset().ok_or_else(no_file)?;
        let (base, length) = (region.start_addr().raw_value(), region.len());
        let mut start = base;
        let inside = hidden.iter().filter(|range| range.start >= base && range.end <= base + length);
        for end in inside.cloned().chain(std::iter::once(base + length..base + length)) {
            if end.start > start {
                parts.push(VhostUserMemoryRegionInfo {
                    guest_phys_addr: start,
                    memory_size: end.start - start,
                    userspace_addr: region.as_ptr() as u64 + (start - base),
                    mmap_offset: file.start() + (start - base),
                    mmap_handle: file.file().as_raw_fd(),
                });
            }
            start = end.end;
        }
    }
    Ok(parts)
}

fn failed(what: &'static str) -> impl FnOnce(vhost::Error) -> Error {
    move |source| Error::FileServer { what, source }
}

#[cfg(test)]
mod tests {
    use vm_memory::FileOffset;

    use super::*;
    use crate::devices::EventLoop;

    #[test]
    fn the_configuration_names_the_tag() {
        let (socket, _server) = UnixStream::pair().expect("a pair");
        let events = EventLoop::new().expect("an epoll instance").events(0);
        let fs = Fs::new("rt", socket, Vec::new(), &events).expect("a device");
        assert_eq!(fs.config()[..4], *b"rt\0\0");
        assert_eq!(fs.config()[36..], [1, 0, 0, 0]);
    }

    #[test]
    fn the_server_sees_all_but_what_is_hidden() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(10 << 20).expect("it grows");
        let part = |offset| Some(FileOffset::new(file.try_clone().expect("a descriptor"), offset));
        let (low, high) =
            ((GuestAddress(0), 8 << 20, part(0)), (GuestAddress(4 << 30), 2 << 20, part(8 << 20)));
        let memory = Memory::from_ranges_with_files([low, high]).expect("memory");
        let seen = regions(&memory, &[0x1000..0x3000, 0x3000..0x4000, 0x10_0000..8 << 20]).expect("regions");
        let seen: Vec<_> =
            seen.iter().map(|part| (part.guest_phys_addr, part.memory_size, part.mmap_offset)).collect();
        assert_eq!(seen, [(0, 0x1000, 0), (0x4000, 0xf_c000, 0x4000), (4 << 30, 2 << 20, 8 << 20)]);
    }

    #[test]
    fn a_tag_has_a_length() {
        let events = EventLoop::new().expect("an epoll instance").events(0);
        let new = |tag: &str| Fs::new(tag, UnixStream::pair().expect("a pair").0, Vec::new(), &events);
        assert!(new(&"t".repeat(MAX_TAG)).is_ok());
        assert!(new(&"t".repeat(MAX_TAG + 1)).is_err() && new("").is_err());
    }

    #[test]
    fn the_servers_end_is_noticed_before_and_after_activation() {
        let (socket, server) = UnixStream::pair().expect("a pair");
        let event_loop = EventLoop::new().expect("an epoll instance");
        let mut fs = Fs::new("rt", socket, Vec::new(), &event_loop.events(7)).expect("a device");
        drop(server);
        let mut seen = Vec::new();
        let result = event_loop.wait(|device, source| {
            seen.push(device);
            fs.process(source)
        });
        assert!(matches!(result, Err(Error::FileServerGone)));
        assert_eq!(seen, [7]);
        assert!(matches!(fs.negotiate(), Err(Error::FileServer { .. })));
        fs.reset();
    }
}
