//! `linux.resources` made fit for the guest: what names hardware of the host is taken out, what libcgroups gets wrong is put
//! otherwise. Pure.

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

/// Rewrites the limits for a guest with that many processors.
pub fn adapt(resources: &mut LinuxResources, processors: usize) {
    // Numbers of the host's disks, whose work the host does and bounds; the weight is no number of theirs, but libcgroups
    // knows only the file of a scheduler that the guest has not.
    let weight = resources.block_io().as_ref().and_then(|block| block.weight()).filter(|weight| *weight != 0);
    resources.set_block_io(None);
    if let Some(weight) = weight {
        let unified = resources.unified_mut().get_or_insert_with(HashMap::new);
        unified.entry("io.weight".to_owned()).or_insert_with(|| io_weight(weight).to_string());
    }
    // Numbers of the host's processors: those that the guest has too are kept, so that a set of all of them is one of all.
    if let Some(cpu) = resources.cpu_mut() {
        let cpus = cpu.cpus().as_deref().and_then(|list| clip(list, processors));
        cpu.set_cpus(cpus);
        let mems = cpu.mems().as_deref().and_then(|list| clip(list, 1));
        cpu.set_mems(mems);
    }
    // runc takes 0 for no limit, libcgroups for none at all: then nothing can be forked.
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0) {
        resources.set_pids(None);
    }
    // No swap beside the memory: libcgroups leaves the file at "max".
    let no_swap = resources.memory().as_ref().is_some_and(|memory| {
        memory.limit().is_some_and(|limit| limit > 0) && memory.limit() == memory.swap()
    });
    if no_swap {
        let unified = resources.unified_mut().get_or_insert_with(HashMap::new);
        unified.entry("memory.swap.max".to_owned()).or_insert_with(|| "0".to_owned());
    }
}

/// From version 1's 10 to 1000 to version 2's 1 to 10000, as runc does it.
pub fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

/// The members of a kernel list such as "0-3,7" that are below `count`; `None` when there are none, or it is no list.
pub fn clip(list: &str, count: usize) -> Option<String> {
    let mut ranges = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let last = last.min(count.checked_sub(1)?);
        if first < last {
            ranges.push(format!("{first}-{last}"));
        } else if first == last {
            ranges.push(first.to_string());
        }
    }
    (!ranges.is_empty()).then(|| ranges.join(","))
}

/// Likewise, but a list of none that is there means as many as it has, from the first one on: the numbers are the host's, and
/// a container that may use some of its processors may use some of the guest's. `None` when it is no list.
pub fn fit(list: &str, count: usize) -> Option<String> {
    clip(list, count).or_else(|| {
        let members = clip(list, 1 << 20)?;
        let length = |part: &str| -> Option<usize> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
        };
        let wanted: usize = members.split(',').filter_map(length).sum();
        clip(&format!("0-{}", wanted.checked_sub(1)?), count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_what_is_not_there_keep_their_length() {
        assert_eq!(fit("3", 1).as_deref(), Some("0"));
        assert_eq!(fit("4-5,9", 4).as_deref(), Some("0-2"));
        assert_eq!(fit("4-9", 4).as_deref(), Some("0-3"));
        assert_eq!(fit("1,5", 4).as_deref(), Some("1"));
        for nothing in ["x", "-", "3-", "99999999999999999999"] {
            assert_eq!(fit(nothing, 4), None, "{nothing}");
        }
    }

    fn adapted(json: &str) -> LinuxResources {
        let mut resources = serde_json::from_str(json).expect("resources");
        adapt(&mut resources, 2);
        resources
    }

    #[test]
    fn lists_are_clipped_to_what_is_there() {
        assert_eq!(clip("0-7", 1).as_deref(), Some("0"));
        assert_eq!(clip("0-7,9", 4).as_deref(), Some("0-3"));
        assert_eq!(clip("1,3,0", 4).as_deref(), Some("1,3,0"));
        for nothing in ["", "4", "5-9", "a", "1-", "0-3"] {
            assert_eq!(clip(nothing, if nothing == "0-3" { 0 } else { 4 }), None, "{nothing}");
        }
    }

    #[test]
    fn no_limit_of_processes_is_no_limit() {
        assert!(adapted(r#"{"pids":{"limit":0}}"#).pids().is_none());
        assert!(adapted(r#"{"pids":{"limit":5}}"#).pids().is_some());
    }

    #[test]
    fn memory_without_swap_has_none() {
        let swap =
            |json| adapted(json).unified().as_ref().and_then(|all| all.get("memory.swap.max").cloned());
        assert_eq!(swap(r#"{"memory":{"limit":100,"swap":100}}"#).as_deref(), Some("0"));
        assert_eq!(swap(r#"{"memory":{"limit":100,"swap":200}}"#), None);
        assert_eq!(swap(r#"{"memory":{"limit":-1,"swap":-1}}"#), None);
        assert_eq!(swap(r#"{"memory":{}}"#), None);
    }

    #[test]
    fn the_hosts_disks_are_not_the_guests() {
        let json =
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}]},"cpu":{"cpus":"3"}}"#;
        let resources = adapted(json);
        assert!(resources.block_io().is_none());
        assert_eq!(resources.cpu().as_ref().and_then(|cpu| cpu.cpus().clone()), None);
    }
}
