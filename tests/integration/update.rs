//! rt update: the guest's cgroup changes at once, and the host's with it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::shell::{Bundle, Container, Ended, Input, host, patience};

fn sleeping() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

fn update(bundle: &Bundle, flags: &[&str]) -> Ended {
    bundle.rt(&[&["update"], flags, &[&bundle.id]].concat())
}

#[test]
fn every_flag_reaches_the_guest() {
    let mut bundle = sleeping();
    bundle.settings = "[hypervisor]\nvcpus = 2\n".into();
    let container = bundle.run_detached(&[]);
    for (flags, file, value) in [
        (&["--memory", "64m"][..], "memory.max", "67108864"),
        (&["--memory-reservation", "33554432"], "memory.low", "33554432"),
        (&["--memory", "-1"], "memory.max", "max"),
        (&["--cpu-quota", "50000", "--cpu-period", "200000"], "cpu.max", "50000 200000"),
        (&["--cpu-quota", "30000"], "cpu.max", "30000 200000"),
        (&["--cpu-burst", "10000"], "cpu.max.burst", "10000"),
        (&["--cpu-quota", "-1"], "cpu.max", "max 200000"),
        (&["--cpu-share", "1024"], "cpu.weight", "100"),
        (&["--cpu-idle", "1"], "cpu.idle", "1"),
        (&["--cpu-idle", "0"], "cpu.idle", "0"),
        (&["--cpuset-cpus", "1"], "cpuset.cpus", "1"),
        (&["--cpuset-mems", "0"], "cpuset.mems", "0"),
        (&["--pids-limit", "33"], "pids.max", "33"),
        (&["--pids-limit", "-1"], "pids.max", "max"),
        (&["--kernel-memory", "1", "--kernel-memory-tcp", "2"], "pids.max", "max"),
        (&[], "pids.max", "max"),
    ] {
        update(&bundle, flags).says(&[]);
        let path = format!("/sys/fs/cgroup/{file}");
        let found = container.exec(&[], &["cat", &path]);
        assert_eq!(found.text().trim(), value, "{flags:?} {found}");
    }
    // The weight of block I/O has no file in a guest without block devices; its host's is another matter.
    update(&bundle, &["--blkio-weight", "500"]).says(&[]);
}

/// podman passes the host's numbers on.
#[test]
fn a_processor_that_the_guest_lacks_is_the_hosts_affair() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    update(&bundle, &["--cpuset-cpus", "1"]).says(&[]);
    container.exec(&[], &["nproc"]).says(&["1"]);
    update(&bundle, &["--cpuset-cpus", "0-1", "--cpuset-mems", "0"]).says(&[]);
    container.exec(&[], &["nproc"]).says(&["1"]);
    update(&bundle, &["--cpuset-cpus", "x"]).fails(&["cpuset", "x"]);
}

#[test]
fn resources_come_from_a_file_or_standard_input() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let text =
        json!({"memory": {"limit": 40 << 20}, "pids": {"limit": 44}, "cpu": {"shares": 2048}}).to_string();
    let limits = ["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"];
    let file = bundle.file("resources.json", &text);
    // Other flags do not count then.
    update(&bundle, &["--resources", file.to_str().unwrap(), "--pids-limit", "9"]).says(&[]);
    container.exec(&[], &limits).says(&["41943040", "44"]);
    let call = bundle.call().verb(&["update", "-r", "-", &bundle.id]);
    call.stdin(Input::Bytes(text.replace("44", "45").into_bytes())).end().says(&[]);
    container.exec(&[], &limits).says(&["41943040", "45"]);
    update(&bundle, &["-r", "/no/such/file"]).fails(&["/no/such/file"]);
    for bad in ["", "[]x", "{\"memory\": 5}"] {
        let file = bundle.file("bad.json", bad);
        update(&bundle, &["-r", file.to_str().unwrap()]).fails(&["bad.json", "not a resources object"]);
    }
}

#[test]
fn what_cannot_be_had_is_refused_and_changes_nothing() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    update(&bundle, &["--l3-cache-schema", "x"]).fails(&["Intel RDT"]);
    update(&bundle, &["--mem-bw-schema", "x"]).fails(&["Intel RDT"]);
    update(&bundle, &["--cpu-rt-runtime", "1000", "--pids-limit", "5"]).fails(&["real-time"]);
    update(&bundle, &["--cpu-rt-period", "1000"]).fails(&["real-time"]);
    update(&bundle, &["--memory", "64m", "--memory-swap", "32m"])
        .fails(&["memory+swap limit should be >= memory limit"]);
    update(&bundle, &["--cpu-period", "1"]).fails(&["cpu.max", "invalid argument"]);
    container
        .exec(&[], &["cat", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/memory.max"])
        .says(&["max", "max"]);
    bundle.rt(&["kill", &bundle.id, "KILL"]).says(&[]);
    container.reaches("stopped");
    update(&bundle, &["--pids-limit", "5"]).fails(&["container not running"]);
    bundle.rt(&["update", "nothing"]).fails(&["container does not exist"]);
}

/// The sandbox's limits on the host follow, with the overhead on top.
#[test]
fn the_hosts_group_follows() {
    let mut bundle = sleeping();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", bundle.id));
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    let container = bundle.run_detached(&[]);
    let groups: Vec<String> = serde_json::from_value(container.record()["cgroups"].clone()).unwrap();
    let read = |file: &str| {
        let path = groups.iter().map(|group| Path::new(group).join(file)).find(|path| path.exists());
        fs::read_to_string(path.unwrap_or_else(|| panic!("{file} is nowhere"))).unwrap().trim().to_owned()
    };
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let memory = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    let before: u64 = read(memory).parse().unwrap();
    update(&bundle, &["--memory", "1g", "--pids-limit", "50"]).says(&[]);
    let after: u64 = read(memory).parse().unwrap();
    assert!(after > before && after >= 1 << 30, "{before} {after}");
    assert_eq!(read("pids.max"), "562");
    update(&bundle, &["--cpu-quota", "150000", "--cpu-period", "100000"]).says(&[]);
    let quota = if unified { read("cpu.max") } else { read("cpu.cfs_quota_us") };
    assert!(quota.starts_with("250000"), "{quota}");
    let last = host("nproc --all | awk '{ print $1 - 1 }'");
    update(&bundle, &["--cpuset-cpus", &last]).says(&[]);
    assert_eq!(read("cpuset.cpus"), last);
    // A processor that the host lacks, too, is nobody's.
    update(&bundle, &["--cpuset-cpus", "4000"]).fails(&["cpuset.cpus", "4000"]);
    update(&bundle, &["--memory", "-1"]).says(&[]);
    assert!(read(memory).parse::<u64>().map_or(true, |bytes| bytes > 1 << 40));
}

/// Waits for what the guest's kernel does in its own time.
#[track_caller]
pub fn comes_to(container: &Container<'_>, command: &[&str], expected: &str) {
    let deadline = Instant::now() + patience(20);
    loop {
        let found = container.exec(&[], command);
        if found.text().trim() == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{command:?} does not say {expected:?}: {found}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_machine_has_as_many_processors_as_the_quota_is_worth() {
    let mut bundle = sleeping();
    bundle.settings = "[hypervisor]\ngrow_vcpus = 3\n".into();
    let container = bundle.run_detached(&[]);
    let online = ["cat", "/sys/devices/system/cpu/online"];
    container.exec(&[], &online).says(&["0"]);
    container.exec(&[], &["nproc"]).says(&["1"]);
    for (quota, nproc) in [("250000", "3"), ("150000", "2"), ("900000", "3"), ("-1", "1"), ("100001", "2")] {
        update(&bundle, &["--cpu-period", "100000", "--cpu-quota", quota]).says(&[]);
        comes_to(&container, &["nproc"], nproc);
        assert_eq!(container.record()["size"]["vcpus"].to_string(), nproc);
    }
    // What is refused changes nothing.
    update(&bundle, &["--cpu-quota", "300000", "--cpu-rt-runtime", "1000"]).fails(&["real-time"]);
    assert_eq!(container.record()["size"]["vcpus"], 2);
    container.exec(&[], &online).says(&["0-1"]);
}

#[test]
fn a_machine_that_cannot_grow_keeps_its_processors() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    update(&bundle, &["--cpu-quota", "250000"]).says(&[]);
    container.exec(&[], &["cat", "/sys/devices/system/cpu/possible"]).says(&["0"]);
}

/// MemTotal of the guest, in MiB.
pub fn guest_mib(container: &Container<'_>) -> u64 {
    let text = container.exec(&[], &["cat", "/proc/meminfo"]).text();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    total.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

#[test]
fn memory_comes_with_the_limit_and_goes_with_it() {
    let mut bundle = sleeping();
    // No multiple of what the guest's kernel plugs at once.
    bundle.settings = "[hypervisor]\ngrow_memory_mib = 1000\n".into();
    bundle.mount("/m", "tmpfs", "tmpfs", &["size=500m"]);
    let container = bundle.run_detached(&[]);
    let before = guest_mib(&container);
    update(&bundle, &["--memory", "600m"]).says(&[]);
    let grown = container.record()["size"]["memory_mib"].as_u64().expect("a number");
    assert!((696..760).contains(&grown), "{grown}");
    // It is there to be used, whatever lies where: more than the machine was started with.
    container.sh("dd if=/dev/zero of=/m/x bs=1M count=300 2>&- && wc -c </m/x").says(&["314572800"]);
    assert!(guest_mib(&container) > before + 350, "{before} {}", guest_mib(&container));
    container.sh("rm /m/x").says(&[]);
    update(&bundle, &["--memory", "5g"]).says(&[]);
    assert_eq!(container.record()["size"]["memory_mib"], 1000);
    update(&bundle, &["--memory", "64m"]).says(&[]);
    // The guest gives it in its own time.
    let deadline = Instant::now() + patience(30);
    while guest_mib(&container) > before + 100 {
        assert!(Instant::now() < deadline, "{before} {}", guest_mib(&container));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The guest has no driver for it, as any guest may choose: what asked for memory is told, and nothing has changed.
#[test]
fn memory_that_the_guest_refuses_is_told_and_taken_back() {
    let mut bundle = sleeping();
    let wait = patience(5).as_millis();
    bundle.settings = format!("[hypervisor]\ngrow_memory_mib = 1024\n[agent]\ntimeout_ms = {wait}\n");
    bundle.capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let mut mounts = bundle.config["mounts"].as_array_mut().expect("mounts").iter_mut();
    mounts.find(|mount| mount["destination"] == "/sys").expect("of sysfs")["options"] = json!(["rw"]);
    let annotations = |of: &str, sandbox: &str| json!({"io.kubernetes.cri.container-type": of, "io.kubernetes.cri.sandbox-id": sandbox});
    bundle.config["annotations"] = annotations("sandbox", &bundle.id);
    let container = bundle.run_detached(&[]);
    let device = "cd /sys/bus/virtio/drivers/virtio_mem && basename $(readlink virtio*) >/tmp/device";
    container.sh(&format!("{device} && cat /tmp/device >unbind")).says(&[]);
    let (size, before) = (container.record()["size"].clone(), guest_mib(&container));
    let told = "MiB of memory in use; `rt logs` says why";
    update(&bundle, &["--memory", "600m"]).fails(&[told]);
    container.exec(&[], &["cat", "/sys/fs/cgroup/memory.max"]).says(&["max"]);

    let mut member = sleeping();
    member.root = bundle.root.clone();
    member.settings = bundle.settings.clone();
    member.config["annotations"] = annotations("container", &bundle.id);
    member.config["linux"]["resources"]["memory"] = json!({"limit": 600 << 20});
    let dir = member.dir().to_str().expect("a path of ours");
    member.rt(&["create", "-b", dir, &member.id]).fails(&[told]);
    member.leaves_nothing();
    assert_eq!((container.record()["size"].clone(), guest_mib(&container)), (size, before));

    container.sh("cat /tmp/device >/sys/bus/virtio/drivers/virtio_mem/bind").says(&[]);
    member.rt(&["create", "-b", dir, &member.id]).says(&[]);
    assert!(guest_mib(&container) > before + 350, "{before} {}", guest_mib(&container));
    member.rt(&["delete", "--force", &member.id]).says(&[]);
}
