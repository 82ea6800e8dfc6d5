//! rt kill.

use crate::shell::Bundle;

#[test]
fn signals_reach_the_process() {
    let mut bundle = Bundle::new();
    bundle.args(&[
        "/bin/sh",
        "-c",
        "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    let container = bundle.run_detached(&[]);
    container.wrote("ready");
    for name in ["USR1", "SIGUSR1", "10", "usr1"] {
        bundle.rt(&["kill", &bundle.id, name]).says(&[]);
    }
    container.wrote("usr1");
    bundle.rt(&["kill", &bundle.id, "NOSUCH"]).fails(&["unknown signal", "NOSUCH"]);
    bundle.rt(&["kill", &bundle.id, "65"]).fails(&["unknown signal", "65"]);
    bundle.rt(&["kill", &bundle.id]).says(&[]);
    container.reaches("stopped");
    bundle.rt(&["kill", &bundle.id]).fails(&["container not running"]);
    // What CRI does after the end is no error.
    bundle.rt(&["kill", "--all", &bundle.id, "9"]).says(&[]);
}

#[test]
fn a_created_container_can_be_killed() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    bundle.rt(&["kill", &bundle.id, "KILL"]).says(&[]);
    container.reaches("stopped");
}

#[test]
fn a_missing_container_comes_before_a_wrong_signal() {
    Bundle::new().rt(&["kill", "nothing", "NOSUCH"]).fails(&["container does not exist"]);
}
