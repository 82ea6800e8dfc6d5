//! How large a virtual machine is: what the container may use, and what the guest itself needs. Pure.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::config::Hypervisor;

/// The kernel keeps a 64-byte structure for each page of 4 KiB.
const PAGES_PER_STRUCTURE: u64 = 64;
/// From here on a limit is none: no host has so much.
pub(super) const NO_LIMIT_MIB: u64 = 1 << 24;
/// The kernel's default where a quota comes without a period, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Processors and memory of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u32,
}

impl Size {
    /// For a container with these limits.
    ///
    /// - Processors: as many as the quota is worth, rounded up, or as the set of CPUs has, whichever is less; at
    ///   least the configured number, since that is what an operator wants everywhere, at most the configured maximum.
    /// - Memory: the limit, the configured overhead for kernel and agent, and what the kernel needs to manage
    ///   the whole, at most the configured maximum; without a limit the configured memory.
    pub fn new(resources: Option<&LinuxResources>, hypervisor: &Hypervisor) -> Self {
        let vcpus =
            resources.and_then(cpus).unwrap_or(0).clamp(hypervisor.vcpus.into(), hypervisor.max_vcpus.into());
        let memory_mib = match resources.and_then(memory_limit) {
            Some(limit) => with_structures(limit.saturating_add(hypervisor.memory_overhead_mib.into()))
                .min(hypervisor.max_memory_mib.into()),
            None => hypervisor.memory_mib.into(),
        };
        Self {
            vcpus: u8::try_from(vcpus).expect("at most max_vcpus"),
            memory_mib: u32::try_from(memory_mib).expect("at most max_memory_mib"),
        }
    }
}

impl Size {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self { vcpus: self.vcpus.max(other.vcpus), memory_mib: self.memory_mib.max(other.memory_mib) }
    }

    /// What of these limits the machine cannot give, in words; `None` when it can.
    pub fn lacks(&self, resources: Option<&LinuxResources>) -> Option<String> {
        let limit = resources.and_then(|resources| resources.memory().as_ref()?.limit()).unwrap_or(0);
        let memory_mib = u64::try_from(limit).unwrap_or(0) >> 20;
        let vcpus = resources.and_then(cpus).unwrap_or(0);
        if memory_mib > self.memory_mib.into() && memory_mib < NO_LIMIT_MIB {
            return Some(format!("{memory_mib} MiB, but it has {}", self.memory_mib));
        }
        (vcpus > self.vcpus.into()).then(|| format!("{vcpus} vCPUs, but it has {}", self.vcpus))
    }
}

/// The memory limit in MiB, rounded up; `None` without one, which -1 and 0 mean, too.
pub(super) fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = u64::try_from(resources.memory().as_ref()?.limit()?).ok()?;
    (limit > 0).then(|| limit.div_ceil(1 << 20))
}

/// So much memory and what the kernel needs to manage it.
pub(super) fn with_structures(mib: u64) -> u64 {
    mib.saturating_add(mib.div_ceil(PAGES_PER_STRUCTURE))
}

/// How many processors the limits allow to be busy at once; `None` without a limit.
fn cpus(resources: &LinuxResources) -> Option<u64> {
    Some(millicpus(resources)?.div_ceil(1000))
}

/// The same in thousandths, since parts of a processor add up.
pub(super) fn millicpus(resources: &LinuxResources) -> Option<u64> {
    let cpu = resources.cpu().as_ref()?;
    let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
    let quota = quota.map(|quota| quota.saturating_mul(1000).div_ceil(period));
    let set = cpu.cpus().as_deref().map(count).filter(|count| *count > 0).map(|count| count * 1000);
    match (quota, set) {
        (Some(quota), Some(set)) => Some(quota.min(set)),
        (one, other) => one.or(other),
    }
}

/// How many CPUs a list such as `0-3,8` names. One that is not a list counts as none: the kernel is to judge it.
fn count(list: &str) -> u64 {
    let range = |part: &str| -> Option<u64> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        Some(u64::from(last.checked_sub(first)?) + 1)
    };
    list.split(',').filter_map(range).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn size(resources: Value) -> (u8, u32) {
        let hypervisor =
            Hypervisor { vcpus: 1, memory_mib: 256, memory_overhead_mib: 64, ..Hypervisor::default() };
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let size = Size::new(Some(&resources), &hypervisor);
        (size.vcpus, size.memory_mib)
    }

    #[test]
    fn without_limits_it_is_as_configured() {
        assert_eq!(size(json!({})), (1, 256));
        assert_eq!(size(json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "shares": 2}})), (1, 256));
        assert_eq!(size(json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "cpus": ""}})), (1, 256));
        let size = Size::new(None, &Hypervisor { vcpus: 3, memory_mib: 512, ..Hypervisor::default() });
        assert_eq!(size, Size { vcpus: 3, memory_mib: 512 });
    }

    #[test]
    fn processors_follow_quota_and_set() {
        for (cpu, vcpus) in [
            (json!({"quota": 50_000, "period": 100_000}), 1),
            (json!({"quota": 150_000, "period": 100_000}), 2),
            (json!({"quota": 150_000}), 2),
            (json!({"quota": 150_000, "period": 0}), 2),
            (json!({"cpus": "0-3,8"}), 5),
            (json!({"cpus": "1"}), 1),
            (json!({"cpus": "0-3", "quota": 200_000}), 2),
            (json!({"cpus": "0", "quota": 800_000}), 1),
            (json!({"quota": i64::MAX, "period": 1}), 32),
            (json!({"cpus": "0-4294967295,0-4294967295"}), 32),
            (json!({"cpus": "nonsense,5-1"}), 1),
        ] {
            assert_eq!(size(json!({"cpu": cpu})).0, vcpus, "{cpu}");
        }
    }

    #[test]
    fn processors_are_at_least_the_configured() {
        let hypervisor = Hypervisor { vcpus: 4, ..Hypervisor::default() };
        let resources: LinuxResources = serde_json::from_value(json!({"cpu": {"quota": 100_000}})).unwrap();
        assert_eq!(Size::new(Some(&resources), &hypervisor).vcpus, 4);
    }

    #[test]
    fn no_machine_is_larger_than_the_maxima() {
        let hypervisor = Hypervisor { max_vcpus: 2, max_memory_mib: 512, ..Hypervisor::default() };
        let limits = json!({"cpu": {"quota": 800_000}, "memory": {"limit": 1 << 30}});
        let resources: LinuxResources = serde_json::from_value(limits).unwrap();
        assert_eq!(Size::new(Some(&resources), &hypervisor), Size { vcpus: 2, memory_mib: 512 });
    }

    #[test]
    fn memory_is_the_limit_and_what_the_guest_needs() {
        for (limit, memory_mib) in [
            (1_i64 << 30, 1024 + 64 + 17),
            (64 << 20, 128 + 2),
            (1, 65 + 2),
            ((64 << 20) + 1, 129 + 3),
            (i64::MAX, 65_536),
        ] {
            assert_eq!(size(json!({"memory": {"limit": limit}})).1, memory_mib, "{limit}");
        }
    }

    #[test]
    fn what_a_machine_cannot_give_is_told() {
        let size = Size { vcpus: 1, memory_mib: 256 };
        for (limits, lack) in [
            (json!({}), None),
            (json!({"memory": {"limit": 256 << 20}, "cpu": {"quota": 100_000}}), None),
            (json!({"memory": {"limit": i64::MAX}}), None),
            (json!({"memory": {"limit": 257 << 20}}), Some("257 MiB, but it has 256")),
            (json!({"cpu": {"quota": 100_001}}), Some("2 vCPUs, but it has 1")),
        ] {
            let resources: LinuxResources = serde_json::from_value(limits).unwrap();
            assert_eq!(size.lacks(Some(&resources)).as_deref(), lack);
        }
    }
}
