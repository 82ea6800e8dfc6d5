//! What a container has used, in the JSON of `runc events`: from the text of the guest's cgroup v2 files. Pure.
//!
//! The files come from a guest, so every number may be missing, absurd or no number at all: what cannot be read
//! counts as nothing, and nothing here can fail. Units are runc's: bytes and nanoseconds.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

/// The `data` of an event of type `stats`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    intel_rdt: BTreeMap<String, String>,
    /// The interfaces are the sandbox's, not the container's.
    network_interfaces: Option<Vec<String>>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// cgroup v2 has only the first two; callers expect the others.
#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
}

#[derive(Debug, PartialEq, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Stats {
    /// Processor time, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        self.cpu.usage.total
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory.usage.usage
    }

    /// `None` is no limit.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        Some(self.memory.usage.limit).filter(|limit| *limit != u64::MAX)
    }

    pub fn pids(&self) -> u64 {
        self.pids.current
    }

    /// From the content of the files by their names, as Documentation/admin-guide/cgroup-v2.rst describes them.
    pub fn from_cgroup(files: &HashMap<String, String>) -> Self {
        let text = |name: &str| files.get(name).map_or("", String::as_str);
        let cpu = pairs(text("cpu.stat"));
        let nanoseconds = |key: &str| value(&cpu, key).saturating_mul(1000);
        Self {
            cpu: Cpu {
                usage: CpuUsage {
                    total: nanoseconds("usage_usec"),
                    kernel: nanoseconds("system_usec"),
                    user: nanoseconds("user_usec"),
                },
                throttling: Throttling {
                    periods: value(&cpu, "nr_periods"),
                    throttled_periods: value(&cpu, "nr_throttled"),
                    throttled_time: nanoseconds("throttled_usec"),
                },
            },
            cpuset: CpuSet {
                cpus: list(text("cpuset.cpus")),
                mems: list(text("cpuset.mems")),
                ..CpuSet::default()
            },
            memory: memory(&text),
            pids: Pids { current: number(text("pids.current")), limit: limit(text("pids.max")).unwrap_or(0) },
            blkio: blkio(text("io.stat")),
            hugetlb: hugetlb(files),
            ..Self::default()
        }
    }
}

/// As runc maps version 2 to version 1: swap includes memory, and no limit is the largest number.
fn memory<'a>(text: &impl Fn(&'static str) -> &'a str) -> Memory {
    let raw = pairs(text("memory.stat"));
    let memory_limit = limit(text("memory.max"));
    let swap_limit = limit(text("memory.swap.max"));
    let used = number(text("memory.current"));
    let both = memory_limit.zip(swap_limit).map(|(memory, swap)| memory.saturating_add(swap));
    Memory {
        cache: value(&raw, "file"),
        usage: MemoryEntry {
            limit: memory_limit.unwrap_or(u64::MAX),
            usage: used,
            max: number(text("memory.peak")),
            failcnt: value(&pairs(text("memory.events")), "max"),
        },
        swap: MemoryEntry {
            limit: both.unwrap_or(u64::MAX),
            usage: used.saturating_add(number(text("memory.swap.current"))),
            max: 0,
            failcnt: value(&pairs(text("memory.swap.events")), "fail"),
        },
        raw,
        ..Memory::default()
    }
}

/// Lines of `MAJOR:MINOR key=value …`.
fn blkio(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        for (key, count) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry { major: number(major), minor: number(minor), op, value: number(count) });
        }
    }
    blkio
}

fn hugetlb(files: &HashMap<String, String>) -> BTreeMap<String, Hugetlb> {
    let sizes = files.iter().filter_map(|(name, usage)| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        let events = files.get(&format!("hugetlb.{size}.events")).map_or("", String::as_str);
        let usage = Hugetlb { usage: number(usage), max: 0, failcnt: value(&pairs(events), "max") };
        is_page_size(size).then(|| (size.to_owned(), usage))
    });
    sizes.collect()
}

/// As a kernel names one, `2MB`: it becomes a name in somebody's statistics.
pub fn is_page_size(text: &str) -> bool {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_uppercase());
    (1..=4).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && ["KB", "MB", "GB"].contains(&&text[digits.len()..])
}

pub fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `None` is no limit.
pub fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of `key value`.
pub fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((crate::sys::text::printable(key, 64), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

pub fn value(pairs: &BTreeMap<String, u64>, key: &str) -> u64 {
    pairs.get(key).copied().unwrap_or(0)
}

/// `0-2,5`; bounded, since a guest wrote it.
fn list(text: &str) -> Vec<u16> {
    const MOST: usize = 4096;
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { continue };
        numbers.extend((first..=last).take(MOST.saturating_sub(numbers.len())));
    }
    numbers
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_sizes_are_the_kernels() {
        for (text, is) in [
            ("2MB", true),
            ("64KB", true),
            ("1GB", true),
            ("", false),
            ("MB", false),
            ("2", false),
            ("2MB.rsvd", false),
        ] {
            assert_eq!(super::is_page_size(text), is, "{text}");
        }
        assert!(
            ["1MB\n", "99999MB", "2mb", "2MBx", "\u{662}MB"].iter().all(|text| !super::is_page_size(text))
        );
    }

    use serde_json::json;

    use super::*;

    fn stats(files: &[(&str, &str)]) -> serde_json::Value {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        serde_json::to_value(Stats::from_cgroup(&files)).unwrap()
    }

    #[test]
    fn files_become_runcs_numbers() {
        let stats = stats(&[
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("cpuset.cpus", "0-2,5\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.peak", "5000\n"),
            ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "1000\n"),
            ("memory.stat", "anon 11\nfile 22\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.events", "max 9\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
        ]);
        assert_eq!(stats["cpu"]["usage"], json!({"total": 1_500_000, "kernel": 500_000, "user": 1_000_000}));
        assert_eq!(
            stats["cpu"]["throttling"],
            json!({"periods": 3, "throttledPeriods": 2, "throttledTime": 7000})
        );
        assert_eq!(stats["cpuset"]["cpus"], json!([0, 1, 2, 5]));
        assert_eq!(
            stats["memory"]["usage"],
            json!({"limit": 8192, "usage": 4096, "max": 5000, "failcnt": 4})
        );
        assert_eq!(stats["memory"]["swap"], json!({"limit": 9192, "usage": 4196, "failcnt": 0}));
        assert_eq!(stats["memory"]["cache"], 22);
        assert_eq!(stats["memory"]["raw"], json!({"anon": 11, "file": 22}));
        assert_eq!(stats["pids"], json!({"current": 3}));
        assert_eq!(stats["blkio"]["ioServicedRecursive"][1], json!({"major": 8, "op": "Write", "value": 4}));
        assert_eq!(stats["hugetlb"], json!({"2MB": {"usage": 2_097_152, "failcnt": 9}}));
        assert!(stats["network_interfaces"].is_null());
    }

    #[test]
    fn nonsense_counts_as_nothing() {
        let stats = stats(&[
            ("cpu.stat", "usage_usec 18446744073709551615\nuser_usec -1\nsystem_usec\n\0 1"),
            ("cpuset.cpus", "0-65535,0-65535,9-1,a-b"),
            ("memory.max", "much"),
            ("memory.current", "18446744073709551615"),
            ("memory.swap.current", "18446744073709551615"),
            ("io.stat", "8 rbytes=1\n8:x rbytes=y\n:"),
            ("hugetlb..current", "1"),
        ]);
        assert_eq!(stats["cpu"]["usage"]["total"], u64::MAX);
        assert_eq!(stats["cpuset"]["cpus"].as_array().unwrap().len(), 4096);
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(stats["hugetlb"], json!({}));
    }
}
