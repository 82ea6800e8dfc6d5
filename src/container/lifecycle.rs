//! What may be done with a container that exists: start, kill, delete, pause, resume, update, and look at it.
//!
//! Each verb reads the record, checks that the container's status allows it, and asks the agent. Verbs that change the status
//! hold the record's lock from the check to the change, but for the start, which may take for ever. Looking needs neither lock nor agent, and deleting needs
//! no agent: they work when the VM is dead.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::hooks::{self, Moment};
use super::network;
use super::record::{self, Record, State, Status, Store};
use super::state::StateView;
use super::stats::Stats;
use super::{Error, machine, pod};
use crate::agent::{Agent, LogRecord, OomWatch, ProcessInfo};
use crate::config::Config;
use crate::hypervisor::{self, Kind, VmRecord};
use crate::sandbox::network::Misfit;
use crate::sys::pidfd::{self, ProcessId};

/// How long a container that is deleted by force may take to end in order, so that its files are written back.
const GRACE: Duration = Duration::from_secs(10);
/// How long a guest may take to answer where it is not needed.
const QUICK: Duration = Duration::from_secs(2);

/// The agent of a container's sandbox.
///
/// # Errors
/// [`Error::NotRunning`] when the record names no VM; else what connecting says.
pub fn agent(record: &Record, config: &Config) -> Result<Agent, Error> {
    let vm = record.vm.as_ref().ok_or(Error::NotRunning)?;
    Ok(Agent::connect(&vm.vsock, patience(vm, config))?)
}

/// How long a guest may take to answer. QEMU's most often is emulated.
pub fn patience(vm: &VmRecord, config: &Config) -> Duration {
    let factor = match vm.kind {
        Kind::Qemu => 4,
        Kind::Kvm => 1,
    };
    Duration::from_millis(config.agent.timeout_ms) * factor
}

/// How long a guest may take for what a call has asked for: to end a process that was killed, or to close the streams of one that has
/// ended. Not counted is what it waits for readers on the host.
pub fn end_limit(vm: &VmRecord, config: &Config) -> Duration {
    patience(vm, config) * 2
}

/// The machine of a container, to be ended from outside when its guest does not do as it is told.
pub struct Machine {
    process: ProcessId,
    /// How long it may take for that.
    pub limit: Duration,
}

impl Machine {
    /// # Errors
    /// [`Error::NotRunning`] when the container has none; its record cannot be read.
    pub fn of(store: &Store, config: &Config, id: &str) -> Result<Self, Error> {
        let vm = store.read(id)?.vm.ok_or(Error::NotRunning)?;
        let process = ProcessId { pid: vm.pid, start_time: vm.start_time };
        Ok(Self { process, limit: end_limit(&vm, config) })
    }

    /// Ends it, and with it all of its containers.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn end(&self) -> Result<(), Error> {
        if let Some(handle) = self.process.open().map_err(super::system("open a process"))? {
            // It may have ended by itself.
            let _ = pidfd::kill(handle.as_fd(), Signal::SIGKILL);
        }
        Ok(())
    }
}

/// Lets a created container's process run.
///
/// # Errors
/// [`Error::AlreadyStarted`], [`Error::Ended`] by status; else what the agent says.
pub fn start(store: &Store, config: &Config, id: &str) -> Result<(), Error> {
    let state = store.lock(id)?;
    let mut record = state.read()?;
    match record.status() {
        Status::Created => {}
        Status::Stopped => return Err(Error::Ended),
        Status::Running => return Err(Error::AlreadyStarted),
        status @ (Status::Creating | Status::Paused) => return Err(Error::StartIn(status)),
    }
    let agent = agent(&record, config)?;
    // Callers such as docker fill the namespace when the container has been created.
    network::sync(&state, &mut record, &agent, Misfit::Refuse)?;
    state.write(&record)?;
    // The guest's hooks take as long as they take, for ever perhaps: whoever wants to stop the container must not wait for them. Of two
    // starts the agent refuses one.
    drop(state);
    let started = match hooks::has_start_hooks(&record.hooks) {
        true => {
            end_with_monitor(&agent, &record)?;
            agent.patient().start_container(id)
        }
        false => agent.start_container(id),
    };
    match started {
        Err(crate::agent::Error::Transport { .. }) if record.status() == Status::Stopped => {
            return Err(Error::Ended);
        }
        other => other?,
    }
    let record = store.change(id, |record| match record.status {
        Status::Created => record.status = Status::Running,
        Status::Paused => record.resumes_as = Status::Running,
        // It has ended already.
        Status::Creating | Status::Running | Status::Stopped => {}
    })?;
    hooks::run_all(Moment::Poststart, &record, Status::Running);
    Ok(())
}

/// Ends the connection when the process that stands for the container ends: the container is over, whatever its guest says.
fn end_with_monitor(agent: &Agent, record: &Record) -> Result<(), Error> {
    // One that stands for several ends their machine instead.
    let Some(monitor) = record.monitor.filter(|_| !record.shared_monitor) else { return Ok(()) };
    let Some(handle) = monitor.open().map_err(super::system("open a process"))? else {
        return Err(Error::Ended);
    };
    let agent = agent.clone();
    let watch = move || {
        while let Err(Errno::EINTR) =
            poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
        {}
        agent.close();
    };
    let thread = std::thread::Builder::new().name("monitor".into()).spawn(watch);
    thread.map(drop).map_err(super::system("start a thread"))
}

/// Sends a signal to the container's process, or with `all` to each of its processes.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped; else what the agent says.
pub fn kill(store: &Store, config: &Config, id: &str, signal: i32, all: bool) -> Result<(), Error> {
    let record = store.read(id)?;
    match (record.status(), record.monitor) {
        // As runc: the cgroup of a container that has stopped is empty, and emptying it is no error.
        (Status::Stopped, _) if all => return Ok(()),
        (Status::Stopped, _) | (_, None) => return Err(Error::NotRunning),
        _ => {}
    }
    let result = agent(&record, config).and_then(|agent| Ok(agent.signal_process(id, "", signal, all)?));
    match result {
        // A guest that does not answer is ended from outside.
        Err(error) if signal == Signal::SIGKILL as i32 && is_gone(&error) => {
            end_processes(store, &record, Duration::ZERO)
        }
        other => other,
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Agent(error) if !matches!(error, crate::agent::Error::Refused(_)))
}

/// Removes a stopped container; with `force` one in any state, and also one that is not there.
///
/// # Errors
/// [`Error::NotStopped`] without `force`; [`record::Error::Missing`] without `force`; else what the system says.
pub fn delete(store: &Store, config: &Config, id: &str, force: bool) -> Result<(), Error> {
    if force {
        store.sweep();
    }
    let record = match store.read(id) {
        Ok(record) => record,
        Err(record::Error::Missing(_)) if force => return Ok(()),
        // What cannot be read cannot be ended in order, but it can be removed.
        Err(record::Error::Damaged { path, reason }) if force => {
            tracing::warn!("the state record {} is damaged ({reason}); removing it", path.display());
            return Ok(store.lock(id)?.remove()?);
        }
        Err(error) => return Err(error.into()),
    };
    match record.status() {
        Status::Stopped => {}
        // As runc: a container that never ran needs no force.
        Status::Created => end(store, &record, config)?,
        _ if force => end(store, &record, config)?,
        status => return Err(Error::NotStopped { id: id.into(), status }),
    }
    // The monitor's last acts may still be under way, or it was killed and left its helpers to the kernel.
    end_processes(store, &record, GRACE)?;
    end_members(store, &record)?;
    match pod::leave(store, &quick(config), id) {
        Err(Error::State(record::Error::Missing(_))) if force => return Ok(()),
        other => other?,
    }
    let state = match store.lock(id) {
        // Another delete was quicker.
        Err(record::Error::Missing(_)) if force => return Ok(()),
        other => other?,
    };
    let record = state.read().unwrap_or(record);
    network::remove(&record)?;
    crate::cgroup::remove(&record.cgroups)?;
    state.remove()?;
    hooks::run_all(Moment::Poststop, &record, Status::Stopped);
    Ok(())
}

/// Ends a container's process with SIGKILL and gives its monitor time to end the sandbox in order.
fn end(store: &Store, record: &Record, config: &Config) -> Result<(), Error> {
    let killed = agent(record, &quick(config))
        .and_then(|agent| Ok(agent.signal_process(&record.id, "", Signal::SIGKILL as i32, false)?));
    match killed {
        Ok(()) => end_processes(store, record, GRACE),
        Err(error) => {
            tracing::debug!("the guest of {} does not answer: {error}", record.id);
            end_processes(store, record, Duration::ZERO)
        }
    }
}

/// With little patience for the guest.
fn quick(config: &Config) -> Config {
    let mut quick = config.clone();
    quick.agent.timeout_ms = QUICK.as_millis() as u64;
    quick
}

/// Waits for the processes that are this container's alone to end, and kills what has not after `grace`.
fn end_processes(store: &Store, record: &Record, grace: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + grace;
    let mut processes = Vec::new();
    if record.shared_monitor {
        wait_for_shared_monitor(store, record, deadline);
    } else {
        // First: its death is the others'.
        processes.extend(record.monitor);
    }
    // A member's machine is its sandbox's.
    if record.sandbox.is_none() {
        processes.extend(record.vm.as_ref().map(|vm| ProcessId { pid: vm.pid, start_time: vm.start_time }));
        processes.extend(record.fsd);
    }
    for process in processes {
        let Some(handle) = process.open().map_err(super::system("open a process"))? else { continue };
        if !ends_by(&handle, deadline)? {
            let _ = pidfd::kill(handle.as_fd(), Signal::SIGKILL);
            ends_by(&handle, Instant::now() + GRACE)?;
        }
    }
    Ok(())
}

/// A process that stands for several containers does not end with one of them: it writes down that this one has.
fn wait_for_shared_monitor(store: &Store, record: &Record, deadline: Instant) {
    while store.read(&record.id).is_ok_and(|now| now.status() != Status::Stopped) {
        if Instant::now() >= deadline {
            tracing::debug!("the process that stands for {} does not say that it has stopped", record.id);
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until those that stand for the containers of a pod have seen that its machine is gone.
fn end_members(store: &Store, sandbox: &Record) -> Result<(), Error> {
    if sandbox.sandbox.is_some() {
        return Ok(());
    }
    let deadline = Instant::now() + GRACE;
    for member in pod::members(store, sandbox)?.iter().filter(|member| !member.shared_monitor) {
        let Some(monitor) = member.monitor else { continue };
        if let Some(handle) = monitor.open().map_err(super::system("open a process"))? {
            ends_by(&handle, deadline)?;
        }
    }
    Ok(())
}

fn ends_by(process: &OwnedFd, deadline: Instant) -> Result<bool, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(super::system("wait for a process")(error.into())),
            Ok(count) => return Ok(count > 0),
        }
    }
}

/// # Errors
/// [`Error::NotRunning`] unless it runs or waits for its start; else what the agent says.
pub fn pause(store: &Store, config: &Config, id: &str) -> Result<(), Error> {
    let state: State = store.lock(id)?;
    let mut record = state.read()?;
    let now = record.status();
    if !matches!(now, Status::Created | Status::Running) {
        return Err(Error::NotRunning);
    }
    agent(&record, config)?.pause_container(id)?;
    (record.status, record.resumes_as) = (Status::Paused, now);
    Ok(state.write(&record)?)
}

/// # Errors
/// [`Error::NotPaused`] unless it is paused; else what the agent says.
pub fn resume(store: &Store, config: &Config, id: &str) -> Result<(), Error> {
    let state: State = store.lock(id)?;
    let mut record = state.read()?;
    if record.status() != Status::Paused {
        return Err(Error::NotPaused);
    }
    agent(&record, config)?.resume_container(id)?;
    record.status = record.resumes_as;
    Ok(state.write(&record)?)
}

/// Changes the container's limits in the guest, and those of its sandbox on the host with them. A refusal by either
/// leaves both as they were.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped; [`Error::Cgroup`]; else what the agent says.
pub fn update(store: &Store, config: &Config, id: &str, resources: &LinuxResources) -> Result<(), Error> {
    let change = serde_json::to_value(resources).expect("resources have only string keys");
    let record = store.read(id)?;
    if matches!(record.status(), Status::Stopped | Status::Creating) {
        return Err(Error::NotRunning);
    }
    let wanted = merged(&record.resources, change.clone());
    machine::grow_for(store, id, &wanted, config)?;
    let result = set_limits(store, config, id, change);
    // It shrinks when that is done, or has failed.
    if let Err(error) = machine::settle(store, id, config) {
        tracing::debug!("the machine of {id} does not shrink: {error}");
    }
    result
}

fn set_limits(store: &Store, config: &Config, id: &str, change: Value) -> Result<(), Error> {
    let state = store.lock(id)?;
    let mut record = state.read()?;
    if matches!(record.status(), Status::Stopped | Status::Creating) {
        return Err(Error::NotRunning);
    }
    let wanted = merged(&record.resources, change.clone());
    let set = |resources: &LinuxResources| {
        crate::cgroup::change(
            &record.cgroups,
            &super::monitor::limits(config, record.machine_mib(), Some(resources)),
        )
    };
    let result = set(&wanted)
        .map_err(Error::from)
        .and_then(|()| Ok(agent(&record, config)?.update_container(id, change.to_string().into_bytes())?));
    if let Err(error) = result {
        if let Err(left) = set(&record.resources) {
            tracing::warn!("the host's cgroups keep some of the new limits: {left}");
        }
        return Err(error);
    }
    if let Some(lack) = record.size.and_then(|size| size.lacks(Some(&wanted))) {
        tracing::warn!(
            "container {id} may use more now than its virtual machine has, which does not grow further: {lack}; \
             hypervisor.grow_vcpus and grow_memory_mib say how far a machine can grow"
        );
    }
    record.resources = wanted;
    Ok(state.write(&record)?)
}

/// What is absent from `change` stays as it is.
fn merged(resources: &LinuxResources, change: Value) -> LinuxResources {
    fn merge(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                change
                    .into_iter()
                    .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (_, Value::Null) => {}
            (into, change) => *into = change,
        }
    }
    let mut all = serde_json::to_value(resources).expect("resources have only string keys");
    merge(&mut all, change);
    serde_json::from_value(all).expect("two objects of one type make one of it")
}

/// The container's processes, as the guest tells them; none of one that has stopped.
///
/// # Errors
/// [`Error::NotRunning`] while it is made; else what the agent says.
pub fn processes(store: &Store, config: &Config, id: &str) -> Result<Vec<ProcessInfo>, Error> {
    if store.read(id)?.status() == Status::Stopped {
        return Ok(Vec::new());
    }
    Ok(live(store, config, id)?.list_processes(id)?)
}

/// What the container has used, as the guest's cgroup tells it.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped; else what the agent says.
pub fn stats(store: &Store, config: &Config, id: &str) -> Result<Stats, Error> {
    Ok(Stats::from_cgroup(&cgroup_files(store, config, id)?))
}

/// The files of the container's cgroup v2 by name, as the guest has them.
///
/// # Errors
/// As [`stats`].
pub fn cgroup_files(store: &Store, config: &Config, id: &str) -> Result<HashMap<String, String>, Error> {
    Ok(live(store, config, id)?.container_stats(id)?)
}

/// Waits for news of the guest's out-of-memory killer; `seen` is what was known before.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped; else what the agent says.
pub fn watch_oom(store: &Store, config: &Config, id: &str, seen: u64) -> Result<OomWatch, Error> {
    Ok(live(store, config, id)?.watch_oom(id, seen)?)
}

/// Records of the guest's log from this sequence number on.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped; else what the agent says.
pub fn log(store: &Store, config: &Config, id: &str, from: u64) -> Result<Vec<LogRecord>, Error> {
    Ok(live(store, config, id)?.read_log(from)?)
}

/// Whether the container has a guest that could answer.
///
/// # Errors
/// Its record cannot be read.
pub fn is_live(store: &Store, id: &str) -> Result<bool, Error> {
    Ok(!matches!(store.read(id)?.status(), Status::Stopped | Status::Creating))
}

/// What is kept of the guest's console, which outlives the guest.
///
/// # Errors
/// There is no such container, or the console cannot be read.
pub fn console(store: &Store, id: &str) -> Result<String, Error> {
    let record = store.read(id)?;
    let machine = record.sandbox.as_deref().unwrap_or(id);
    hypervisor::console(&store.path(machine)).map_err(super::system("read the guest's console"))
}

/// The agent of a container that has one.
///
/// # Errors
/// [`Error::NotRunning`] when it has stopped, or is still being made; else what connecting says.
pub fn live(store: &Store, config: &Config, id: &str) -> Result<Agent, Error> {
    let record = store.read(id)?;
    match record.status() {
        Status::Stopped | Status::Creating => Err(Error::NotRunning),
        Status::Created | Status::Running | Status::Paused => agent(&record, config),
    }
}

/// All containers, by ID. One whose record cannot be read is logged and left out.
///
/// # Errors
/// The root cannot be listed.
pub fn list(store: &Store) -> Result<Vec<StateView>, Error> {
    let mut views = Vec::new();
    for id in store.ids()? {
        match store.read(&id) {
            Ok(record) => {
                let owner = store.owner(&id).unwrap_or_default();
                views.push(StateView { owner, ..StateView::of(&record) });
            }
            // Deleted meanwhile.
            Err(record::Error::Missing(_)) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    Ok(views)
}
