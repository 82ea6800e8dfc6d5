//! What config.json's `process`, and the names around it, make of the process.

use serde_json::json;

use crate::shell::Bundle;

#[test]
fn arguments_and_environment_are_exact() {
    let mut bundle = Bundle::new();
    bundle
        .run(&["/bin/printf", "<%s>\\n", "", "a b", "\"'\\", "$HOME *", "grüße\n"])
        .code(0)
        .stderr("")
        .stdout("<>\n<a b>\n<\"'\\>\n<$HOME *>\n<grüße\n>\n");
    bundle.config["process"]["env"] = json!(["PATH=/bin", "HOME=/h", "EMPTY=", "SPACED=a b=c"]);
    bundle.run(&["/bin/env"]).says(&["PATH=/bin", "HOME=/h", "EMPTY=", "SPACED=a b=c"]);
}

#[test]
fn a_missing_home_is_looked_up_in_the_container() {
    let mut bundle = Bundle::new();
    std::fs::write(
        bundle.rootfs("etc/passwd"),
        "root:x:0:0:root:/r:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n",
    )
    .unwrap();
    bundle.config["process"]["env"] = json!(["PATH=/bin"]);
    bundle.run(&["env"]).says(&["PATH=/bin", "HOME=/r"]);
    bundle.config["process"]["env"] = json!(["HOME=", "PATH=/bin"]);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.run(&["env"]).says(&["HOME=/home/u", "PATH=/bin"]);
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    bundle.run(&["env"]).says(&["HOME=/", "PATH=/bin"]);
}

#[test]
fn the_program_is_searched_in_the_process_path() {
    let mut bundle = Bundle::new();
    bundle.run(&["echo", "found"]).says(&["found"]);
}

#[test]
fn user_groups_umask_and_directory() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [10, 20], "umask": 0o027});
    bundle.config["process"]["cwd"] = json!("/tmp/work");
    std::fs::create_dir(bundle.rootfs("tmp/work")).unwrap();
    bundle.sh("id -u; id -g; id -G; umask; pwd; grep CapEff /proc/self/status").says(&[
        "1000",
        "1001",
        "1001 10 20",
        "0027",
        "/tmp/work",
        "CapEff:\t0000000000000000",
    ]);
}

/// runc makes it.
#[test]
fn a_working_directory_that_is_missing_is_made() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["cwd"] = json!("/deep/in/there");
    bundle.run(&["/bin/pwd"]).says(&["/deep/in/there"]);
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["process"]["cwd"] = json!("/another/one");
    bundle.run(&["/bin/pwd"]).says(&["/another/one"]);
}

#[test]
fn names_of_the_machine() {
    let mut bundle = Bundle::new();
    bundle.config["hostname"] = json!("a-name");
    bundle.config["domainname"] = json!("example.org");
    bundle.sh("hostname; cat /proc/sys/kernel/domainname").says(&["a-name", "example.org"]);
}

#[test]
fn sysctls_are_set() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["sysctl"] = json!({"kernel.msgmax": "12345", "net.ipv4.ip_forward": "1"});
    bundle.sh("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward").says(&["12345", "1"]);
}

#[test]
fn resource_limits_are_set() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 333, "hard": 4444},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NPROC", "soft": 55, "hard": 66},
        {"type": "RLIMIT_STACK", "soft": 1048576, "hard": 2097152},
    ]);
    bundle
        .sh("ulimit -n; ulimit -Hn; ulimit -c; awk '/Max processes|Max stack/ { print $(NF-2), $(NF-1) }' /proc/self/limits")
        .says(&["333", "4444", "0", "1048576 2097152", "55 66"]);
}

/// Above what this host would let rt have: they are the guest's.
#[test]
fn resource_limits_may_exceed_the_hosts() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 1000000, "hard": 1048576}]);
    bundle.sh("ulimit -n; ulimit -Hn").says(&["1000000", "1048576"]);
}

#[test]
fn oom_score_is_set() {
    let mut bundle = Bundle::new();
    for score in [500, -500] {
        bundle.config["process"]["oomScoreAdj"] = json!(score);
        bundle.run(&["/bin/cat", "/proc/self/oom_score_adj"]).says(&[&score.to_string()]);
    }
}

/// Of the container's own process and of one that is executed.
#[test]
fn scheduling_is_set() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nvcpus = 2\n".into();
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    bundle.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    // The fields nice and policy of proc_pid_stat(5).
    let script = "awk '{ print $19, $41 }' /proc/self/stat; ionice -p $$; uname -m; grep Cpus_allowed_list /proc/self/status";
    bundle.args(&["/bin/sh", "-c", &format!("{script}; sleep 1000")]);
    let container = bundle.run_detached(&[]);
    container.wrote("Cpus_allowed_list");
    let all = ["5 3", "best-effort: prio 6", "i686"].join("\n");
    assert_eq!(container.out(), format!("{all}\nCpus_allowed_list:\t0-1\n"));
    container.sh(script).code(0).stderr("").stdout(format!("{all}\nCpus_allowed_list:\t1\n"));
}

#[test]
fn scheduling_that_the_guest_refuses_is_told() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_ISO"});
    bundle.run(&["/bin/true"]).fails(&["scheduler"]);
}

#[test]
fn annotations_and_unknown_fields_do_no_harm() {
    let mut bundle = Bundle::new();
    bundle.config["annotations"] = json!({"io.kubernetes.cri-o.Name": "k8s_c1", "a": "b"});
    bundle.config["x-unknown"] = json!({"deep": [1, 2]});
    bundle.config["process"]["apparmorProfile"] = json!("docker-default");
    bundle.config["process"]["selinuxLabel"] = json!("");
    bundle.config["linux"]["cgroupsPath"] = json!("/kubepods/pod1/c1");
    bundle.config["linux"]["mountLabel"] = json!("");
    bundle.run(&["/bin/echo", "fine"]).says(&["fine"]);
}
