//! The size of a machine, kept in step with what its containers may use together. Whoever changes it holds the lock of the
//! sandbox's record, which says what it is.

use oci_spec::runtime::LinuxResources;

use super::record::{self, Record, State, Status, Store};
use super::{Error, lifecycle, pod};
use crate::config::Config;
use crate::sandbox::Size;

/// Grows or shrinks the machine of `host` to what it needs for its first container and for `others`. A maximum that is reached
/// is no error: the containers' own limits hold all the same.
///
/// # Errors
/// As [`set`].
pub fn fit<'a>(
    state: &State,
    host: &mut Record,
    others: impl Iterator<Item = &'a LinuxResources>,
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

/// One that has this size is not asked anything.
///
/// # Errors
/// [`Error::NotGrown`]; what the agent says.
fn set(state: &State, host: &mut Record, wanted: Size, config: &Config) -> Result<(), Error> {
    let Some(mut size) = host.size.filter(|size| *size != wanted) else { return Ok(()) };
    let grows = wanted.vcpus > size.vcpus;
    size.vcpus = lifecycle::agent(host, config)?.set_processors(wanted.vcpus)?;
    host.size = Some(size);
    state.write(host)?;
    if grows && size.vcpus < wanted.vcpus {
        return Err(Error::NotGrown { what: "vCPUs", wanted: wanted.vcpus.into(), given: size.vcpus.into() });
    }
    Ok(())
}
