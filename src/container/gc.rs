//! What crashed sandboxes left behind: found from what is on disk alone, and removed.
//!
//! Whatever a sandbox acquires is named in its record before, or dies with the process that acquired it; so a record whose
//! monitor is gone names all that is left: helper processes, cgroups, the state directory. Beside records there are
//! only drafts of them, `~PID`, which exist for the moment between two system calls unless their maker was killed there.
//!
//! The one-file rt also leaves the guests of its earlier versions in its cache; and templates outlive the kernel and the rt that they
//! were made of.
//!
//! A container that ended in order (its record says *stopped*) is no leftover: whoever created it deletes it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::record::{self, Status, Store};
use super::{Error, lifecycle};
use crate::config::{self, Config};
use crate::hypervisor::kvm;
use crate::sys::pidfd::ProcessId;

/// A draft whose maker's number is some process's again is old by then.
const DRAFT_AGE: Duration = Duration::from_secs(60);

/// Something that nobody will come back for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    pub kind: Kind,
    pub path: PathBuf,
    /// Why it is one.
    pub reason: String,
    /// Helper processes that still run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<i32>,
    /// The host's cgroups that still exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Container,
    Draft,
    /// Of an rt that is no longer the one that runs.
    Guest,
    /// That no machine starts from any more.
    Template,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Draft => "draft",
            Self::Guest => "guest",
            Self::Template => "template",
        }
    }
}

/// All leftovers, by path: below the root, in the cache and among the templates. Nothing is changed.
///
/// # Errors
/// One of these cannot be listed.
pub fn leftovers(store: &Store) -> Result<Vec<Leftover>, Error> {
    let mut found: Vec<Leftover> = store.ids()?.iter().filter_map(|id| container(store, id)).collect();
    let file = |kind, path, reason| Leftover { kind, path, reason, processes: vec![], cgroups: vec![] };
    for (path, pid, age) in store.drafts()? {
        if !is_running(pid) || age > DRAFT_AGE {
            let reason = format!("process {pid} ended while it made it");
            found.push(file(Kind::Draft, path, reason));
        }
    }
    for path in config::Guest::stale()? {
        found.push(file(Kind::Guest, path, "unpacked by another version of rt".into()));
    }
    let templates = kvm::stale_templates().map_err(super::system("look through the templates"))?;
    found.extend(templates.into_iter().map(|(path, reason)| file(Kind::Template, path, reason)));
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn container(store: &Store, id: &str) -> Option<Leftover> {
    let leftover = |reason| {
        let path = store.path(id);
        Leftover { kind: Kind::Container, path, reason, processes: Vec::new(), cgroups: Vec::new() }
    };
    let record = match store.read(id) {
        Ok(record) => record,
        Err(record::Error::Damaged { reason, .. }) => {
            return Some(leftover(format!("its record is damaged: {reason}")));
        }
        Err(record::Error::Missing(_)) => return None,
        Err(error) => {
            tracing::warn!("{error}");
            return None;
        }
    };
    let crashed = record.status != Status::Stopped && record.status() == Status::Stopped;
    crashed.then(|| {
        let vm = record.vm.as_ref().map(|vm| ProcessId { pid: vm.pid, start_time: vm.start_time });
        // A member's machine is its sandbox's.
        let helpers = [vm, record.fsd].into_iter().flatten();
        let helpers = helpers.filter(|process| record.sandbox.is_none() && process.is_alive());
        let monitor = record.monitor.map_or(0, |monitor| monitor.pid);
        Leftover {
            processes: helpers.map(|process| process.pid).collect(),
            cgroups: record.cgroups.iter().filter(|group| group.exists()).cloned().collect(),
            ..leftover(format!("its monitor {monitor} ended while it was {}", record.status))
        }
    })
}

fn is_running(pid: i32) -> bool {
    ProcessId::of(pid).is_some_and(ProcessId::is_alive)
}

/// Removes one, unless it is none any more. The rest of a container goes as `rt delete --force` takes it away, its
/// poststop hooks included.
///
/// # Errors
/// What stands in the way.
pub fn remove(store: &Store, config: &Config, leftover: &Leftover) -> Result<(), Error> {
    match leftover.kind {
        Kind::Container => {
            let name = leftover.path.file_name().unwrap_or_default().to_string_lossy();
            // Somebody may have deleted it, and made another of that name.
            match container(store, &name) {
                Some(_) => lifecycle::delete(store, config, &name, true),
                None => Ok(()),
            }
        }
        Kind::Draft => match std::fs::remove_dir_all(&leftover.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(super::system("remove a draft")),
        },
        Kind::Guest => Ok(config::Guest::remove_stale(&leftover.path)?),
        Kind::Template => kvm::remove_template(&leftover.path).map_err(super::system("remove a template")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn damaged_records_and_drafts_of_the_dead_are_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().into());
        for directory in ["torn", "~999999999", "~x", &format!("~{}", std::process::id())] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("torn/state.json"), "{").unwrap();
        // What is this host's own is left alone.
        let leftovers = |store: &Store| {
            let mut found = leftovers(store).unwrap();
            found.retain(|one| [Kind::Container, Kind::Draft].contains(&one.kind));
            found
        };
        let found = leftovers(&store);
        let names: Vec<_> = found.iter().map(|one| one.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["torn", "~999999999"]);
        for leftover in &found {
            remove(&store, &Config::default(), leftover).unwrap();
        }
        assert_eq!(leftovers(&store), []);
        assert!(root.path().join("~x").exists() && !root.path().join("torn").exists());
        assert_eq!(leftovers(&Store::new(root.path().join("nowhere"))), []);
    }
}
