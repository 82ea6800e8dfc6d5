//! Several containers in one machine: how one joins the sandbox of another, and leaves it.
//!
//! Records alone tell who is in a pod and what of the share each of them uses. Whoever joins or leaves holds the lock of the
//! sandbox's record, which is also what its deletion takes: none of them meets another half-way. Locks are taken in the
//! order sandbox, container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::record::{self, Record, Status, Store};
use super::{Error, machine, system};
use crate::agent::Agent;
use crate::bundle::{Bundle, GuestNamespaces};
use crate::config::Config;
use crate::fsd;
use crate::hypervisor::VmRecord;
use crate::net::{self, Wanted};
use crate::sandbox::Size;
use crate::share::{self, Used};
use crate::sys::random;

/// What a container has joined.
pub struct Membership {
    pub vm: VmRecord,
    pub share: share::Plan,
    pub namespaces: GuestNamespaces,
    /// Of the machine.
    pub size: Option<Size>,
    /// As it is on disk now.
    pub record: Record,
}

/// Takes container `id`, whose record is on disk, into the sandbox: its files are served when this returns.
///
/// # Errors
/// [`Error::NoSandbox`], [`Error::SandboxStopped`], [`Error::SandboxNotReady`], [`Error::NotASandbox`], [`Error::OtherNetwork`]; what planning and serving the files
/// and growing the machine say.
pub fn join(
    store: &Store,
    config: &Config,
    id: &str,
    bundle: &Bundle,
    sandbox: &str,
) -> Result<Membership, Error> {
    let name = || sandbox.to_owned();
    let state = match store.lock(sandbox) {
        // Its own record does not make it a sandbox.
        Ok(_) if sandbox == id => return Err(Error::NoSandbox(name())),
        Err(record::Error::Missing(_)) => return Err(Error::NoSandbox(name())),
        other => other?,
    };
    let mut host = state.read()?;
    if let Some(of) = host.sandbox {
        return Err(Error::NotASandbox { id: name(), sandbox: of });
    }
    let (vm, fsd) = match (host.status(), &host.vm, host.fsd) {
        (Status::Stopped, ..) => return Err(Error::SandboxStopped(name())),
        (Status::Creating, ..) | (_, None, _) | (_, _, None) => return Err(Error::SandboxNotReady(name())),
        (_, Some(vm), Some(fsd)) => (vm.clone(), fsd),
    };
    // A path to the host's own is what the engines give the containers of a pod in the host's network.
    if let Wanted::Existing(path) = Wanted::of(&bundle.spec)
        && net::is_same(&path, &host.network.held) == Some(false)
    {
        return Err(Error::OtherNetwork { path, sandbox: name() });
    }
    let members = members(store, &host)?;
    let mut containers = BTreeMap::new();
    // The sandbox last: a process that stands for all of them stands for it in the first place.
    for record in members.iter().chain([&host]) {
        containers.extend(record.monitor.map(|monitor| (monitor.pid, record.id.clone())));
    }
    // '~' is in no ID.
    let folder = format!("{id}~{:016x}", random::non_zero().map_err(system("make a name"))?);
    let share = share::plan(&folder, bundle, &served(members.iter().chain([&host])))?;
    let record = store.change(id, |record| {
        record.vm = Some(vm.clone());
        record.share = share.used.clone();
        record.resources = bundle.resources().cloned().unwrap_or_default();
    })?;
    fsd::attach(fsd, &share.new).map_err(crate::sandbox::Error::from)?;
    let resources = members.iter().chain([&record]).map(|member| &member.resources);
    machine::fit(&state, &mut host, resources, config)?;
    let namespaces = GuestNamespaces { sandbox: name(), containers };
    Ok(Membership { vm, share, namespaces, size: host.size, record })
}

/// Takes what is left of a container out of its sandbox. A sandbox that has ended has taken all with it. Idempotent.
///
/// # Errors
/// The records cannot be read or written, or the files are still served.
pub fn leave(store: &Store, config: &Config, id: &str) -> Result<(), Error> {
    let record = store.read(id)?;
    let Some(sandbox) = &record.sandbox else { return Ok(()) };
    let state = match store.lock(sandbox) {
        Err(record::Error::Missing(_)) => return Ok(()),
        other => other?,
    };
    let mut host = state.read()?;
    // Another sandbox, that has got the ID, is none of this container's business.
    if host.vm != record.vm || host.status() == Status::Stopped || record.vm.is_none() {
        return Ok(());
    }
    let timeout = Duration::from_millis(config.agent.timeout_ms);
    let agent = record.vm.as_ref().and_then(|vm| Agent::connect(&vm.vsock, timeout).ok());
    // A guest that does not answer keeps its files open at most as long as it lives.
    if let Some(agent) = &agent
        && let Err(error) = agent.delete_container(id)
    {
        tracing::debug!("the guest of {sandbox} did not remove {id}: {error}");
    }
    let members = members(store, &host)?;
    let others = served(members.iter().filter(|member| member.id != id).chain([&host]));
    let names: Vec<PathBuf> = (record.share.iter().filter(|used| !others.contains(used)))
        .map(|used| used.entry.name.clone())
        .collect();
    if let Some(agent) = &agent
        && let Err(error) = agent.release_share(&names)
    {
        tracing::debug!("the guest of {sandbox} did not release the files of {id}: {error}");
    }
    if let Some(fsd) = host.fsd {
        match fsd::detach(fsd, &names) {
            Ok(()) | Err(fsd::Error::Gone) => {}
            Err(error) => return Err(crate::sandbox::Error::from(error).into()),
        }
    }
    store.change(id, |record| record.share.clear())?;
    let stay = members.iter().filter(|member| member.id != id).map(|member| &member.resources);
    // A machine that stays as large as it is does no harm.
    if let Err(error) = machine::fit(&state, &mut host, stay, config) {
        tracing::debug!("the machine of {sandbox} does not shrink: {error}");
    }
    Ok(())
}

/// The records of all that have joined this sandbox, and not an earlier one that had its ID.
///
/// # Errors
/// The root cannot be listed.
pub fn members(store: &Store, sandbox: &Record) -> Result<Vec<Record>, Error> {
    let records = store.ids()?.into_iter().filter_map(|id| store.read(&id).ok());
    let is_member = |record: &Record| record.sandbox.as_ref() == Some(&sandbox.id) && record.vm == sandbox.vm;
    Ok(records.filter(is_member).collect())
}

fn served<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Used> {
    records.flat_map(|record| record.share.iter().cloned()).collect()
}
