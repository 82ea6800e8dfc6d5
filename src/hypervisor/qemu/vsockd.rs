//! `rt vsockd`: the vsock device for QEMU, in a process of its own, over vhost-user.
//!
//! Started by the QEMU backend with three descriptors: [`LINK`], a Unix listener at which QEMU's connection already
//! waits, then the listener and the uplink of [`VsockDevice`]. It ends when QEMU closes its connection.
//!
//! Threads are the library's: `vsock` answers QEMU's requests, `vring_worker` moves packets, the main one waits for the end. QEMU itself
//! serves the event queue.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::vsock::{Error, VsockDevice};
use crate::jail::{self, Jail, Limits};
use crate::sys::fd::inherited;

/// Descriptor: a listener whose one connection is QEMU's.
pub const LINK: RawFd = 3;
/// Descriptor: takes the host's connections to the guest.
pub const LISTENER: RawFd = 4;
/// Descriptor: gets the guest's connections to the beacon port.
pub const UPLINK: RawFd = 5;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

const RX: usize = 0;
const TX: usize = 1;
/// Queues that QEMU leaves to the back end.
const QUEUES: usize = 2;
/// QEMU lets the driver choose any size up to this, whatever the device had in mind.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Main, the library's request and worker threads.
const THREADS: u64 = 3;
/// For 1023 connections, guest memory, and rings.
const OPEN_FILES: u64 = 1100;
/// Event number of the host's sockets; up to [`QUEUES`] they are the library's.
const HOST: u16 = QUEUES as u16 + 1;
/// Event number of what a turn has left in the queues.
const AGAIN: u16 = HOST + 1;

/// The verb; `args` is the sandbox's ID, for ps(1).
pub fn main(_args: &[OsString]) -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsockd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let link = UnixListener::from(inherited(LINK)?);
    let listener = UnixListener::from(inherited(LISTENER)?);
    let uplink = UnixStream::from(inherited(UPLINK)?);
    jail::enter(&Jail::sealed(Limits { open_files: OPEN_FILES, threads: THREADS, file_size: None }))?;

    let device = VsockDevice::new(u64::from(rt_proto::GUEST_CID), listener, uplink)?;
    let sockets = device.epoll_fd().as_raw_fd();
    let memory = Memory::new(GuestMemoryMmap::new());
    let exit = new_event_consumer_and_notifier(EventFlag::CLOEXEC)?;
    let again = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    let left = again.as_raw_fd();
    let exit = Mutex::new(Some(exit));
    let backend = Backend { device: Some(device), memory: memory.clone(), again, exit };
    let backend = Arc::new(Mutex::new(backend));
    let failed = |error: vhost_user_backend::Error| anyhow::anyhow!("vhost-user: {error}");
    let mut daemon = VhostUserDaemon::new("vsock".into(), backend, memory).map_err(failed)?;
    for worker in daemon.get_epoll_handlers() {
        worker.register_listener(sockets, EventSet::IN, u64::from(HOST))?;
        worker.register_listener(left, EventSet::IN, u64::from(AGAIN))?;
    }
    daemon.start(&mut link.into()).map_err(failed)?;
    // However the connection ends, QEMU ended it, and the caller learns why from QEMU.
    let _ = daemon.wait();
    Ok(())
}

struct Backend {
    /// `None` once the guest has broken its queues: its connections are then closed, and no others taken.
    device: Option<VsockDevice>,
    memory: Memory,
    /// Readable when a turn has left something in the queues.
    again: EventFd,
    /// Ends the worker; taken by the library.
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl Backend {
    /// What one event asks for, and then whatever there is for the guest.
    fn process(&mut self, event: u16, vrings: &[VringMutex]) -> Result<(), Error> {
        let Some(device) = &mut self.device else { return Ok(()) };
        let memory = self.memory.memory();
        let mut more = false;
        match event {
            HOST => device.process_host_events()?,
            // Non-blocking; it fails only when nothing was left.
            AGAIN => drop(self.again.read()),
            _ => {}
        }
        if event == TX as u16 || event == AGAIN {
            let mut ring = vrings[TX].get_mut();
            if ring.is_enabled() && ring.get_queue().ready() {
                let turn = device.process_tx(&*memory, ring.get_queue_mut())?;
                more |= turn.more;
                if turn.signal {
                    ring.signal_used_queue().map_err(Error::Watch)?;
                }
            }
        }
        let mut ring = vrings[RX].get_mut();
        if ring.is_enabled() && ring.get_queue().ready() {
            let turn = device.process_rx(&*memory, ring.get_queue_mut())?;
            more |= turn.more;
            if turn.signal {
                ring.signal_used_queue().map_err(Error::Watch)?;
            }
        }
        if more { self.again.write(1).map_err(Error::Watch) } else { Ok(()) }
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        VsockDevice::features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    /// The library tells the queues itself.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.device.as_ref().map(VsockDevice::config).unwrap_or_default();
        config.iter().copied().skip(offset as usize).take(size as usize).collect()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().ok()?.take()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        if let Err(error) = self.process(event, vrings) {
            eprintln!("vsockd: closing all connections: {error}");
            self.device = None;
        }
        Ok(())
    }
}
