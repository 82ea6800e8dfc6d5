//! rt start, and run --detach.

use crate::shell::Bundle;

#[test]
fn only_a_created_container_can_be_started() {
    let mut bundle = Bundle::new();
    bundle.rt(&["start", "nothing"]).fails(&["container does not exist"]);
    bundle.args(&["/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"]);
    let container = bundle.run_detached(&[]);
    container.wrote("ready");
    container.rt(&["start"]).fails(&["cannot start an already running container"]);
    bundle.rt(&["kill", &bundle.id, "TERM"]).says(&[]);
    container.reaches("stopped");
    container.rt(&["start"]).fails(&["cannot start a container that has stopped"]);
}
