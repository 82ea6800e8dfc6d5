//! A container's network namespace: entered by its monitor, so that hooks and callers find it there, and kept in step with the sandbox's
//! network from then on ([`Watched`]).

use nix::poll::PollFlags;
use oci_spec::runtime::Spec;

use super::ports::Ports;
use super::record::{Error as StateError, Record, State, Status, Store};
use super::resolver::Resolver;
use super::watch::{News, Watcher};
use super::{Error, system};
use crate::agent::Agent;
use crate::config::{self, HostNetwork};
use crate::net::{self, Events, Layout, Namespace, Wanted};
use crate::sandbox::Size;
use crate::sandbox::network::{Error as NetworkError, Misfit, Network};

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
            let news = News { of: events, flag: PollFlags::POLLIN, take: Events::drain };
            self.watcher = Some(Watcher::start(news, format!("the network of {id}"), look)?);
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
