//! What is written into the host's cgroups: the bundle's limits plus what a virtual machine costs. Pure.
//!
//! On the host only the sum counts: a machine whose limit were its container's alone would be killed for its own kernel's
//! and VMM's memory, or starve while it boots.

use oci_spec::runtime::LinuxResources;

/// What a sandbox may use beyond its container's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// All of the virtual machine's memory, container's share included.
    pub machine_mib: u32,
    /// VMM, file server and monitor.
    pub memory_mib: u32,
    /// Percent of one processor.
    pub cpu_percent: u32,
    /// Threads.
    pub tasks: u32,
}

/// The limits of one sandbox.
#[derive(Debug)]
pub struct Limits<'a> {
    pub resources: Option<&'a LinuxResources>,
    pub overhead: Overhead,
}

/// One value for one file.
#[derive(Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of version 1: whose files they are.
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
    /// A preference among groups rather than a wall: a host that does not take it does no harm.
    pub is_advice: bool,
}

const MIB: u64 = 1 << 20;

impl Limits<'_> {
    /// For version 1.
    pub fn legacy(&self) -> Vec<Limit> {
        let mut limits = self.shared();
        let mut add = |controller, file, value: String, is_advice| {
            limits.push(Limit { controller, file, value, is_advice });
        };
        if let Some(memory) = self.memory() {
            add(
                "memory",
                "memory.limit_in_bytes",
                memory.map_or("-1".into(), |bytes| bytes.to_string()),
                false,
            );
        }
        if let Some((quota, period)) = self.quota() {
            add("cpu", "cpu.cfs_period_us", period.to_string(), false);
            add("cpu", "cpu.cfs_quota_us", quota.map_or("-1".into(), |quota| quota.to_string()), false);
        }
        if let Some(shares) = self.shares() {
            add("cpu", "cpu.shares", shares.to_string(), true);
        }
        if let Some(weight) = self.io_weight() {
            add("blkio", "blkio.weight", weight.to_string(), true);
        }
        limits
    }

    /// For version 2.
    pub fn unified(&self) -> Vec<Limit> {
        let mut limits = self.shared();
        let mut add = |controller, file, value: String, is_advice| {
            limits.push(Limit { controller, file, value, is_advice });
        };
        if let Some(memory) = self.memory() {
            add("memory", "memory.max", or_max(memory), false);
        }
        if let Some((quota, period)) = self.quota() {
            add("cpu", "cpu.max", format!("{} {period}", or_max(quota)), false);
        }
        if let Some(shares) = self.shares() {
            // 2 … 262144 to 1 … 10000, as runc and systemd do.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            add("cpu", "cpu.weight", weight.to_string(), true);
        }
        if let Some(weight) = self.io_weight() {
            add(
                "io",
                "io.weight",
                (1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990).to_string(),
                true,
            );
        }
        limits
    }

    /// What has the same file in both versions.
    fn shared(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        let mut add = |controller, file, value: String| {
            limits.push(Limit { controller, file, value, is_advice: false });
        };
        if let Some(pids) = self.resources.and_then(|all| all.pids().as_ref()).map(|pids| pids.limit())
            && pids != 0
        {
            let pids = u64::try_from(pids).ok().map(|pids| pids.saturating_add(self.overhead.tasks.into()));
            add("pids", "pids.max", or_max(pids));
        }
        if let Some(cpu) = self.resources.and_then(|all| all.cpu().as_ref()) {
            for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
                if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                    add("cpuset", file, list.to_owned());
                }
            }
        }
        limits
    }

    /// Bytes, `Some(None)` for expressly no limit. The machine's whole memory may be touched: its kernel caches what the
    /// container reads.
    fn memory(&self) -> Option<Option<u64>> {
        let limit = self.resources?.memory().as_ref()?.limit().filter(|limit| *limit != 0)?;
        let machine = u64::from(self.overhead.machine_mib) * MIB;
        let overhead = u64::from(self.overhead.memory_mib) * MIB;
        Some(u64::try_from(limit).ok().map(|limit| limit.max(machine).saturating_add(overhead)))
    }

    /// Quota, likewise, and period in microseconds.
    fn quota(&self) -> Option<(Option<u64>, u64)> {
        let cpu = self.resources?.cpu().as_ref()?;
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period > 0);
        if quota.is_none() && period.is_none() {
            return None;
        }
        // A period alone is that of a quota to come.
        let (quota, period) = (quota.unwrap_or(-1), period.unwrap_or(100_000));
        let overhead = period.saturating_mul(self.overhead.cpu_percent.into()) / 100;
        Some((u64::try_from(quota).ok().map(|quota| quota.saturating_add(overhead)), period))
    }

    fn shares(&self) -> Option<u64> {
        self.resources?.cpu().as_ref()?.shares().filter(|shares| *shares > 0)
    }

    fn io_weight(&self) -> Option<u16> {
        self.resources?.block_io().as_ref()?.weight().filter(|weight| *weight > 0)
    }
}

fn or_max(value: Option<u64>) -> String {
    value.map_or("max".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(resources: Value) -> (Vec<String>, Vec<String>) {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let overhead = Overhead { machine_mib: 200, memory_mib: 100, cpu_percent: 50, tasks: 64 };
        let limits = Limits { resources: Some(&resources), overhead };
        let show = |limits: Vec<Limit>| {
            limits.into_iter().map(|limit| format!("{} {}", limit.file, limit.value)).collect()
        };
        (show(limits.legacy()), show(limits.unified()))
    }

    #[test]
    fn without_limits_nothing_is_written() {
        assert_eq!(written(json!({})), (vec![], vec![]));
        let none = json!({"memory": {"limit": 0}, "pids": {"limit": 0}, "cpu": {"quota": 0, "shares": 0, "cpus": ""},
            "blockIO": {"weight": 0}});
        assert_eq!(written(none), (vec![], vec![]));
        // An earlier one is lifted.
        let lifted =
            json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1, "period": 50_000}});
        let (legacy, unified) = written(lifted);
        let legacy: Vec<_> = legacy.iter().map(String::as_str).collect();
        let files =
            ["pids.max max", "memory.limit_in_bytes -1", "cpu.cfs_period_us 50000", "cpu.cfs_quota_us -1"];
        assert_eq!(legacy, files);
        assert_eq!(unified, ["pids.max max", "memory.max max", "cpu.max max 50000"]);
        let (legacy, unified) = written(json!({"cpu": {"period": 50_000}}));
        assert_eq!(legacy, ["cpu.cfs_period_us 50000", "cpu.cfs_quota_us -1"]);
        assert_eq!(unified, ["cpu.max max 50000"]);
    }

    #[test]
    fn limits_grow_by_the_overhead() {
        let (legacy, unified) = written(json!({
            "memory": {"limit": 104_857_600},
            "pids": {"limit": 10},
            "cpu": {"quota": 150_000, "period": 100_000, "shares": 1024, "cpus": "0-1", "mems": "0"},
            "blockIO": {"weight": 500},
        }));
        let both = ["pids.max 74", "cpuset.cpus 0-1", "cpuset.mems 0"];
        assert_eq!(legacy[..3], both);
        assert_eq!(
            legacy[3..],
            [
                "memory.limit_in_bytes 314572800",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_quota_us 200000",
                "cpu.shares 1024",
                "blkio.weight 500"
            ]
        );
        assert_eq!(unified[..3], both);
        assert_eq!(
            unified[3..],
            ["memory.max 314572800", "cpu.max 200000 100000", "cpu.weight 39", "io.weight 4950"]
        );
    }

    #[test]
    fn absurd_limits_do_not_overflow() {
        let (legacy, _) = written(json!({
            "memory": {"limit": i64::MAX}, "pids": {"limit": i64::MAX}, "cpu": {"quota": i64::MAX, "period": u64::MAX},
        }));
        assert_eq!(legacy.len(), 4);
    }
}
