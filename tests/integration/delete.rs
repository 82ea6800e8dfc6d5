//! rt delete: by status, by force, and when something of the container is dead.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::Bundle;

fn sleeping() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

#[test]
fn a_running_container_needs_force() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let words = format!("cannot delete container {} that is not stopped: running", bundle.id);
    container.rt(&["delete"]).fails(&[&words]);
    container.rt(&["delete", "-f"]).says(&[]);
    bundle.leaves_nothing();
    container.rt(&["delete"]).fails(&["container does not exist"]);
    container.rt(&["delete", "--force"]).says(&[]);
}

#[test]
fn a_created_container_needs_none() {
    let bundle = sleeping();
    let container = bundle.create(&[]);
    container.rt(&["delete"]).says(&[]);
    bundle.leaves_nothing();
}

#[test]
fn a_stopped_container_goes() {
    let bundle = Bundle::new();
    let container = bundle.run_detached(&[]);
    container.reaches("stopped");
    container.rt(&["delete"]).says(&[]);
    bundle.leaves_nothing();
}

#[test]
fn whatever_died_before() {
    let bundle = sleeping();
    for pointer in ["/vm/pid", "/fsd/pid", "/monitor/pid"] {
        let container = bundle.create(&[]);
        container.start();
        let record = fs::read(container.state_dir().join("state.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let pid = record.pointer(pointer).and_then(serde_json::Value::as_i64).unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        container.reaches("stopped");
        container.rt(&["delete"]).says(&[]);
        bundle.leaves_nothing();
    }
}
