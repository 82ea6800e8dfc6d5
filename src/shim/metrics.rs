//! What a container has used, in containerd's message for cgroup v2, which is what every guest has whatever the host has.
//!
//! The text comes from the guest: what cannot be read counts as nothing.

use std::collections::{BTreeMap, HashMap};

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::reflect::{ReflectValueBox, RuntimeFieldType, RuntimeType};

use crate::container::stats::{is_page_size, limit, number, pairs};

/// The name by which containerd knows the message.
pub const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// From the content of the files by their names, as Documentation/admin-guide/cgroup-v2.rst describes them.
pub fn from_cgroup(files: &HashMap<String, String>) -> Metrics {
    let text = |name: &str| files.get(name).map_or("", String::as_str);
    let mut cpu = CPUStat::new();
    fill(&mut cpu, &pairs(text("cpu.stat")));
    let mut memory = MemoryStat::new();
    fill(&mut memory, &pairs(text("memory.stat")));
    memory.usage = number(text("memory.current"));
    memory.usage_limit = limit(text("memory.max")).unwrap_or(u64::MAX);
    memory.max_usage = number(text("memory.peak"));
    memory.swap_usage = number(text("memory.swap.current"));
    memory.swap_limit = limit(text("memory.swap.max")).unwrap_or(u64::MAX);
    let mut memory_events = MemoryEvents::new();
    fill(&mut memory_events, &pairs(text("memory.events")));
    let pids = PidsStat {
        current: number(text("pids.current")),
        limit: limit(text("pids.max")).unwrap_or(0),
        ..Default::default()
    };
    Metrics {
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        memory_events: Some(memory_events).into(),
        pids: Some(pids).into(),
        io: Some(IOStat { usage: devices(text("io.stat")), ..Default::default() }).into(),
        hugetlb: hugetlb(files),
        ..Default::default()
    }
}

/// The message's fields have the names of the kernel's keys.
fn fill<M: MessageFull>(message: &mut M, pairs: &BTreeMap<String, u64>) {
    let descriptor = M::descriptor();
    for (key, value) in pairs {
        let field = descriptor.field_by_name(key);
        if let Some(field) = field
            && matches!(field.runtime_field_type(), RuntimeFieldType::Singular(RuntimeType::U64))
        {
            field.set_singular_field(message, ReflectValueBox::U64(*value));
        }
    }
}

/// Lines of `MAJOR:MINOR key=value …`.
fn devices(text: &str) -> Vec<IOEntry> {
    let device = |line: &str| {
        let (device, counts) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let count = |key: &str| {
            let values = counts.split_ascii_whitespace().filter_map(|word| word.split_once('='));
            number(values.filter(|(name, _)| *name == key).map(|(_, value)| value).next().unwrap_or(""))
        };
        Some(IOEntry {
            major: number(major),
            minor: number(minor),
            rbytes: count("rbytes"),
            wbytes: count("wbytes"),
            rios: count("rios"),
            wios: count("wios"),
            ..Default::default()
        })
    };
    text.lines().filter_map(device).collect()
}

fn hugetlb(files: &HashMap<String, String>) -> Vec<HugeTlbStat> {
    let sizes = files.iter().filter_map(|(name, current)| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        let file = |kind: &str| files.get(&format!("hugetlb.{size}.{kind}")).map_or("", String::as_str);
        is_page_size(size).then(|| HugeTlbStat {
            current: number(current),
            max: limit(file("max")).unwrap_or(u64::MAX),
            pagesize: size.into(),
            failcnt: pairs(file("events")).get("max").copied().unwrap_or(0),
            ..Default::default()
        })
    });
    sizes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect()
    }

    #[test]
    fn the_guests_files_become_fields() {
        let metrics = from_cgroup(&files(&[
            ("cpu.stat", "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_throttled 1\nnew_key 9\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 10\ninactive_file 20\n"),
            ("memory.events", "oom 1\noom_kill 2\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\nx\n"),
            ("hugetlb.2MB.current", "0"),
        ]));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.system_usec, metrics.cpu.nr_throttled), (7, 2, 1));
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.usage_limit, memory.anon), (4096, u64::MAX, 10));
        assert_eq!(memory.inactive_file, 20);
        assert_eq!((metrics.memory_events.oom, metrics.memory_events.oom_kill), (1, 2));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        let device = &metrics.io.usage[0];
        assert_eq!((device.major, device.rbytes, device.wios), (254, 1, 4));
        assert_eq!((metrics.io.usage.len(), metrics.hugetlb[0].pagesize.as_str()), (1, "2MB"));
    }

    #[test]
    fn a_hostile_guest_does_no_harm() {
        let metrics = from_cgroup(&files(&[
            ("cpu.stat", "psi 1\nusage_usec -1\nusage_usec 99999999999999999999\n"),
            ("memory.current", "x"),
            ("io.stat", ":\n: =\n1:2\n"),
        ]));
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage), (0, 0));
    }
}
