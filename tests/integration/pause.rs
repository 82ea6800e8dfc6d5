//! rt pause and resume.

use std::thread;
use std::time::Duration;

use crate::shell::Bundle;

#[test]
fn a_paused_container_stands_still() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "while :; do echo tick >>/tmp/ticks; sleep 0.05; done"]);
    let container = bundle.run_detached(&[]);
    container.rt(&["resume"]).fails(&["container not paused"]);
    container.rt(&["pause"]).says(&[]);
    assert_eq!(container.state()["status"], "paused");
    let ticks = || std::fs::read_to_string(bundle.rootfs("tmp/ticks")).unwrap_or_default().len();
    let before = ticks();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(ticks(), before);
    container.rt(&["pause"]).fails(&["container not running"]);
    container.rt(&["start"]).fails(&["cannot start a container in the paused state"]);
    let words = format!("cannot delete container {} that is not stopped: paused", bundle.id);
    container.rt(&["delete"]).fails(&[&words]);
    let paused = "cannot exec in a paused container (use --ignore-paused to override)";
    container.exec(&[], &["true"]).fails_with(255, &[paused]);
    // One that ignores it is frozen with the others, and runs when they do.
    thread::scope(|scope| {
        let ended = scope.spawn(|| container.exec(&["--ignore-paused"], &["echo", "thawed"]));
        thread::sleep(Duration::from_secs(1));
        assert!(!ended.is_finished());
        container.rt(&["resume"]).says(&[]);
        ended.join().unwrap().says(&["thawed"]);
    });
    assert_eq!(container.state()["status"], "running");
    let before = ticks();
    thread::sleep(Duration::from_millis(1000));
    assert!(ticks() > before);
    container.rt(&["pause"]).says(&[]);
    // A signal waits, but for the one that nothing stops.
    bundle.rt(&["kill", &bundle.id, "KILL"]).says(&[]);
    container.reaches("stopped");
    container.rt(&["pause"]).fails(&["container not running"]);
    container.rt(&["resume"]).fails(&["container not paused"]);
}

#[test]
fn a_paused_container_can_be_deleted_by_force() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    container.rt(&["pause"]).says(&[]);
    container.rt(&["delete", "--force"]).says(&[]);
}

#[test]
fn a_created_container_is_created_again_when_it_is_resumed() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    container.rt(&["resume"]).fails(&["container not paused"]);
    container.rt(&["pause"]).says(&[]);
    assert_eq!(container.state()["status"], "paused");
    container.rt(&["start"]).fails(&["cannot start a container in the paused state"]);
    container.rt(&["resume"]).says(&[]);
    assert_eq!(container.state()["status"], "created");
    container.start();
    container.exec(&[], &["echo", "runs"]).says(&["runs"]);
    bundle.rt(&["pause", "nothing"]).fails(&["container does not exist"]);
    bundle.rt(&["resume", "nothing"]).fails(&["container does not exist"]);
}
