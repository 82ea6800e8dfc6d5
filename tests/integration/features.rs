//! rt features: JSON that callers read, and true.

use serde_json::{Value, json};

use crate::shell::Bundle;

#[test]
fn features_are_json_with_four_spaces() {
    let ended = Bundle::new().rt(&["features"]);
    ended.code(0).stderr("");
    let text = ended.text();
    assert!(text.starts_with("{\n    \"ociVersionMin\": \"1.0.0\",\n"), "{text}");
    let features: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v1"], false);
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert_eq!(features["linux"]["apparmor"]["enabled"], false);
}

/// Each seccomp action and comparison that is told can be loaded in the guest.
#[test]
fn seccomps_words_are_true() {
    let mut bundle = Bundle::new();
    let features: Value = serde_json::from_str(&bundle.rt(&["features"]).text()).unwrap();
    let seccomp = &features["linux"]["seccomp"];
    let mut calls = Vec::new();
    for (index, action) in seccomp["actions"].as_array().unwrap().iter().enumerate() {
        for (at, operator) in seccomp["operators"].as_array().unwrap().iter().enumerate() {
            // Of a call that busybox never makes, with values that differ by rule.
            let value = 1000 + index * 100 + at;
            let rule = json!({"index": 0, "value": value, "valueTwo": value, "op": operator});
            if action != "SCMP_ACT_ALLOW" {
                calls.push(json!({"names": ["acct"], "action": action, "args": [rule]}));
            }
        }
    }
    bundle.config["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": seccomp["archs"], "syscalls": calls});
    bundle.run(&["/bin/grep", "Seccomp:", "/proc/self/status"]).says(&["Seccomp:\t2"]);
}
