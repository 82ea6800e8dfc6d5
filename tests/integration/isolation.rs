//! Capabilities, no_new_privs, seccomp, masked paths and namespaces: what the process must not have, it has not.

use serde_json::json;

use crate::shell::{Bundle, without};

const STATUS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";

/// CAP_CHOWN 0, CAP_KILL 5, CAP_NET_BIND_SERVICE 10, CAP_AUDIT_WRITE 29.
#[test]
fn capability_sets_are_exact() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    // As root, exec gives all of the bounding set back: so another user, whom exec gives the ambient set.
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.sh(STATUS).says(&[
        "CapInh:\t0000000000000420",
        "CapPrm:\t0000000000000400",
        "CapEff:\t0000000000000400",
        "CapBnd:\t0000000020000421",
        "CapAmb:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t0",
    ]);
}

#[test]
fn root_has_what_is_bounding() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.capabilities(&["CAP_CHOWN", "CAP_KILL"]);
    bundle.sh("grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; chown 7 /tmp && echo may; hostname x || true").code(0).stdout(
        "CapEff:\t0000000000000021\nCapBnd:\t0000000000000021\nNoNewPrivs:\t0\nmay\n",
    );
    // None named: none.
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    bundle
        .sh("grep -E '^Cap(Eff|Bnd)' /proc/self/status")
        .says(&["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"]);
}

fn profile(default: &str, names: &[&str], action: &str, errno: Option<u32>) -> serde_json::Value {
    let mut rule = json!({"names": names, "action": action});
    if let Some(errno) = errno {
        rule["errnoRet"] = json!(errno);
    }
    json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

/// With and without no_new_privs, since the filter is installed at another moment then.
#[test]
fn a_seccomp_profile_is_applied() {
    const ENOTSUP: u32 = 95;
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new();
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] =
            profile("SCMP_ACT_ALLOW", &["mkdir", "mkdirat", "mknodat"], "SCMP_ACT_ERRNO", Some(ENOTSUP));
        let ended = bundle.sh("grep '^Seccomp:' /proc/self/status; mkdir /tmp/new; test -d /tmp/new || echo no; touch /tmp/file && echo yes");
        ended
            .code(0)
            .stdout("Seccomp:\t2\nno\nyes\n")
            .stderr("mkdir: can't create directory '/tmp/new': Operation not supported\n");
    }
}

#[test]
fn a_seccomp_profile_may_kill() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["seccomp"] =
        profile("SCMP_ACT_ALLOW", &["mkdir", "mkdirat"], "SCMP_ACT_KILL_PROCESS", None);
    const SIGSYS: i32 = 31;
    bundle.run(&["/bin/mkdir", "/tmp/new"]).code(128 + SIGSYS).stdout("");
}

/// What busybox itself and execve need, and of rt's own steps those that come after it is loaded: runc needs no less.
#[test]
fn a_seccomp_profile_may_allow_little() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new();
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let allowed = [
            "execve",
            "exit_group",
            "brk",
            "arch_prctl",
            "prctl",
            "mprotect",
            "mmap",
            "munmap",
            "write",
            "capset",
            "futex",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "getrandom",
            "readlink",
            "readlinkat",
            "getuid",
            "geteuid",
            "setuid",
            "setgid",
            "rt_sigaction",
            "rt_sigprocmask",
            "fstat",
            "newfstatat",
            "ioctl",
        ];
        bundle.config["linux"]["seccomp"] =
            profile("SCMP_ACT_KILL_PROCESS", &allowed, "SCMP_ACT_ALLOW", None);
        bundle.run(&["/bin/echo", "allowed"]).says(&["allowed"]);
    }
}

/// A profile that names arguments, as Docker's does.
#[test]
fn seccomp_conditions_on_arguments_hold() {
    let mut bundle = Bundle::new();
    // personality(2) with 0x0008 (ADDR_NO_RANDOMIZE's neighbour, PER_LINUX32) only.
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
        }],
    });
    bundle
        .sh("trap 'echo got USR2' USR2; kill -USR2 $$; kill -USR1 $$ 2>/dev/null || echo refused USR1")
        .says(&["got USR2", "refused USR1"]);
}

/// The mask comes first, then the value: for the first process and for others.
#[test]
fn seccomp_compares_under_a_mask() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{"index": 1, "value": 0xf, "valueTwo": 10, "op": "SCMP_CMP_MASKED_EQ"}],
        }],
    });
    let script = "trap 'echo got USR2' USR2; kill -USR2 $$; kill -USR1 $$ 2>/dev/null || echo refused USR1";
    bundle.args(&["/bin/sh", "-c", &format!("{script}; exec sleep 1000")]);
    let container = bundle.run_detached(&[]);
    container.wrote("got USR2\nrefused USR1\n");
    bundle.rt(&["exec", &bundle.id, "/bin/sh", "-c", script]).says(&["got USR2", "refused USR1"]);
    drop(container);
}

#[test]
fn masked_paths_are_empty_and_readonly_paths_are_not_written() {
    let mut bundle = Bundle::new();
    std::fs::create_dir(bundle.rootfs("secret")).unwrap();
    std::fs::write(bundle.rootfs("secret/key"), "k").unwrap();
    std::fs::write(bundle.rootfs("etc/shadow"), "s").unwrap();
    std::fs::create_dir(bundle.rootfs("fixed")).unwrap();
    std::fs::copy(bundle.rootfs("bin/busybox"), bundle.rootfs("fixed/echo")).unwrap();
    bundle.config["linux"]["maskedPaths"] =
        json!(["/secret", "/etc/shadow", "/proc/cpuinfo", "/no/such/path"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/no/such/path"]);
    bundle.capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let ended = bundle.sh("ls /secret | wc -l; wc -c </etc/shadow; wc -c </proc/cpuinfo; touch /fixed/x; echo 1 >/proc/sys/kernel/msgmax; /fixed/echo over");
    // What is there can still be executed.
    ended.code(0).stdout("0\n0\n0\nover\n");
    let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(errors.matches("Read-only file system").count(), 2, "{ended}");
}

#[test]
fn the_process_is_alone() {
    let mut bundle = Bundle::new();
    bundle
        .sh("echo $$; set -- /proc/[0-9]*; echo $#; ls /sys/class/net; cat /proc/self/cgroup")
        .says(&["1", "1", "lo", "0::/"]);
}

/// Namespaces that the bundle does not ask for are the guest's, never the host's.
#[test]
fn without_namespaces_it_is_still_a_guest() {
    let mut bundle = Bundle::new();
    without(&mut bundle.config["linux"]["namespaces"], |namespace| {
        !["mount", "network"].contains(&namespace["type"].as_str().unwrap())
    });
    bundle.config.as_object_mut().unwrap().remove("hostname");
    let guest = bundle.sh("uname -r; test $$ -gt 1 && echo not first");
    guest.code(0).stderr("");
    let host = crate::shell::host("uname -r");
    let lines: Vec<String> = guest.text().lines().map(str::to_owned).collect();
    assert!(lines[1] == "not first" && !lines[0].is_empty(), "{guest}");
    assert!(lines[0] != host, "the guest's kernel is the host's: {host}");
}

#[test]
fn a_user_namespace_maps_its_users() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    crate::shell::host(&format!(
        "chown -hR 100000:100000 {0}; chmod 755 {0} {0}/..",
        bundle.path("rootfs").display()
    ));
    let ended = bundle.sh(
        "id -u; tr -s ' ' </proc/self/uid_map; stat -c %u:%g /tmp; touch /tmp/mine; stat -c %u /tmp/mine",
    );
    ended.says(&["0", " 0 100000 65536", "0:0", "0"]);
    let owner = crate::shell::host(&format!("stat -c %u:%g {}", bundle.rootfs("tmp/mine").display()));
    assert_eq!(owner, "100000:100000");
}

#[test]
fn a_device_may_be_anywhere() {
    for readonly in [false, true] {
        let mut bundle = Bundle::new();
        bundle.config["root"]["readonly"] = json!(readonly);
        bundle.config["linux"]["devices"] = json!([
            {"path": "/opt/deep/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6},
            {"path": "/opt/pipe", "type": "p", "fileMode": 0o600},
        ]);
        bundle
            .sh("stat -c '%n %F %t:%T %a %u:%g' /opt/deep/null /opt/pipe; echo x >/opt/deep/null && (echo through >/opt/pipe & cat /opt/pipe)")
            .says(&[
                "/opt/deep/null character special file 1:3 640 5:6",
                "/opt/pipe fifo 0:0 600 0:0",
                "through",
            ]);
    }
}

/// Devices cannot be made in what is served for reading only: they are made beside it.
#[test]
fn a_read_only_root_needs_no_dev_of_its_own() {
    let mut bundle = Bundle::new();
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    bundle
        .sh("echo x >/dev/null && echo written; touch /new 2>/dev/null || echo read-only")
        .says(&["written", "read-only"]);
}

#[test]
fn devices_of_the_bundle_and_the_usual_ones() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["devices"] = json!([
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6},
    ]);
    bundle.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    ]);
    bundle.sh(
        "stat -c '%n %F %t:%T %a %u:%g' /dev/mine; \
         stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
         echo x >/dev/null && echo x >/dev/mine && head -c 3 /dev/zero | wc -c; echo x >/dev/full 2>/dev/null || echo full",
    )
    .says(&[
        "/dev/mine character special file 1:3 640 5:6",
        "/dev/null 1:3 666",
        "/dev/zero 1:5 666",
        "/dev/full 1:7 666",
        "/dev/random 1:8 666",
        "/dev/urandom 1:9 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
        "3",
        "full",
    ]);
}
