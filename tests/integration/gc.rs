//! `rt gc`: what a crash left is found and removed, and nothing else.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::shell::Bundle;

fn found(bundle: &Bundle, flags: &[&str]) -> Vec<Value> {
    let ended = bundle.rt(&[&["gc", "--format", "json"], flags].concat());
    let mut found: Vec<Value> =
        serde_json::from_slice(&ended.code(0).stdout).unwrap_or_else(|error| panic!("{error}: {ended}"));
    // Of other tests.
    found.retain(|one| one["kind"] != "template");
    found
}

#[test]
fn a_killed_container_is_found_and_removed() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let group = format!("/rt-gc-{}", bundle.id);
    bundle.config["linux"]["cgroupsPath"] = group.as_str().into();
    let container = bundle.run_detached(&[]);
    assert!(found(&bundle, &[]).is_empty(), "a running container is no leftover");
    let draft = bundle.state_root().join("~4194304");
    fs::create_dir(&draft).unwrap();
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    container.reaches("stopped");

    let seen = found(&bundle, &["--dry-run"]);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!((&seen[0]["kind"], &seen[0]["removed"]), (&"container".into(), &false.into()));
    assert!(seen[0]["reason"].as_str().unwrap().contains("while it was running"), "{seen:?}");
    assert!(draft.exists() && container.state_dir().exists());

    let removed = found(&bundle, &[]);
    assert!(removed.len() == 2 && removed.iter().all(|one| one["removed"] == true), "{removed:?}");
    assert!(!draft.exists() && !container.state_dir().exists());
    assert!(found(&bundle, &[]).is_empty());
    bundle.leaves_nothing();
}

#[test]
fn a_container_that_ended_in_order_stays() {
    let bundle = Bundle::new();
    let container = bundle.create(&[]);
    container.start();
    container.reaches("stopped");
    assert!(found(&bundle, &[]).is_empty());
    assert_eq!(container.state()["status"], "stopped");
}
