//! The size of a machine, kept in step with what its containers may use together. Whoever changes it holds the lock of the
//! sandbox's record, which says what it is.

use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use super::record::{self, Record, State, Status, Store};
use super::{Error, lifecycle, monitor, pod};
use crate::config::Config;
use crate::hypervisor;
use crate::sandbox::Size;

/// How long a guest that is to give memory may take for each part of it; it goes on later, when it can.
const SHRINKING: Duration = Duration::from_secs(2);

/// Grows or shrinks the machine of `host` to what it needs for its first container and for `others`. A maximum that is reached
/// is no error: the containers' own limits hold all the same.
///
/// # Errors
/// As [`set`].
pub fn fit<'a>(
    state: &State,
    host: &mut Record,
    others: impl Iterator<Item = &'a LinuxResources> + Clone,
    config: &Config,
) -> Result<(), Error> {
    let Some(bounds) = host.bounds else { return Ok(()) };
    let wanted = bounds.fit(&host.resources, others);
    set(state, host, wanted, config)
}

/// Grows the machine of this container, which is about to get the limits `wanted`.
///
/// # Errors
/// As [`set`].
pub fn grow_for(store: &Store, id: &str, wanted: &LinuxResources, config: &Config) -> Result<(), Error> {
    with_host(store, id, |state, host, mut members| {
        let (Some(bounds), Some(now)) = (host.bounds, host.size) else { return Ok(()) };
        members.iter_mut().filter(|member| member.id == id).for_each(|it| it.resources = wanted.clone());
        let first = if host.id == id { wanted } else { &host.resources };
        let then = bounds.fit(first, members.iter().map(|member| &member.resources));
        set(state, host, then.max(now), config)
    })
}

/// Makes the machine of this container what fits the limits that its record has.
///
/// # Errors
/// As [`set`].
pub fn settle(store: &Store, id: &str, config: &Config) -> Result<(), Error> {
    with_host(store, id, |state, host, members| {
        fit(state, host, members.iter().map(|member| &member.resources), config)
    })
}

/// Calls `change` with the record of the container that the machine was started for, locked, and those of all that have joined it.
fn with_host(
    store: &Store,
    id: &str,
    change: impl FnOnce(&State, &mut Record, Vec<Record>) -> Result<(), Error>,
) -> Result<(), Error> {
    let record = store.read(id)?;
    let state = match store.lock(record.sandbox.as_deref().unwrap_or(id)) {
        // What has ended has no size.
        Err(record::Error::Missing(_)) => return Ok(()),
        other => other?,
    };
    let mut host = state.read()?;
    if host.vm != record.vm || host.status() == Status::Stopped {
        return Ok(());
    }
    let members = pod::members(store, &host)?;
    change(&state, &mut host, members)
}

/// One that has this size is not asked anything. The record says how far it got.
///
/// # Errors
/// [`Error::NotGrown`]: what was plugged is taken out again; what the VMM, the agent or the host's cgroups say.
fn set(state: &State, host: &mut Record, wanted: Size, config: &Config) -> Result<(), Error> {
    let Some(before) = host.size.filter(|size| *size != wanted) else { return Ok(()) };
    let result = set_memory(host, wanted.memory_mib, config).and_then(|()| {
        if wanted.vcpus == before.vcpus { Ok(()) } else { set_vcpus(host, wanted.vcpus, config) }
    });
    state.write(host)?;
    result
}

fn set_vcpus(host: &mut Record, wanted: u8, config: &Config) -> Result<(), Error> {
    let Some(size) = host.size else { return Ok(()) };
    let vcpus = lifecycle::agent(host, config)?.set_processors(wanted)?;
    host.size = Some(Size { vcpus, ..size });
    if vcpus < wanted && wanted > size.vcpus {
        return Err(Error::NotGrown { what: "vCPUs", wanted: wanted.into(), given: vcpus.into() });
    }
    Ok(())
}

/// The host's cgroup has room for it first, and is narrowed last.
fn set_memory(host: &mut Record, wanted_mib: u32, config: &Config) -> Result<(), Error> {
    let (Some(size), Some(bounds), Some(vm)) = (host.size, host.bounds, host.vm.clone()) else {
        return Ok(());
    };
    if wanted_mib == size.memory_mib {
        return Ok(());
    }
    let limit = |host: &Record, memory_mib| {
        let limits = monitor::limits(config, memory_mib, Some(&host.resources));
        crate::cgroup::change(&host.cgroups, &limits)
    };
    let resize = |memory_mib: u32, patience| -> Result<u32, Error> {
        let more_mib = hypervisor::resize_memory(&vm, memory_mib - bounds.start.memory_mib, patience);
        // The VMM's word: it may have been the guest's.
        Ok(bounds.start.memory_mib.saturating_add(more_mib?).min(bounds.most.memory_mib))
    };
    if wanted_mib > size.memory_mib {
        limit(host, wanted_mib)?;
        let given = resize(wanted_mib, lifecycle::patience(&vm, config));
        if given.as_ref().ok() == Some(&wanted_mib) {
            host.size = Some(Size { memory_mib: wanted_mib, ..size });
            return Ok(());
        }
        // As it was. What the guest does not give at once it gives when it can.
        if let Err(error) =
            resize(size.memory_mib, Duration::ZERO).and_then(|_| Ok(limit(host, size.memory_mib)?))
        {
            tracing::debug!("the machine of {} keeps some memory: {error}", host.id);
        }
        return Err(Error::NotGrown { what: "MiB of memory", wanted: wanted_mib, given: given? });
    }
    let memory_mib = resize(wanted_mib, SHRINKING)?;
    host.size = Some(Size { memory_mib, ..size });
    Ok(limit(host, memory_mib)?)
}
