//! What a machine gives back, what it refuses, and the disks that it is given.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use serde_json::json;

use crate::shell::{Bundle, Container, host, patience};

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

/// A loop device of the host with 4 MiB of one byte, and its number. Detached when dropped.
struct Loop {
    _file: tempfile::NamedTempFile,
    node: String,
    number: (u64, u64),
}

impl Loop {
    fn new(byte: u8) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&vec![byte; 4 << 20]).expect("written");
        let node = host(&format!("losetup --find --show {}", file.path().display())).trim().to_owned();
        let rdev = fs::metadata(&node).expect("a node").rdev();
        Self { _file: file, node, number: (major(rdev), minor(rdev)) }
    }

    /// Adds it to the container's devices, as `/dev/mine`, and to what it may use.
    fn give(&self, bundle: &mut Bundle, access: &str) {
        let (major, minor) = self.number;
        let linux = &mut bundle.config["linux"];
        linux["devices"] = json!([{"path": "/dev/mine", "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "uid": 3, "gid": 4}]);
        let rules = linux["resources"]["devices"].as_array_mut().expect("rules");
        rules.push(json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access}));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        host(&format!("losetup --detach {}", self.node));
    }
}

const READ: &str = "dd if=/dev/mine bs=1M skip=3 count=1 2>&- | tr -cd A | wc -c";
const WRITE: &str = "dd if=/dev/zero of=/dev/mine bs=4k seek=5 count=1 conv=fsync 2>&-";

#[test]
fn a_block_device_that_is_asked_for_is_a_disk_of_the_machine() {
    let disk = Loop::new(b'A');
    let mut bundle = sleeping();
    disk.give(&mut bundle, "rwm");
    let container = bundle.run_detached(&[]);
    container.sh("stat -c '%F %a %u %g' /dev/mine").says(&["block special file 640 3 4"]);
    container.sh(READ).says(&["1048576"]);
    container.sh(WRITE).says(&[]);
    container.sh("dd if=/dev/mine bs=4k skip=5 count=1 2>&- | tr -cd '\\0' | wc -c").says(&["4096"]);
    drop(container);
    assert_eq!(
        host(&format!("dd if={} bs=4k skip=4 count=3 2>&- | tr -d '\\0' | wc -c", disk.node)).trim(),
        "8192"
    );
}

#[test]
fn a_block_device_that_may_be_read_only_is() {
    let disk = Loop::new(b'A');
    let mut bundle = sleeping();
    disk.give(&mut bundle, "r");
    let container = bundle.run_detached(&[]);
    container.sh(READ).says(&["1048576"]);
    assert_ne!(container.sh(WRITE).code, 0);
    container.sh("cat /sys/block/vda/ro").says(&["1"]);
}

#[test]
fn containers_of_a_pod_share_a_block_device() {
    let disk = Loop::new(b'A');
    let mut bundle = sleeping();
    let kind = "io.kubernetes.cri.container-type";
    let sandbox = "io.kubernetes.cri.sandbox-id";
    bundle.config["annotations"] = json!({kind: "sandbox", sandbox: bundle.id});
    let pod = bundle.run_detached(&[]);
    pod.sh("ls /sys/block | grep -c vd").code(1);
    for _ in 0..2 {
        let mut member = sleeping();
        member.root = bundle.root.clone();
        member.config["annotations"] = json!({kind: "container", sandbox: bundle.id});
        disk.give(&mut member, "rwm");
        let container = member.run_detached(&[]);
        container.sh(READ).says(&["1048576"]);
    }
    pod.sh("ls -d /sys/block/vd*").says(&["/sys/block/vda"]);
    pod.sh("ls /dev/mine").code(1);
}

#[test]
fn a_block_device_that_is_not_meant_or_not_there_is_not_given() {
    let disk = Loop::new(b'A');
    let mut bundle = sleeping();
    disk.give(&mut bundle, "rwm");
    // As for a privileged container: all devices are listed, everything is allowed.
    bundle.config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    bundle.args(&["/bin/sh", "-c", "ls /dev/mine; ls /sys/block; echo seen"]);
    let ended = bundle.call().end();
    assert!(
        ended.text().contains("seen") && !ended.text().contains("vda") && !ended.text().contains("/dev/mine"),
        "{ended}"
    );
    let mut bundle = sleeping();
    let mut nowhere = disk;
    nowhere.number = (4000, 4000);
    nowhere.give(&mut bundle, "rwm");
    bundle.call().end().fails(&["block device 4000:4000", "/dev/mine", "no block device of this number"]);
}
