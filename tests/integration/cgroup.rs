//! linux.cgroupsPath on the host, and what the limits make of the machine.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, Container, host};

/// The directory of a controller for a path below the root; that of version 2 where there is no version 1.
fn group(controller: &str, path: &str) -> PathBuf {
    let legacy = Path::new("/sys/fs/cgroup").join(controller);
    let root = if legacy.is_dir() { legacy } else { "/sys/fs/cgroup".into() };
    root.join(path)
}

fn members(group: &Path) -> Vec<String> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn helpers(container: &Container<'_>) -> Vec<String> {
    let record = fs::read(container.state_dir().join("state.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    ["/monitor/pid", "/vm/pid", "/fsd/pid"].map(|path| record.pointer(path).unwrap().to_string()).into()
}

fn limited(path: &str) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["cgroupsPath"] = json!(path.replace("ID", &bundle.id));
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 128 << 20});
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 100});
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

#[test]
fn the_group_holds_the_sandbox_and_goes_with_it() {
    let bundle = limited("/rt-test/ID");
    let container = bundle.create(&[]);
    let path = group("memory", &format!("rt-test/{}", bundle.id));
    let members = members(&path);
    for helper in helpers(&container) {
        assert!(members.contains(&helper), "{helper} is not in {members:?}");
    }
    let limit = ["memory.max", "memory.limit_in_bytes"].map(|file| fs::read_to_string(path.join(file)));
    let limit: u64 = limit.into_iter().find_map(Result::ok).unwrap().trim().parse().unwrap();
    assert!(((128 + 200) << 20..1 << 30).contains(&limit), "{limit}");
    container.rt(&["delete"]).says(&[]);
    assert!(!path.exists());
}

/// A user's tools, or systemd, make some.
#[test]
fn groups_that_others_made_below_go_with_it() {
    let bundle = limited("/rt-test/ID");
    let container = bundle.create(&[]);
    let path = group("memory", &format!("rt-test/{}", bundle.id));
    fs::create_dir_all(path.join("one/two")).unwrap();
    container.rt(&["delete", "--force"]).says(&[]);
    assert!(!path.exists());
}

/// A pod's group knows nothing of an overhead: its limit holds then, and the container runs.
#[test]
fn a_group_above_may_allow_less() {
    let mut bundle = Bundle::new();
    let pod = format!("rt-test/smaller-{}", std::process::id());
    let above = group("cpu", &pod);
    let smaller = "[ -e cpu.max ] && echo 50000 100000 >cpu.max || echo 50000 >cpu.cfs_quota_us";
    host(&format!("mkdir -p {0}; cd {0}; {smaller}", above.display()));
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{pod}/{}", bundle.id));
    bundle.config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    bundle.run(&["/bin/echo", "hello"]).says(&["hello"]);
    // In every hierarchy.
    host(&format!("find /sys/fs/cgroup -depth -path '*/{pod}*' -type d -exec rmdir {{}} +"));
    bundle.leaves_nothing();
}

#[test]
fn a_crash_leaves_it_for_delete() {
    let bundle = limited("/rt-test/ID");
    let container = bundle.create(&[]);
    let path = group("pids", &format!("rt-test/{}", bundle.id));
    assert!(path.exists());
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    container.reaches("stopped");
    container.rt(&["delete"]).says(&[]);
    assert!(!path.exists());
}

/// The caller is in it only as long as the container runs.
#[test]
fn a_foreground_run_returns_to_where_it_was() {
    let mut bundle = limited("/rt-test/ID");
    bundle.args(&["/bin/echo", "hello"]);
    bundle.call().end().says(&["hello"]);
    assert!(!group("memory", &format!("rt-test/{}", bundle.id)).exists());
}

#[test]
fn systemds_form_is_understood() {
    let bundle = limited("rttest-sub.slice:rt:ID");
    let dir = bundle.dir().to_str().unwrap().to_owned();
    let path = group("memory", &format!("rttest.slice/rttest-sub.slice/rt-{}.scope", bundle.id));
    let ended = bundle
        .rt_through("exec \"$@\" >/dev/null 2>&1", &["--systemd-cgroup", "create", "-b", &dir, &bundle.id]);
    ended.code(0);
    assert!(!members(&path).is_empty());
    bundle.rt(&["delete", &bundle.id]).says(&[]);
    assert!(!path.exists());
    host("find /sys/fs/cgroup -depth -type d -path '*/rttest.slice*' -exec rmdir {} +");
    let bundle = limited("/no/form/ID");
    let dir = bundle.dir().to_str().unwrap().to_owned();
    bundle.rt(&["--systemd-cgroup", "create", "-b", &dir, &bundle.id]).fails(&["SLICE:PREFIX:NAME"]);
}

#[test]
fn without_a_path_nothing_moves() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap(), own);
}

#[test]
fn a_container_can_use_its_limit() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 300 << 20, "swap": 300 << 20});
    bundle.config["linux"]["resources"]["cpu"] = json!({"quota": 150_000, "period": 100_000});
    bundle.mount("/memory", "tmpfs", "tmpfs", &["size=400m"]);
    let script = "nproc; dd if=/dev/zero of=/memory/x bs=1M count=280 2>/dev/null && wc -c </memory/x; cat /sys/fs/cgroup/memory.max";
    bundle.sh(script).says(&["2", "293601280", "314572800"]);
}

/// The host's numbers mean nothing in the guest.
#[test]
fn a_set_of_the_hosts_processors() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", bundle.id));
    let last = host("nproc --all | awk '{ print $1 - 1 }'");
    bundle.config["linux"]["resources"]["cpu"] = json!({"cpus": last, "mems": "0"});
    bundle.sh("nproc").says(&["1"]);
}
