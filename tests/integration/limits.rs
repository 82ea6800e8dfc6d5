//! cgroup limits hold in the guest, and the machine is as large as configured.

use serde_json::json;

use crate::shell::Bundle;

#[test]
fn cgroup_limits_are_applied() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 67108864, "reservation": 33554432},
        "pids": {"limit": 17},
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
    });
    let ended = bundle.sh("cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.max cpu.weight");
    ended.code(0).stderr("");
    let text = ended.text();
    let weight =
        text.strip_prefix("67108864\n33554432\n17\n50000 100000\n").unwrap_or_else(|| panic!("{ended}"));
    // 512 shares by the linear formula of runc 1.1, and by the one that keeps 1024 shares and weight 100 together.
    assert!(["20\n", "59\n"].contains(&weight), "{ended}");
}

#[test]
fn a_process_that_takes_too_much_memory_is_killed() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 33554432, "swap": 33554432}});
    // tail keeps what it has read.
    let ended = bundle.sh("head -c 100000000 /dev/zero | tail -c 100000000 | wc -c; echo survived");
    ended.code(0).stdout("0\nsurvived\n");
    // And as the container's own process.
    bundle.args(&["/bin/tail", "-c", "100000000", "/dev/zero"]);
    bundle.call().end().code(137);
}

#[test]
fn too_many_processes_are_refused() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 8}});
    let ended = bundle.sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & done; echo over");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("can't fork"), "{ended}");
}

#[test]
fn processors_and_memory_are_as_configured() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nvcpus = 3\nmemory_mib = 512\n".into();
    let ended = bundle.sh("nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    ended.code(0);
    let numbers: Vec<u32> = ended.text().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[0], 3, "{ended}");
    assert!((400..=512).contains(&numbers[1]), "{ended}");
}

/// As many processors as there can be, and memory on both sides of the devices' registers below 4 GiB.
#[test]
fn a_large_machine() {
    let mut bundle = Bundle::new();
    bundle.settings =
        "[hypervisor]\nvcpus = 32\nmemory_mib = 6144\n[agent]\nboot_timeout_ms = 120000\n".into();
    bundle
        .sh("nproc; awk '/^MemTotal/ { print ($2 > 5800000) }' /proc/meminfo; awk '/zone +(DMA32|Normal)/ { zone = $4 } $1 == \"present\" && $2 > 500000 { print zone }' /proc/zoneinfo")
        .says(&["32", "1", "DMA32", "Normal"]);
}

#[test]
fn a_small_machine() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nmemory_mib = 64\n".into();
    bundle.run(&["/bin/echo", "fits"]).says(&["fits"]);
}
