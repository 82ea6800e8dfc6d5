//! vhost-net: the host's kernel serves a pair of queues.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::net::VhostNet as Backend;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::super::{ActivationContext, ActiveQueue, Error, Memory};

/// One pair's server, an open /dev/vhost-net.
pub struct VhostNet {
    file: File,
    memory: Arc<Memory>,
    running: bool,
}

impl VhostNet {
    /// # Errors
    /// [`Error::Host`]
    pub fn new(fd: OwnedFd, memory: &Memory) -> Result<Self, Error> {
        let this = Self { file: fd.into(), memory: Arc::new(memory.clone()), running: false };
        this.set_owner().map_err(failed("take vhost-net"))?;
        Ok(this)
    }

    /// Hands a pair of queues over, receive and transmit.
    ///
    /// # Errors
    /// [`Error::Host`]
    pub fn start(
        &mut self,
        tap: &File,
        queues: &[ActiveQueue],
        context: &ActivationContext,
    ) -> Result<(), Error> {
        // Of the rest the TAP device knows.
        let offered = self.get_features().map_err(failed("ask vhost-net for its features"))?;
        self.set_features(context.features & offered).map_err(failed("set vhost-net's features"))?;
        self.set_mem_table(&self.regions()).map_err(failed("give vhost-net the guest's memory"))?;
        for (index, queue) in queues.iter().enumerate() {
            self.start_queue(index, queue).map_err(failed("give vhost-net a queue"))?;
        }
        self.running = true;
        for index in 0..queues.len() {
            self.set_backend(index, Some(tap)).map_err(failed("connect vhost-net with a TAP device"))?;
        }
        Ok(())
    }

    fn start_queue(&self, index: usize, active: &ActiveQueue) -> vhost::Result<()> {
        let queue = &active.queue;
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: queue.desc_table(),
            used_ring_addr: queue.used_ring(),
            avail_ring_addr: queue.avail_ring(),
            log_addr: None,
        };
        self.set_vring_num(index, queue.size())?;
        self.set_vring_base(index, 0)?;
        self.set_vring_addr(index, &addresses)?;
        self.set_vring_call(index, &active.interrupt.0)?;
        self.set_vring_kick(index, &active.kick)
    }

    /// Takes the queues back. The kernel touches no buffer afterwards.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            for index in 0..2 {
                // It fails only for what is not connected.
                let _ = self.set_backend(index, None);
            }
        }
    }

    fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |region: &vm_memory::GuestRegionMmap| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: -1,
        };
        self.memory.iter().map(region).collect()
    }
}

impl AsRawFd for VhostNet {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for VhostNet {
    type AS = Arc<Memory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

impl Backend for VhostNet {
    fn set_backend(&self, queue: usize, file: Option<&File>) -> vhost::Result<()> {
        let backend = vhost_vring_file { index: queue as u32, fd: file.map_or(-1, |file| file.as_raw_fd()) };
        // SAFETY: the kernel reads one vhost_vring_file, which outlives the call.
        match unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &backend) } {
            0.. => Ok(()),
            _ => Err(vhost::Error::IoctlError(std::io::Error::last_os_error())),
        }
    }
}

fn failed(what: &'static str) -> impl FnOnce(vhost::Error) -> Error {
    move |error| Error::Host { what, source: std::io::Error::other(error) }
}
