//! Between which sizes a machine can change while it runs, and which of them its containers need. Pure.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::size::{NO_LIMIT_MIB, Size, memory_limit, millicpus, with_structures};
use crate::config::Hypervisor;
use crate::hypervisor::MEMORY_UNIT_MIB;

/// A pod whose limits nobody has told gets no more processors than this, whatever the host has: each possible one costs the
/// guest some 200 KiB and the host a thread.
const MOST_VCPUS_OF_A_POD: u8 = 8;

/// Fixed when the machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub start: Size,
    pub least: Size,
    pub most: Size,
    /// Others are expected to join, and its first container's limits stand for all.
    is_sandbox: bool,
    /// Beyond the containers' limits, for kernel and agent.
    overhead_mib: u32,
    /// For containers without a limit.
    unlimited_mib: u32,
}

impl Bounds {
    /// Of a machine that starts with `size`, which is worth `resources`; `is_sandbox` for one that others are expected to
    /// join. A pod whose processors, or memory, are not told in advance can grow to the host's.
    pub fn new(
        size: Size,
        resources: Option<&LinuxResources>,
        is_sandbox: bool,
        hypervisor: &Hypervisor,
    ) -> Self {
        let is_open = is_sandbox && resources.and_then(millicpus).is_none();
        let vcpus = match hypervisor.grow_vcpus {
            Some(vcpus) => vcpus,
            None if is_open => host_processors().min(MOST_VCPUS_OF_A_POD),
            None => size.vcpus,
        };
        let is_open = is_sandbox && resources.and_then(memory_limit).is_none();
        let memory_mib = match hypervisor.grow_memory_mib {
            Some(memory_mib) => memory_mib,
            None if is_open => host_memory_mib(),
            None => size.memory_mib,
        };
        let more_mib = memory_mib.min(hypervisor.max_memory_mib).saturating_sub(size.memory_mib);
        let most = Size {
            vcpus: vcpus.min(hypervisor.max_vcpus).max(size.vcpus),
            memory_mib: size.memory_mib + more_mib / MEMORY_UNIT_MIB * MEMORY_UNIT_MIB,
        };
        Self {
            start: size,
            least: Size { vcpus: hypervisor.vcpus.min(size.vcpus), ..size },
            most,
            is_sandbox,
            overhead_mib: hypervisor.memory_overhead_mib,
            unlimited_mib: hypervisor.memory_mib,
        }
    }

    /// What the machine is to be for these containers, of which `first` is the one that it was started for.
    pub fn fit<'a>(
        &self,
        first: &LinuxResources,
        others: impl Iterator<Item = &'a LinuxResources> + Clone,
    ) -> Size {
        let together = |first: u64, others: u64| match self.is_sandbox {
            true => first.max(others),
            false => first.saturating_add(others),
        };
        let sum = others.clone().filter_map(millicpus).fold(0, u64::saturating_add);
        let vcpus = together(millicpus(first).unwrap_or(0), sum).div_ceil(1000);

        let limit = |resources: &LinuxResources| memory_limit(resources).filter(|mib| *mib < NO_LIMIT_MIB);
        let sum = others.filter_map(limit).fold(0, u64::saturating_add);
        let memory_mib = match limit(first) {
            Some(first) => with_structures(together(first, sum).saturating_add(self.overhead_mib.into())),
            None => with_structures(sum).saturating_add(self.unlimited_mib.into()),
        };
        // In whole units above what it started with, which it keeps.
        let more_mib = memory_mib.saturating_sub(self.start.memory_mib.into());
        let more_mib = more_mib.next_multiple_of(MEMORY_UNIT_MIB.into());
        let most_mib = self.most.memory_mib - self.start.memory_mib;
        Size {
            vcpus: vcpus.clamp(self.least.vcpus.into(), self.most.vcpus.into()) as u8,
            memory_mib: self.start.memory_mib + more_mib.min(most_mib.into()) as u32,
        }
    }
}

fn host_processors() -> u8 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    count.and_then(|count| u8::try_from(count).ok()).unwrap_or(u8::MAX)
}

/// MemTotal; what cannot be read does not bind.
fn host_memory_mib() -> u32 {
    let bytes = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |memory| memory.ram_total());
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn quota(quota: i64) -> LinuxResources {
        serde_json::from_value(json!({"cpu": {"quota": quota, "period": 100_000}})).unwrap()
    }

    fn bounds(first: Option<&LinuxResources>, is_sandbox: bool, grow_vcpus: Option<u8>) -> Bounds {
        let hypervisor = Hypervisor { grow_vcpus, ..Hypervisor::default() };
        Bounds::new(Size::new(first, &hypervisor), first, is_sandbox, &hypervisor)
    }

    #[test]
    fn a_machine_grows_where_that_was_asked_for_or_is_likely() {
        let vcpus = |bounds: Bounds| (bounds.start.vcpus, bounds.most.vcpus);
        assert_eq!(vcpus(bounds(None, false, None)), (1, 1));
        assert_eq!(vcpus(bounds(Some(&quota(250_000)), false, None)), (3, 3));
        assert_eq!(vcpus(bounds(Some(&quota(250_000)), true, None)), (3, 3));
        assert_eq!(vcpus(bounds(None, true, None)), (1, host_processors().min(8)));
        assert_eq!(vcpus(bounds(None, false, Some(4))), (1, 4));
        // What it starts with is never too much, and the operator's maximum holds.
        assert_eq!(vcpus(bounds(Some(&quota(300_000)), false, Some(2))), (3, 3));
        let hypervisor = Hypervisor { grow_vcpus: Some(8), max_vcpus: 2, ..Hypervisor::default() };
        let bounds = Bounds::new(Size::new(None, &hypervisor), None, false, &hypervisor);
        assert_eq!(bounds.most.vcpus, 2);
    }

    fn memory(limit_mib: i64) -> LinuxResources {
        serde_json::from_value(json!({"memory": {"limit": limit_mib << 20}})).unwrap()
    }

    fn memory_bounds(first: Option<&LinuxResources>, is_sandbox: bool, grow: Option<u32>) -> Bounds {
        let hypervisor =
            Hypervisor { grow_memory_mib: grow, memory_overhead_mib: 64, ..Hypervisor::default() };
        Bounds::new(Size::new(first, &hypervisor), first, is_sandbox, &hypervisor)
    }

    #[test]
    fn memory_is_added_in_units_up_to_the_most() {
        let alone = memory_bounds(None, false, Some(1001));
        assert_eq!((alone.start.memory_mib, alone.most.memory_mib), (256, 1000));
        let fit = |limit: i64| alone.fit(&memory(limit), [].iter()).memory_mib;
        assert_eq!((fit(1), fit(188), fit(189), fit(500), fit(5000)), (256, 256, 258, 574, 1000));
        assert_eq!(alone.fit(&memory(i64::MAX >> 20), [].iter()).memory_mib, 256);
        assert_eq!(memory_bounds(Some(&memory(100)), false, None).most.memory_mib, 167);
        assert_eq!(memory_bounds(None, true, None).most.memory_mib, (host_memory_mib() / 2 * 2).min(65_536));
    }

    #[test]
    fn limits_of_a_pods_containers_add_up() {
        let pod = memory_bounds(None, true, Some(4096));
        let fit = |others: &[LinuxResources]| pod.fit(&LinuxResources::default(), others.iter()).memory_mib;
        assert_eq!(fit(&[]), 256);
        assert_eq!(fit(&[memory(128), quota(1)]), 256 + 130);
        assert_eq!(fit(&[memory(128), memory(512)]), 256 + 650);
        let told = memory(1000);
        let pod = memory_bounds(Some(&told), true, Some(4096));
        assert_eq!(pod.fit(&told, [memory(500), memory(500)].iter()), pod.start);
        assert!(pod.fit(&told, [memory(500), memory(700)].iter()).memory_mib > pod.start.memory_mib);
    }

    #[test]
    fn parts_of_processors_add_up() {
        let pod = bounds(None, true, Some(4));
        let fit = |others: &[i64]| {
            let others: Vec<_> = others.iter().map(|part| quota(*part)).collect();
            pod.fit(&LinuxResources::default(), others.iter()).vcpus
        };
        assert_eq!(fit(&[]), 1);
        assert_eq!(fit(&[50_000, 50_000]), 1);
        assert_eq!(fit(&[50_000, 50_000, 1000]), 2);
        assert_eq!(fit(&[100_000, -1, 200_000]), 3);
        assert_eq!(fit(&[900_000]), 4);
        assert_eq!(fit(&[i64::MAX, i64::MAX]), 4);
    }

    #[test]
    fn what_was_told_in_advance_is_not_counted_twice() {
        let told = quota(200_000);
        let pod = bounds(Some(&told), true, Some(8));
        assert_eq!(pod.fit(&told, [quota(100_000), quota(100_000)].iter()).vcpus, 2);
        assert_eq!(pod.fit(&told, [quota(300_000)].iter()).vcpus, 3);
        let alone = bounds(Some(&told), false, Some(8));
        assert_eq!(alone.fit(&told, [quota(100_000)].iter()).vcpus, 3);
        assert_eq!(alone.fit(&quota(50_000), [].iter()).vcpus, 1);
    }
}
