//! What the host mounts and unmounts below a volume, for a container that is to see it (`rslave`, Kubernetes' `HostToContainer`).

use nix::poll::PollFlags;

use super::record::{Status, Store};
use super::watch::{News, Watcher};
use super::{Error, system};
use crate::agent::Agent;
use crate::fsd::{self, Entry};
use crate::sandbox;
use crate::sys::mountinfo;

/// Keeps these entries in step, which a container of `sandbox` uses; none where there is nothing to follow.
///
/// # Errors
/// [`Error::System`]
pub fn start(
    store: &Store,
    sandbox: &str,
    entries: Vec<Entry>,
    agent: &Agent,
) -> Result<Option<Watcher>, Error> {
    if entries.is_empty() {
        return Ok(None);
    }
    // Before the first look, so that no change after it goes unseen.
    let mounts = mountinfo::watch().map_err(system("watch the host's mounts"))?;
    let (store, agent, sandbox) = (store.clone(), agent.clone(), sandbox.to_owned());
    let what = format!("the host's mounts in the volumes of {sandbox}");
    let look = move || catch_up(&store, &sandbox, &entries, &agent);
    look()?;
    let news = News { of: mounts, flag: PollFlags::POLLPRI, take: |_| () };
    Watcher::start(news, what, look).map(Some)
}

fn catch_up(store: &Store, sandbox: &str, entries: &[Entry], agent: &Agent) -> Result<(), Error> {
    // Another container of the pod may follow the same.
    let state = store.lock(sandbox)?;
    let record = state.read()?;
    let Some(server) = record.fsd.filter(|_| record.status() != Status::Stopped) else { return Ok(()) };
    let gone = match fsd::follow(server, entries) {
        Err(fsd::Error::Gone) => return Ok(()),
        other => other.map_err(sandbox::Error::from)?,
    };
    drop(state);
    if !gone.is_empty() {
        agent.release_share(&gone)?;
    }
    Ok(())
}
