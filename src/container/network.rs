//! A container's network namespace: entered by its monitor, so that hooks and callers find it there, and kept in step with the sandbox's
//! network from then on ([`Watcher`]).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use oci_spec::runtime::Spec;

use super::record::{Error as StateError, Record, State, Status, Store};
use super::{Error, system};
use crate::agent::Agent;
use crate::config::{self, HostNetwork};
use crate::net::{self, Events, Namespace, Wanted};
use crate::sandbox::network::{Error as NetworkError, Network};

/// Changes come in bursts: what makes an interface takes several steps. So long after the last one they are looked at.
const SETTLED: Duration = Duration::from_millis(30);

/// The network namespace that a container is to have.
#[derive(Debug)]
pub enum Choice {
    Existing(Namespace),
    New,
}

impl Choice {
    /// # Errors
    /// [`net::Error`]: the host's network is asked for and refused, or the namespace is not there.
    pub fn of(spec: &Spec, config: &config::Network) -> Result<Self, Error> {
        match (Wanted::of(spec), config.host) {
            (Wanted::Existing(path), _) => Ok(Self::Existing(Namespace::open(&path)?)),
            (Wanted::New, _) | (Wanted::Host, HostNetwork::Empty) => Ok(Self::New),
            (Wanted::Host, HostNetwork::Refuse) => Err(net::Error::Host.into()),
        }
    }

    /// Moves this process's main thread, and with it the process as others see it, there.
    ///
    /// # Errors
    /// [`net::Error`]
    pub fn enter(&self) -> Result<(), Error> {
        match self {
            Self::Existing(namespace) => Ok(namespace.enter()?),
            Self::New => Ok(net::make()?),
        }
    }

    /// The network of a sandbox in it, before anything is done.
    pub fn network(&self, config: &config::Network, vcpus: u8) -> Network {
        let path = match self {
            Self::Existing(namespace) => Some(namespace.name().to_owned()),
            Self::New => None,
        };
        Network::new(path, config, vcpus)
    }
}

/// The host's half, for a sandbox that boots: plugs what is in the namespace. Gives what the guest is to be told.
///
/// # Errors
/// [`Error::Network`], [`Error::State`]
pub fn attach(state: &State, record: &mut Record) -> Result<net::Layout, Error> {
    let (Some(vm), Some(monitor)) = (record.vm.clone(), record.monitor) else {
        return Err(Error::NotRunning);
    };
    if !record.network.is_used() {
        return Ok(net::Layout::default());
    }
    let namespace = Namespace::of_process(monitor.pid)?;
    let mut network = record.network.clone();
    let result = network.attach(&namespace, &vm, &mut |network| {
        record.network = network.clone();
        state.write(record).map_err(|error| NetworkError::Record(Box::new(error)))
    });
    record.network = network;
    Ok(result?)
}

/// Both halves: afterwards the guest has what is in the namespace.
///
/// # Errors
/// [`Error::Network`], [`Error::State`]
pub fn sync(state: &State, record: &mut Record, agent: &Agent) -> Result<(), Error> {
    let wanted = attach(state, record)?;
    record.network.configure(wanted, agent)?;
    Ok(state.write(record)?)
}

/// Takes away what a dead sandbox left in the bundle's network namespace, or, for its monitor, in its own.
///
/// # Errors
/// [`net::Error`]
pub fn remove(record: &Record, own: bool) -> Result<(), Error> {
    let namespace = match &record.network.namespace {
        _ if own => Namespace::of_process(std::process::id() as i32)?,
        Some(path) if path.exists() => Namespace::open(path)?,
        // It is gone, and all in it.
        _ => return Ok(()),
    };
    match record.network.remove(&namespace) {
        Err(NetworkError::Net(net::Error::Namespace { .. })) => Ok(()),
        other => Ok(other?),
    }
}

/// A thread that keeps a sandbox's network in step with its namespace. Dropped, it has ended.
pub struct Watcher {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts it for container `id`, of whose network namespace the events are.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn start(events: Events, store: Store, id: String, agent: Agent) -> Result<Self, Error> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(Arc::new);
        let stop = stop.map_err(|errno| system("make an eventfd")(errno.into()))?;
        let until = Arc::clone(&stop);
        let work = move || {
            while wait(&events, &until) {
                match catch_up(&store, &id, &agent) {
                    // Deleted meanwhile.
                    Err(Error::State(StateError::Missing(_))) => return,
                    Err(error) => tracing::warn!("the network of {id}: {}", crate::log::chain(&error)),
                    Ok(()) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("network".into()).stack_size(256 << 10);
        let thread = thread.spawn(work).map_err(system("watch the network namespace"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

fn catch_up(store: &Store, id: &str, agent: &Agent) -> Result<(), Error> {
    let state = store.lock(id)?;
    let mut record = state.read()?;
    match record.status() {
        Status::Stopped => Ok(()),
        _ => sync(&state, &mut record, agent),
    }
}

/// Waits until something has changed and no more does; false when it is time to end.
fn wait(events: &Events, stop: &EventFd) -> bool {
    let mut changed = false;
    loop {
        let timeout = if changed {
            PollTimeout::try_from(SETTLED).unwrap_or(PollTimeout::ZERO)
        } else {
            PollTimeout::NONE
        };
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return true,
            Ok(_) if fds[0].any() == Some(true) => return false,
            Ok(_) => {
                events.drain();
                changed = true;
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}
