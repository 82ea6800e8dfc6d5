//! What a machine gives back, and what it is refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::shell::{Bundle, Container, patience};

fn sleeping() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

/// MiB of guest memory that the host has pages for.
fn resident(container: &Container<'_>) -> u64 {
    let pid = container.record()["vm"]["pid"].as_i64().expect("a PID");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    let is_memory = |path: &std::path::Path| {
        let name = fs::read_link(path).unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("/memfd:guest memory") || name.starts_with("/memfd:memory-backend-memfd")
    };
    let mut files: Vec<(u64, u64)> = descriptors
        .map(|entry| entry.path())
        .filter(|path| is_memory(path))
        .map(|path| fs::metadata(path).expect("a file"))
        .map(|file| (file.ino(), file.blocks()))
        .collect();
    files.sort_unstable();
    files.dedup_by_key(|(inode, _)| *inode);
    assert!(!files.is_empty(), "process {pid} has no guest memory");
    files.iter().map(|(_, blocks)| blocks * 512).sum::<u64>() >> 20
}

#[test]
fn what_the_guest_frees_is_the_hosts_again() {
    let mut bundle = sleeping();
    bundle.settings = "[hypervisor]\nmemory_mib = 512\n".into();
    bundle.mount("/m", "tmpfs", "tmpfs", &["size=300m"]);
    let container = bundle.run_detached(&[]);
    container.sh("dd if=/dev/zero of=/m/x bs=1M count=120 2>&-").says(&[]);
    let full = resident(&container);
    assert!(full >= 120, "{full}");
    container.sh("rm /m/x").says(&[]);
    let deadline = Instant::now() + patience(60);
    while resident(&container) + 90 > full {
        assert!(Instant::now() < deadline, "of {full} MiB {} are left", resident(&container));
        std::thread::sleep(Duration::from_millis(200));
    }
    // And it can be used again.
    container.sh("dd if=/dev/zero of=/m/x bs=1M count=100 2>&- && wc -c </m/x").says(&["104857600"]);
}

#[test]
fn a_guest_that_takes_no_memory_is_told_and_nothing_has_changed() {
    let mut bundle = sleeping();
    bundle.settings = "[hypervisor]\ngrow_memory_mib = 1024\n[agent]\ntimeout_ms = 4000\n".into();
    bundle.mount("/drivers", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"]);
    let container = bundle.run_detached(&[]);
    let drivers = "/drivers/bus/virtio/drivers/virtio_mem";
    container.sh(&format!("cd {drivers} && for name in virtio*; do echo $name >unbind; done")).says(&[]);
    bundle.rt(&["update", "--memory", "600m", &bundle.id]).fails(&["256 of 708 MiB of memory", "rt logs"]);
    container.exec(&[], &["cat", "/sys/fs/cgroup/memory.max"]).says(&["max"]);
    assert_eq!(container.record()["size"]["memory_mib"], 256);
    bundle.rt(&["update", "--pids-limit", "33", &bundle.id]).says(&[]);
    bundle.rt(&["delete", "--force", &bundle.id]).says(&[]);
    bundle.leaves_nothing();
}
