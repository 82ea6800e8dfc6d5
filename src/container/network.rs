//! A container's network namespace: entered by its monitor, so that hooks and callers find it there, and kept in step with the sandbox's
//! network from then on ([`Watched`]).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use oci_spec::runtime::Spec;

use super::ports::Ports;
use super::record::{Error as StateError, Record, State, Status, Store};
use super::resolver::Resolver;
use super::{Error, system};
use crate::agent::Agent;
use crate::config::{self, HostNetwork};
use crate::net::{self, Events, Layout, Namespace, Wanted};
use crate::sandbox::Size;
use crate::sandbox::network::{Error as NetworkError, Misfit, Network};

/// Changes come in bursts: what makes an interface takes several steps. So long after the last one they are looked at.
const SETTLED: Duration = Duration::from_millis(30);
/// So long after the first one they are looked at in any case.
const AT_LATEST: Duration = Duration::from_millis(500);

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

    /// The namespace, into which this thread has moved, so that others find it by this process's PID. A process that stands for
    /// several containers has settled in its pod's at its start, as far as others see it, and works from where it is.
    ///
    /// # Errors
    /// [`net::Error`]
    pub fn enter(&self, shared: bool) -> Result<Namespace, Error> {
        match self {
            Self::Existing(namespace) => {
                if !shared {
                    namespace.enter()?;
                }
                Ok(namespace.try_clone()?)
            }
            Self::New if shared => Ok(Namespace::of_process()?.map_or_else(Namespace::new, Ok)?),
            Self::New => {
                net::make()?;
                Ok(Namespace::own()?)
            }
        }
    }

    /// The network of a sandbox of this size in it, before anything is done.
    pub fn network(&self, config: &config::Network, namespace: &Namespace, size: Option<Size>) -> Network {
        let path = match self {
            Self::Existing(namespace) => Some(namespace.name().to_owned()),
            Self::New => None,
        };
        Network::new(path, namespace.held(), config, size.map_or(1, |size| size.vcpus))
    }
}

/// The host's half: plugs what is in the namespace. Gives what the guest is to be told.
fn attach(
    state: &State,
    record: &mut Record,
    namespace: &Namespace,
    misfit: Misfit<'_>,
) -> Result<Layout, Error> {
    let Some(vm) = record.vm.clone() else { return Err(Error::NotRunning) };
    let mut network = record.network.clone();
    let result = network.attach(namespace, &vm, misfit, &mut |network| {
        record.network = network.clone();
        state.write(record).map_err(|error| NetworkError::Record(Box::new(error)))
    });
    record.network = network;
    Ok(result?)
}

/// Both halves: afterwards the guest has what is in the namespace. The caller writes the record.
///
/// # Errors
/// [`Error::Network`], [`Error::State`]
pub fn sync(state: &State, record: &mut Record, agent: &Agent, misfit: Misfit<'_>) -> Result<(), Error> {
    if !record.network.is_used() {
        return Ok(());
    }
    let namespace = Namespace::open(&record.network.held)?;
    let wanted = attach(state, record, &namespace, misfit)?;
    Ok(record.network.configure(wanted, agent)?)
}

/// Takes away what a dead sandbox left in the bundle's network namespace. That of rt's own has gone with its monitor.
///
/// # Errors
/// [`net::Error`]
pub fn remove(record: &Record) -> Result<(), Error> {
    match &record.network.namespace {
        Some(path) if path.exists() => remove_from(record, &Namespace::open(path)?),
        _ => Ok(()),
    }
}

fn remove_from(record: &Record, namespace: &Namespace) -> Result<(), Error> {
    match record.network.remove(namespace) {
        Err(NetworkError::Net(net::Error::Namespace { .. })) => Ok(()),
        other => Ok(other?),
    }
}

/// The network of a sandbox in the hands of its monitor.
pub struct Watched {
    namespace: Namespace,
    /// Until they are watched.
    events: Option<Events>,
    watcher: Option<Watcher>,
    ports: Option<Ports>,
}

impl Watched {
    /// # Errors
    /// [`Error::System`]
    pub fn new(namespace: Namespace) -> Result<Self, Error> {
        // Before the first look, so that no change after it goes unseen.
        let events = namespace.within(|| Ok(Events::open()))?;
        let events = events.map_err(system("watch the network namespace"))?;
        Ok(Self { namespace, events: Some(events), watcher: None, ports: None })
    }

    /// The host's half, for a guest that boots.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::State`]
    pub fn attach(&self, store: &Store, id: &str) -> Result<Layout, Error> {
        let state = store.lock(id)?;
        let mut record = state.read()?;
        attach(&state, &mut record, &self.namespace, Misfit::Refuse)
    }

    /// The guest's half. From now on the network, and the way to docker's resolver, is kept in step.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::State`], [`Error::System`]
    pub fn configure(
        &mut self,
        store: &Store,
        id: &str,
        wanted: Layout,
        agent: &Agent,
        mut resolver: Resolver,
    ) -> Result<Record, Error> {
        let mut network = store.read(id)?.network;
        network.configure(wanted, agent)?;
        if network.is_used()
            && let Some(events) = self.events.take()
        {
            resolver.catch_up(&self.namespace, agent)?;
            let (store, own, agent) = (store.clone(), id.to_owned(), agent.clone());
            let namespace = self.namespace.try_clone()?;
            let look =
                move || catch_up(&store, &own, &agent).and_then(|()| resolver.catch_up(&namespace, &agent));
            self.watcher = Some(Watcher::start(events, id.to_owned(), look)?);
        }
        Ok(store.change(id, |record| record.network = network)?)
    }

    /// The loopback of the namespace is the guest's from now on, for those who connect to it from the host.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::System`]
    pub fn forward_ports(&mut self, agent: &Agent) -> Result<(), Error> {
        let ports = Ports::start(self.namespace.try_clone()?, agent.clone());
        self.ports = Some(ports.map_err(system("start a thread for ports"))?);
        Ok(())
    }

    /// No longer keeps it in step.
    pub fn stop(&mut self) {
        self.watcher = None;
        self.ports = None;
    }

    /// Takes away what the sandbox, which has ended, left in the namespace.
    ///
    /// # Errors
    /// [`net::Error`]
    pub fn remove(mut self, store: &Store, id: &str) -> Result<(), Error> {
        self.stop();
        match store.read(id) {
            Err(StateError::Missing(_)) => Ok(()),
            record => remove_from(&record?, &self.namespace),
        }
    }
}

/// A thread that looks whenever something has changed. Dropped, it has ended.
struct Watcher {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(
        events: Events,
        id: String,
        mut look: impl FnMut() -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(Arc::new);
        let stop = stop.map_err(|errno| system("make an eventfd")(errno.into()))?;
        let until = Arc::clone(&stop);
        let work = move || {
            while wait(&events, || events.drain(), &until) {
                match look() {
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
    if record.status() == Status::Stopped {
        return Ok(());
    }
    let before = record.network.clone();
    sync(&state, &mut record, agent, Misfit::LeaveOut(id))?;
    if record.network != before {
        state.write(&record)?;
    }
    Ok(())
}

/// Waits until something has changed and no more does, or for [`AT_LATEST`]; false when it is time to end.
fn wait(events: &impl AsFd, drain: impl Fn(), stop: &EventFd) -> bool {
    let mut first = None;
    loop {
        let left = first.map(|first: Instant| AT_LATEST.saturating_sub(first.elapsed()).min(SETTLED));
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return true,
            Ok(_) if fds[0].any() == Some(true) => return false,
            Ok(_) => {
                drain();
                if left == Some(Duration::ZERO) {
                    return true;
                }
                first.get_or_insert_with(Instant::now);
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn changes_that_never_pause_are_looked_at() {
        let restless = EventFd::from_value(1).expect("an eventfd");
        let stop = EventFd::new().expect("an eventfd");
        let (sender, looked) = mpsc::channel();
        // Left behind where it waits for ever.
        thread::spawn(move || {
            sender.send(wait(&restless, || thread::sleep(Duration::from_millis(1)), &stop))
        });
        assert_eq!(looked.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn what_has_settled_is_looked_at_and_an_end_is_one() {
        let (events, stop) = (EventFd::new().expect("an eventfd"), EventFd::new().expect("an eventfd"));
        events.write(1).expect("something changes");
        assert!(wait(&events, || assert_eq!(events.read(), Ok(1)), &stop));
        stop.write(1).expect("told");
        assert!(!wait(&events, || (), &stop));
    }
}
