//! What sandboxes use now: the container in its guest, as the guest tells it, and the sandbox's processes on the host,
//! as the host counts them.
//!
//! The two differ on purpose: the guest's own kernel and what it caches is in the host's numbers only. Disk is the host's
//! number, too: what the file server really read from and wrote to storage.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use serde::Serialize;

use super::lifecycle;
use super::record::{self, Record, Status, Store};
use super::{Error, Stats};
use crate::config::Config;
use crate::net::Traffic;

/// A guest that does not answer must not keep the others' numbers back for long.
const PATIENCE: Duration = Duration::from_secs(2);

/// One container's use at one moment. Times are sums since its start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    pub id: String,
    pub status: Status,
    /// Of a guest that answers.
    pub guest: Option<Guest>,
    pub host: Host,
}

/// Inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Guest {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub pids: u64,
}

/// Outside: monitor, VMM, file server and what else they started. Of a container that has joined another's machine, what is
/// its alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    pub cpu_ns: u64,
    /// Proportional: what processes share is divided among them.
    pub memory_bytes: u64,
    pub processes: u64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
    /// Through the container's interfaces, as it sees them.
    pub net_received_bytes: u64,
    pub net_sent_bytes: u64,
}

/// The use of the named containers, or of all that have not stopped where none is named; in the order of their IDs.
///
/// # Errors
/// A named container does not exist; the root cannot be listed.
pub fn usage(store: &Store, config: &Config, ids: &[String]) -> Result<Vec<Usage>, Error> {
    let records = records(store, ids)?;
    let children = children();
    let mut quick = config.clone();
    quick.agent.timeout_ms = quick.agent.timeout_ms.min(PATIENCE.as_millis() as u64);
    let one = |record: Record| {
        let status = record.status();
        let guest = match status {
            Status::Creating | Status::Stopped => None,
            _ => match lifecycle::stats(store, &quick, &record.id) {
                Ok(stats) => Some(Guest::of(&stats)),
                Err(error) => {
                    tracing::debug!("no statistics of {}: {error}", record.id);
                    None
                }
            },
        };
        let host = if status == Status::Stopped { Host::default() } else { Host::of(&record, &children) };
        Usage { id: record.id, status, guest, host }
    };
    Ok(records.into_iter().map(one).collect())
}

fn records(store: &Store, ids: &[String]) -> Result<Vec<Record>, Error> {
    if !ids.is_empty() {
        return ids.iter().map(|id| Ok(store.read(id)?)).collect();
    }
    let mut records = Vec::new();
    for id in store.ids()? {
        match store.read(&id) {
            Ok(record) if record.status() != Status::Stopped => records.push(record),
            // Deleted meanwhile.
            Ok(_) | Err(record::Error::Missing(_)) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    Ok(records)
}

impl Guest {
    fn of(stats: &Stats) -> Self {
        Self {
            cpu_ns: stats.cpu_ns(),
            memory_bytes: stats.memory_bytes(),
            memory_limit_bytes: stats.memory_limit_bytes(),
            pids: stats.pids(),
        }
    }
}

impl Host {
    fn of(record: &Record, children: &BTreeMap<i32, Vec<i32>>) -> Self {
        let is_member = record.sandbox.is_some();
        let monitor = record.monitor.filter(|_| !(is_member && record.shared_monitor));
        let vm = record.vm.as_ref().filter(|_| !is_member);
        let named = [monitor.map(|monitor| monitor.pid), vm.map(|vm| vm.pid), record.fsd.map(|fsd| fsd.pid)];
        let mut left: Vec<i32> = named.into_iter().flatten().collect();
        let mut seen = BTreeSet::new();
        let traffic = record.network.traffic().unwrap_or_else(|error| {
            tracing::debug!("no network statistics of {}: {error}", record.id);
            Traffic::default()
        });
        let mut host =
            Self { net_received_bytes: traffic.received, net_sent_bytes: traffic.sent, ..Self::default() };
        while let Some(pid) = left.pop() {
            if seen.insert(pid) {
                host.add(pid);
                left.extend(children.get(&pid).into_iter().flatten());
            }
        }
        host
    }

    /// Adds a process; one that has ended counts as nothing.
    fn add(&mut self, pid: i32) {
        let Ok(stat) = procfs::process::Process::new(pid).and_then(|process| process.stat()) else { return };
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let (memory, io) = (file("smaps_rollup"), file("io"));
        self.cpu_ns += (stat.utime + stat.stime).saturating_mul(1_000_000_000 / procfs::ticks_per_second());
        self.memory_bytes += field(&memory, "Pss:") << 10;
        self.processes += 1;
        self.disk_read_bytes += field(&io, "read_bytes:");
        self.disk_written_bytes += field(&io, "write_bytes:");
    }
}

/// The number after a key at the beginning of a line; 0 where there is none.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Of every process of the host those that it started.
fn children() -> BTreeMap<i32, Vec<i32>> {
    let mut children = BTreeMap::<i32, Vec<i32>>::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        if let Ok(stat) = process.stat() {
            children.entry(stat.ppid).or_default().push(stat.pid);
        }
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_keys() {
        let text = "Rss:  12 kB\nPss:                9 kB\nPss_Anon: 3 kB\n";
        assert_eq!((field(text, "Pss:"), field(text, "Swap:")), (9, 0));
    }

    #[test]
    fn a_process_counts_with_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id() as i32;
        assert!(children()[&own].contains(&(child.id() as i32)));
        let mut host = Host::default();
        host.add(own);
        assert!(host.processes == 1 && host.memory_bytes > 0, "{host:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        host.add(child.id() as i32);
        assert_eq!(host.processes, 1);
    }
}
