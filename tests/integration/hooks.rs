//! Hooks: which run where, what they read, and what becomes of the container when one fails.

use std::fs;

use serde_json::{Value, json};

use crate::shell::{Bundle, host};

/// A shell on the host, statically linked, as the guest has to execute it for createContainer.
fn hook(script: &str) -> Value {
    let busybox = host("command -v busybox");
    json!({"path": busybox, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

/// Writes what it reads to a file on the host.
fn keeps_state(bundle: &Bundle, name: &str) -> Value {
    hook(&format!("cat >{}", bundle.path(name).display()))
}

#[test]
fn each_runs_at_its_time_with_the_state() {
    let mut bundle = Bundle::new();
    bundle.config["annotations"] = json!({"a": "b"});
    for moment in ["prestart", "createRuntime", "poststart", "poststop"] {
        bundle.config["hooks"][moment] = json!([keeps_state(&bundle, moment)]);
    }
    let inside = "read state; echo \"$A $state\" >/tmp/started; hostname >>/tmp/started";
    bundle.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", inside], "env": ["A=b"]}]);
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    let state = |name: &str| -> Option<Value> {
        Some(serde_json::from_slice(&fs::read(bundle.path(name)).ok()?).expect("JSON"))
    };
    for moment in ["prestart", "createRuntime"] {
        let state = state(moment).unwrap();
        assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("creating")), "{moment}");
        assert_eq!(state["annotations"], json!({"a": "b"}));
        assert_eq!(state["pid"], container.pid());
        assert_eq!(state["bundle"], json!(bundle.dir().canonicalize().unwrap()));
    }
    assert!(state("poststart").is_none() && !bundle.rootfs("tmp/started").exists());
    container.start();
    let started = fs::read_to_string(bundle.rootfs("tmp/started")).unwrap();
    assert!(started.starts_with("b {") && started.ends_with("\nguest\n"), "{started}");
    assert_eq!(state("poststart").unwrap()["status"], "running");
    assert!(state("poststop").is_none());
    container.rt(&["delete", "--force"]).says(&[]);
    assert_eq!(state("poststop").unwrap()["status"], "stopped");
}

/// In the container's namespaces, before its root is the root; the program is the host's.
#[test]
fn create_container_runs_in_the_guest() {
    let mut bundle = Bundle::new();
    let root = format!("/run/rt/share/{}/rootfs", bundle.id);
    let script =
        format!("cat >{root}/tmp/state; hostname >{root}/tmp/name; ls {root}/proc/self >{root}/tmp/proc");
    bundle.config["hooks"]["createContainer"] = json!([hook(&script)]);
    let container = bundle.create(&[]);
    let state: Value = serde_json::from_slice(&fs::read(bundle.rootfs("tmp/state")).unwrap()).unwrap();
    assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("creating")));
    assert_eq!(fs::read_to_string(bundle.rootfs("tmp/name")).unwrap(), "guest\n");
    drop(container);
}

#[test]
fn one_that_fails_before_the_start_undoes_the_creation() {
    for moment in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new();
        bundle.config["hooks"] = json!({moment: [hook("exit 3")]});
        let dir = bundle.dir().to_str().unwrap().to_owned();
        let ended = bundle.rt(&["create", "-b", &dir, &bundle.id]);
        ended.fails(&["rt create failed: ", &format!("error running {moment} hook"), "exit status: 3"]);
        bundle.leaves_nothing();
        bundle.config["hooks"] = json!({moment: [{"path": "/no/such/hook"}]});
        bundle.rt(&["create", "-b", &dir, &bundle.id]).fails(&[moment, "/no/such/hook", "No such file"]);
        bundle.leaves_nothing();
    }
}

#[test]
fn one_that_takes_too_long_is_ended() {
    for moment in ["createRuntime", "createContainer"] {
        let mut bundle = Bundle::new();
        let mut slow = hook("exec sleep 1000");
        slow["timeout"] = json!(1);
        bundle.config["hooks"] = json!({moment: [slow]});
        let dir = bundle.dir().to_str().unwrap().to_owned();
        bundle.rt(&["create", "-b", &dir, &bundle.id]).fails(&["error running ", moment, "time"]);
        bundle.leaves_nothing();
    }
}

#[test]
fn one_that_fails_at_the_start_stops_the_container() {
    let mut bundle = Bundle::new();
    let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    bundle.config["hooks"]["startContainer"] = json!([hook("exit 0"), hook("echo why >&2; exit 3")]);
    bundle.config["hooks"]["poststop"] = json!([keeps_state(&bundle, "poststop")]);
    bundle.args(&["/bin/sh", "-c", "echo ran >/tmp/ran"]);
    let container = bundle.create(&[]);
    let reason =
        "error running startContainer hook #1: error running hook: exit status: 3, stdout: , stderr: why";
    container.rt(&["start"]).fails(&[reason]);
    container.reaches("stopped");
    assert!(!bundle.rootfs("tmp/ran").exists());
    container.rt(&["delete"]).says(&[]);
    assert!(bundle.path("poststop").exists());
    drop(container);
    bundle.call().end().fails(&["rt run failed: ", reason]);
    // It is as much in the container as its process: the seccomp profile holds for it.
    bundle.config["hooks"]["startContainer"] = json!([hook("mkdir /tmp/made")]);
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}]});
        bundle.call().end().fails(&["startContainer hook #0: error running hook: signal: bad system call"]);
        assert!(!bundle.rootfs("tmp/made").exists());
    }
    bundle.config["linux"].as_object_mut().unwrap().remove("seccomp");
    bundle.config["hooks"]["startContainer"] = json!([{"path": "/no/such/hook"}]);
    bundle.call().end().fails(&["startContainer hook #0: /no/such/hook: no such file or directory"]);
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = json!(1);
    bundle.config["hooks"]["startContainer"] = json!([slow]);
    bundle.call().end().fails(&["startContainer hook #0: hook ran past specified timeout of 1s"]);
}

/// As the runtime-spec has it: logged, and the container goes on.
#[test]
fn one_that_fails_afterwards_is_logged() {
    let mut bundle = Bundle::new();
    for moment in ["poststart", "poststop"] {
        bundle.config["hooks"][moment] = json!([hook("exit 4"), keeps_state(&bundle, "second")]);
    }
    let ended = bundle.run(&["/bin/echo", "ran"]);
    ended.says(&["ran"]);
    let log = ended.log();
    for moment in ["poststart", "poststop"] {
        assert!(
            log.contains(&format!("error running {moment} hook #0: error running hook: exit status: 4")),
            "{log}"
        );
    }
}
