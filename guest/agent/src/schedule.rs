//! When an executed process gets the processor and the disks: `process.scheduler`, `ioPriority` and `execCPUAffinity`. Applied by
//! the process to itself while it has the privilege; libcontainer does it for a container's first one.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process,
    Scheduler,
};

use crate::lookup::words;
use crate::{limits, sys};

/// Applies all of them.
///
/// # Errors
/// For the user.
pub fn apply(process: &Process) -> Result<(), String> {
    if let Some(priority) = process.io_priority() {
        set_io_priority(priority)?;
    }
    if let Some(scheduler) = process.scheduler() {
        sys::set_scheduler(&attributes(scheduler))
            .map_err(|error| format!("cannot set the scheduler {}: {}", scheduler.policy(), words(error)))?;
    }
    // Before the cgroup a process is nothing here, so that the last word is the only one.
    match process.exec_cpu_affinity().as_ref().and_then(affinity) {
        Some(list) => set_affinity(list),
        None => Ok(()),
    }
}

fn affinity(affinity: &ExecCPUAffinity) -> Option<&str> {
    let given = |list: &'_ Option<String>| list.as_deref().is_some_and(|list| !list.is_empty());
    match (affinity.cpu_affinity_final(), affinity.initial()) {
        (list, _) if given(list) => list.as_deref(),
        (_, list) if given(list) => list.as_deref(),
        _ => None,
    }
}

/// The numbers are the host's: see [`limits::fit`].
fn set_affinity(list: &str) -> Result<(), String> {
    let failed = |reason: String| format!("cannot set the CPU affinity to {list:?}: {reason}");
    let fitting =
        limits::fit(list, sys::processors()).ok_or_else(|| failed("that is no list of numbers".into()))?;
    let mut set = CpuSet::new();
    for part in fitting.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().map_err(|error| failed(error.to_string()));
        for cpu in number(first)?..=number(last)? {
            set.set(cpu).map_err(|error| failed(words(error)))?;
        }
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|error| failed(words(error)))
}

/// linux/ioprio.h
fn set_io_priority(priority: &LinuxIOPriority) -> Result<(), String> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let number = i32::try_from(priority.priority()).ok().filter(|number| (0..8).contains(number));
    let number = number.ok_or_else(|| format!("ioPriority {} is not from 0 to 7", priority.priority()))?;
    sys::set_io_priority(class, number)
        .map_err(|error| format!("cannot set the I/O priority: {}", words(error)))
}

/// linux/sched/types.h
fn attributes(scheduler: &Scheduler) -> libc::sched_attr {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        // Reserved by the kernel, which refuses it.
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: flags,
        sched_nice: scheduler.nice().unwrap_or(0),
        sched_priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
        sched_runtime: scheduler.runtime().unwrap_or(0),
        sched_deadline: scheduler.deadline().unwrap_or(0),
        sched_period: scheduler.period().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_processors_counts() {
        let list = |json: &str| {
            let both: ExecCPUAffinity = serde_json::from_str(json).expect("an affinity");
            affinity(&both).map(str::to_owned)
        };
        assert_eq!(list(r#"{"initial":"0","final":"1"}"#).as_deref(), Some("1"));
        assert_eq!(list(r#"{"initial":"0"}"#).as_deref(), Some("0"));
        assert_eq!(list("{}"), None);
    }

    #[test]
    fn numbers_are_the_kernels() {
        let scheduler =
            serde_json::from_str(r#"{"policy":"SCHED_BATCH","nice":5,"flags":["SCHED_RESET_ON_FORK"]}"#)
                .expect("a scheduler");
        let attributes = attributes(&scheduler);
        assert_eq!((attributes.sched_policy, attributes.sched_nice, attributes.sched_flags), (3, 5, 1));
    }
}
