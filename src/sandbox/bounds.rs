//! Between which sizes a machine can change while it runs, and which of them its containers need. Pure.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::size::{Size, millicpus};
use crate::config::Hypervisor;

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
}

impl Bounds {
    /// Of a machine that starts with `size`, which is worth `resources`; `is_sandbox` for one that others are expected to
    /// join. A pod whose processors are not told in advance can grow to the host's.
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
        let most = Size { vcpus: vcpus.min(hypervisor.max_vcpus).max(size.vcpus), ..size };
        let least = Size { vcpus: hypervisor.vcpus.min(size.vcpus), ..size };
        Self { start: size, least, most, is_sandbox }
    }

    /// What the machine is to be for these containers, of which `first` is the one that it was started for.
    pub fn fit<'a>(&self, first: &LinuxResources, others: impl Iterator<Item = &'a LinuxResources>) -> Size {
        let others = others.filter_map(millicpus).fold(0, u64::saturating_add);
        let first = millicpus(first).unwrap_or(0);
        let all = if self.is_sandbox { first.max(others) } else { first.saturating_add(others) };
        let vcpus = all.div_ceil(1000).clamp(self.least.vcpus.into(), self.most.vcpus.into());
        Size { vcpus: vcpus as u8, ..self.start }
    }
}

fn host_processors() -> u8 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    count.and_then(|count| u8::try_from(count).ok()).unwrap_or(u8::MAX)
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
