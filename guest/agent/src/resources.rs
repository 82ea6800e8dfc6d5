//! New limits for a container that exists: `linux.resources` of the runtime-spec, as files of its cgroup v2. The values are
//! converted as runc does; what cgroup v2 cannot do, or only the host could, is refused. A refusal leaves all as it was.

use std::fs;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use crate::{cgroup, limits, lookup};

/// Files and what is to be written to them, in order.
type Changes = Vec<(String, String)>;

/// What the conversion has to know of the container and the guest.
struct Now<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
    processors: usize,
}

impl Now<'_> {
    fn number(&self, file: &str) -> Option<i64> {
        (self.read)(file)?.trim().parse().ok()
    }
}

/// Changes the container's limits; what `json` does not speak of stays.
///
/// # Errors
/// For the user.
pub fn update(container: &str, json: &[u8]) -> Result<(), String> {
    let resources: LinuxResources =
        serde_json::from_slice(json).map_err(|error| format!("the resources are not valid: {error}"))?;
    let group = cgroup::directory(container);
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let changes = convert(&resources, &Now { read: &read, processors: crate::sys::processors() })?;
    let mut undo = Changes::new();
    for (file, value) in changes {
        let before = read(&file);
        if let Err(error) = fs::write(group.join(&file), &value) {
            for (file, value) in undo.iter().rev() {
                let _ = fs::write(group.join(file), value);
            }
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            return Err(match errno {
                Errno::ENOENT | Errno::EACCES => {
                    format!("cannot set {file} to {value}: the guest's kernel does not have it")
                }
                errno => format!("cannot set {file} to {value}: {}", lookup::words(errno)),
            });
        }
        undo.extend(before.map(|before| (file, before)));
    }
    Ok(())
}

fn convert(resources: &LinuxResources, now: &Now<'_>) -> Result<Changes, String> {
    let mut changes = Changes::new();
    if let Some(memory) = resources.memory() {
        convert_memory(memory, now, &mut changes)?;
    }
    if let Some(cpu) = resources.cpu() {
        convert_cpu(cpu, now, &mut changes)?;
    }
    if let Some(pids) = resources.pids() {
        changes.extend(limit(pids.limit()).map(|value| ("pids.max".to_owned(), value)));
    }
    if let Some(block) = resources.block_io() {
        convert_block(block, &mut changes)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        check_name(size)?;
        changes.push((format!("hugetlb.{size}.max"), page.limit().to_string()));
    }
    if resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some() || network.priorities().as_ref().is_some_and(|all| !all.is_empty())
    }) {
        return Err("cannot set network priorities: cgroup v2 has none".to_owned());
    }
    if resources.rdma().as_ref().is_some_and(|all| !all.is_empty()) {
        return Err("cannot limit RDMA: its devices are the host's".to_owned());
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort_unstable();
    for (file, value) in unified {
        check_name(file)?;
        changes.push((file.clone(), value.clone()));
    }
    Ok(changes)
}

/// A file of the container's own group and nothing else.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.starts_with("cgroup.") || name.contains(['/', '\0']) {
        return Err(format!("{name:?} is no limit of a cgroup"));
    }
    Ok(())
}

/// -1 is no limit, 0 none given.
fn limit(value: i64) -> Option<String> {
    match value {
        0 => None,
        -1 => Some("max".to_owned()),
        value => Some(value.to_string()),
    }
}

fn convert_memory(memory: &LinuxMemory, now: &Now<'_>, changes: &mut Changes) -> Result<(), String> {
    if memory.swappiness().is_some() {
        return Err("cannot set the swappiness: cgroup v2 has none".to_owned());
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err("cannot disable the OOM killer: cgroup v2 has no such switch".to_owned());
    }
    let given = memory.limit().unwrap_or(0);
    if memory.check_before_update() == Some(true) && given > 0 {
        let used = now.number("memory.current").unwrap_or(0);
        if used > given {
            return Err(format!("unable to set memory limit to {given} (current usage: {used})"));
        }
    }
    let swap = memory.swap().unwrap_or(0);
    let swap_max = match (given, swap) {
        // As with runc: no limit of memory is none of swap either.
        (-1, 0) | (_, -1) => Some("max".to_owned()),
        (_, 0) => None,
        (limit, swap) => {
            let limit = if limit == 0 { now.number("memory.max").unwrap_or(-1) } else { limit };
            if limit <= 0 {
                return Err("unable to set swap limit without memory limit".to_owned());
            }
            let beyond = swap.checked_sub(limit).filter(|beyond| *beyond >= 0);
            Some(beyond.ok_or("memory+swap limit should be >= memory limit")?.to_string())
        }
    };
    // A kernel without swap has no such file, and what is asked for in these two cases all the same.
    let has_swap = (now.read)("memory.swap.max").is_some();
    changes.extend(
        swap_max
            .filter(|value| has_swap || (value != "max" && value != "0"))
            .map(|value| ("memory.swap.max".to_owned(), value)),
    );
    changes.extend(limit(given).map(|value| ("memory.max".to_owned(), value)));
    let reservation = limit(memory.reservation().unwrap_or(0));
    changes.extend(reservation.map(|value| ("memory.low".to_owned(), value)));
    Ok(())
}

fn convert_cpu(cpu: &LinuxCpu, now: &Now<'_>, changes: &mut Changes) -> Result<(), String> {
    if cpu.realtime_runtime().is_some_and(|value| value != 0)
        || cpu.realtime_period().is_some_and(|value| value != 0)
    {
        return Err("cannot set real-time limits: cgroup v2 has none".to_owned());
    }
    let mut change = |file: &str, value: String| changes.push((file.to_owned(), value));
    // First: an idle group's weight cannot be set, and leaving idleness resets it.
    if let Some(idle) = cpu.idle() {
        change("cpu.idle", idle.to_string());
    }
    if let Some(weight) = weight(cpu.shares().unwrap_or(0)) {
        change("cpu.weight", weight.to_string());
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    let burst = cpu.burst().map(|burst| burst.to_string());
    // A burst is at most the quota: the smaller one first, so that no step is refused.
    let shrinks = burst
        .as_ref()
        .is_some_and(|burst| burst.parse::<i64>().ok() <= now.number("cpu.max.burst").or(Some(0)));
    if shrinks && let Some(burst) = &burst {
        change("cpu.max.burst", burst.clone());
    }
    if quota != 0 || period != 0 {
        let before = (now.read)("cpu.max").unwrap_or_default();
        let mut before = before.split_ascii_whitespace();
        let (old_quota, old_period) = (before.next().unwrap_or("max"), before.next().unwrap_or("100000"));
        let quota = match quota {
            0 => old_quota.to_owned(),
            1.. => quota.to_string(),
            _ => "max".to_owned(),
        };
        let period = if period == 0 { old_period.to_owned() } else { period.to_string() };
        change("cpu.max", format!("{quota} {period}"));
    }
    if !shrinks && let Some(burst) = burst {
        change("cpu.max.burst", burst);
    }
    for (file, list, count) in [("cpuset.cpus", cpu.cpus(), now.processors), ("cpuset.mems", cpu.mems(), 1)] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { continue };
        let fitting = limits::fit(list, count);
        change(
            file,
            fitting.ok_or_else(|| format!("cannot set {file} to {list:?}: that is no list of numbers"))?,
        );
    }
    Ok(())
}

/// Shares, 2 to 262144 with 1024 as the default, as a weight, 1 to 10000 with 100: runc's curve through the three. `None`
/// when none are given.
fn weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some((10f64.powf(exponent).ceil() as u64).clamp(1, 10_000))
        }
    }
}

fn convert_block(block: &LinuxBlockIo, changes: &mut Changes) -> Result<(), String> {
    let throttles = [
        block.throttle_read_bps_device(),
        block.throttle_write_bps_device(),
        block.throttle_read_iops_device(),
        block.throttle_write_iops_device(),
    ];
    if throttles.iter().any(|devices| devices.as_ref().is_some_and(|devices| !devices.is_empty()))
        || block.weight_device().as_ref().is_some_and(|devices| !devices.is_empty())
        || block.leaf_weight().is_some_and(|weight| weight != 0)
    {
        return Err("cannot limit block devices: they are the host's".to_owned());
    }
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        changes.push(("io.weight".to_owned(), limits::io_weight(weight).to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(json: &str) -> Result<String, String> {
        let resources = serde_json::from_str(json).expect("resources");
        let read = |file: &str| match file {
            "cpu.max" => Some("5000 20000\n".to_owned()),
            "memory.max" => Some("1000\n".to_owned()),
            "memory.current" => Some("700\n".to_owned()),
            "memory.swap.max" => Some("max\n".to_owned()),
            "cpu.max.burst" => Some("100\n".to_owned()),
            _ => None,
        };
        let changes = convert(&resources, &Now { read: &read, processors: 2 })?;
        Ok(changes.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(";"))
    }

    fn becomes(json: &str, expected: &str) {
        assert_eq!(changes(json).as_deref(), Ok(expected), "{json}");
    }

    fn refused(json: &str, words: &str) {
        let error = changes(json).expect_err(json);
        assert!(error.contains(words), "{json}: {error}");
    }

    #[test]
    fn memory_and_swap() {
        becomes(
            r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
            "memory.swap.max=200;memory.max=100;memory.low=50",
        );
        becomes(r#"{"memory":{"limit":-1}}"#, "memory.swap.max=max;memory.max=max");
        becomes(r#"{"memory":{"limit":100,"swap":100}}"#, "memory.swap.max=0;memory.max=100");
        becomes(r#"{"memory":{"limit":100}}"#, "memory.max=100");
        becomes(r#"{"memory":{"swap":1500}}"#, "memory.swap.max=500");
        becomes(r#"{"memory":{"limit":0,"swap":-1}}"#, "memory.swap.max=max");
        becomes(r#"{"memory":{"limit":800,"checkBeforeUpdate":true}}"#, "memory.max=800");
        refused(r#"{"memory":{"limit":100,"swap":50}}"#, "memory+swap limit should be >= memory limit");
        refused(r#"{"memory":{"limit":-1,"swap":50}}"#, "unable to set swap limit without memory limit");
        refused(
            r#"{"memory":{"limit":600,"checkBeforeUpdate":true}}"#,
            "unable to set memory limit to 600 (current usage: 700)",
        );
    }

    #[test]
    fn processor_time() {
        becomes(r#"{"cpu":{"quota":7000}}"#, "cpu.max=7000 20000");
        becomes(r#"{"cpu":{"quota":-1}}"#, "cpu.max=max 20000");
        becomes(r#"{"cpu":{"period":50000}}"#, "cpu.max=5000 50000");
        becomes(r#"{"cpu":{"shares":1024,"idle":0}}"#, "cpu.idle=0;cpu.weight=100");
        becomes(r#"{"cpu":{"quota":9000,"burst":8000}}"#, "cpu.max=9000 20000;cpu.max.burst=8000");
        becomes(r#"{"cpu":{"quota":90,"burst":10}}"#, "cpu.max.burst=10;cpu.max=90 20000");
        becomes(r#"{"cpu":{"cpus":"0-7","mems":"0"}}"#, "cpuset.cpus=0-1;cpuset.mems=0");
        becomes(r#"{"cpu":{"cpus":"5"}}"#, "cpuset.cpus=0");
        refused(r#"{"cpu":{"cpus":"x"}}"#, "no list of numbers");
        assert_eq!(
            (weight(2), weight(262_144), weight(1024), weight(0)),
            (Some(1), Some(10_000), Some(100), None)
        );
    }

    #[test]
    fn the_others() {
        becomes(r#"{"pids":{"limit":-1}}"#, "pids.max=max");
        becomes(r#"{"pids":{"limit":20}}"#, "pids.max=20");
        becomes(r#"{"blockIO":{"weight":1000}}"#, "io.weight=10000");
        becomes(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":5}]}"#, "hugetlb.2MB.max=5");
        becomes(r#"{"unified":{"memory.high":"9","cpu.weight":"7"}}"#, "cpu.weight=7;memory.high=9");
        becomes("{}", "");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        refused(r#"{"cpu":{"realtimeRuntime":1000}}"#, "real-time");
        refused(r#"{"memory":{"swappiness":10}}"#, "swappiness");
        refused(r#"{"memory":{"disableOOMKiller":true}}"#, "OOM killer");
        refused(r#"{"unified":{"../x":"9"}}"#, "no limit of a cgroup");
        refused(r#"{"unified":{"cgroup.kill":"1"}}"#, "no limit of a cgroup");
        refused(r#"{"network":{"classID":5}}"#, "network priorities");
        refused(
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}]}}"#,
            "block devices",
        );
    }
}
