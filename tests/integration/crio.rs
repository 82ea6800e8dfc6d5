//! CRI-O 1.13 with `runtime_untrusted_workload`: the recorded calls of one pod's life (fixtures/crio-1.13-sequence.txt), in their
//! order, on the recorded bundles, with the answers that CRI-O goes by.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::shell::{Bundle, Ended};

const SEQUENCE: &str = include_str!("fixtures/crio-1.13-sequence.txt");
/// Whom each call is about: the pod's sandbox, the containers a and b.
const ABOUT: &str = "SSS AA BB AA BB A AAAAAAAAAAA BBBBBB AAAAA SSSSSS SAB";

/// The pod's directory, state root and leftovers are one bundle's; each member has a bundle below it.
struct Pod {
    bundle: Bundle,
}

impl Pod {
    fn id(&self, who: char) -> String {
        format!("{}-{who}", self.bundle.id)
    }

    fn dir(&self, who: char) -> PathBuf {
        self.bundle.path(&format!("member-{who}"))
    }

    /// The recorded config.json, with paths and IDs of this run. The containers name the sandbox's namespaces by its PID.
    fn lay(&self, who: char) {
        let dir = self.dir(who);
        fs::create_dir(&dir).unwrap();
        let (text, script) = match who {
            'S' => (include_str!("fixtures/crio-1.13-sandbox.json"), "exec sleep 1000"),
            _ => (
                include_str!("fixtures/crio-1.13-container.json"),
                "trap 'exit 3' TERM; while :; do sleep 0.1; done",
            ),
        };
        let mut config: Value = serde_json::from_str(text).unwrap();
        config["root"]["path"] = json!(self.bundle.rootfs(""));
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", self.id(who)));
        config["annotations"]["io.kubernetes.cri-o.ContainerID"] = json!(self.id(who));
        config["annotations"]["io.kubernetes.cri-o.SandboxID"] = json!(self.id('S'));
        let sandbox = (who != 'S').then(|| self.state('S')["pid"].to_string());
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let namespace = namespace.as_object_mut().unwrap();
            let name = namespace["type"].as_str().unwrap().to_owned();
            match (namespace.remove("path"), &sandbox) {
                (Some(_), Some(pid)) if name != "network" => {
                    namespace.insert("path".into(), json!(format!("/proc/{pid}/ns/{name}")));
                }
                _ => {}
            }
        }
        for (index, mount) in config["mounts"].as_array_mut().unwrap().iter_mut().enumerate() {
            if !mount["source"].as_str().unwrap().starts_with('/') {
                continue;
            }
            let source = dir.join(format!("source-{index}"));
            match mount["destination"].as_str().unwrap() {
                "/dev/shm" => fs::create_dir(&source).unwrap(),
                name => fs::write(&source, format!("{name}\n")).unwrap(),
            }
            mount["source"] = json!(source);
        }
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }

    /// One recorded call, its PATHs and ID filled in.
    fn call(&self, call: &str, who: char) -> Ended {
        let (dir, id) = (self.dir(who), self.id(who));
        let path = |after: &str| match after {
            "--bundle" => dir.clone(),
            "--process" => dir.join("process.json"),
            _ => dir.join(format!("{}.pid", call.split(' ').next().unwrap())),
        };
        let words: Vec<&str> = call.split(' ').collect();
        let filled = words.iter().enumerate().map(|(index, word)| match *word {
            "PATH" => path(words[index - 1]).to_str().unwrap().to_owned(),
            "ID" => id.clone(),
            word => word.to_owned(),
        });
        // What runs on keeps no stream of this test open.
        self.bundle.rt_through("exec \"$@\" 2>&1 >/dev/null", &filled.collect::<Vec<_>>())
    }

    fn state(&self, who: char) -> Value {
        let ended = self.bundle.rt(&["state", &self.id(who)]);
        ended.code(0).stderr("");
        serde_json::from_slice(&ended.stdout).unwrap()
    }

    /// As CRI-O: asks until the answer has come.
    fn becomes(&self, who: char, status: &str) {
        let deadline = std::time::Instant::now() + crate::shell::patience(60);
        while self.state(who)["status"] != status {
            assert!(std::time::Instant::now() < deadline, "{who} is {}", self.state(who));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn number_in(&self, who: char, file: &str) -> i64 {
        fs::read_to_string(self.dir(who).join(file)).unwrap().parse().unwrap()
    }
}

#[test]
fn a_pods_recorded_life() {
    let pod = Pod { bundle: Bundle::new() };
    for dir in ["etc", "run"] {
        fs::create_dir_all(pod.bundle.rootfs(dir)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        fs::write(pod.bundle.rootfs(file), "").unwrap();
    }
    let calls: Vec<&str> = SEQUENCE.lines().filter(|line| !line.starts_with('#')).collect();
    let about: Vec<char> = ABOUT.chars().filter(|who| *who != ' ').collect();
    assert_eq!(calls.len(), about.len());
    let mut status = std::collections::HashMap::new();
    let mut execs = 0;
    for (call, who) in calls.into_iter().zip(about) {
        let verb = call.split(' ').next().unwrap();
        match verb {
            "create" => pod.lay(who),
            "exec" => {
                let process = json!({
                    "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "exit 5"], "env": ["PATH=/bin"], "cwd": "/"
                });
                fs::write(pod.dir(who).join("process.json"), process.to_string()).unwrap();
            }
            "state" => {
                pod.becomes(who, status[&who]);
                let state = pod.state(who);
                assert_eq!(state["id"], json!(pod.id(who)));
                let kind = if who == 'S' { "sandbox" } else { "container" };
                assert_eq!(state["annotations"]["io.kubernetes.cri-o.ContainerType"], json!(kind));
                let pid = if status[&who] == "stopped" { 0 } else { pod.number_in(who, "create.pid") };
                assert_eq!(state["pid"], json!(pid), "{state}");
                continue;
            }
            _ => {}
        }
        pod.call(call, who).says(&[]);
        let after = match call.split(' ').nth(if verb == "kill" { 2 } else { 0 }).unwrap() {
            "create" => "created",
            // The sandbox's process does without a handler, so it has to be killed.
            "TERM" if who == 'S' => "running",
            "TERM" | "KILL" => "stopped",
            "delete" => "gone",
            _ => "running",
        };
        status.insert(who, after);
        if verb == "exec" {
            execs += 1;
            assert!(pod.number_in(who, "exec.pid") > 0);
        }
    }
    assert_eq!((execs, status.values().all(|status| *status == "gone")), (6, true));
    for who in ['S', 'A', 'B'] {
        pod.bundle.rt(&["kill", &pod.id(who), "TERM"]).fails(&["container does not exist"]);
    }
    pod.bundle.leaves_nothing();
}
