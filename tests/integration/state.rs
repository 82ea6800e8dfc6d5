//! rt state: runc's JSON, also when the machine is dead.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::Bundle;

#[test]
fn the_json_is_runcs() {
    let mut bundle = Bundle::new();
    bundle.config["annotations"] = json!({"a.b/c": "d"});
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    let text = container.rt(&["state"]).text();
    let pid = container.pid();
    let dir = bundle.dir().canonicalize().unwrap();
    let created = container.state()["created"].as_str().unwrap().to_owned();
    let expected = format!(
        "{{\n  \"ociVersion\": \"1.0.2\",\n  \"id\": \"{}\",\n  \"pid\": {pid},\n  \"status\": \"created\",\n  \
         \"bundle\": \"{1}\",\n  \"rootfs\": \"{1}/rootfs\",\n  \"created\": \"{created}\",\n  \"annotations\": {{\n    \
         \"a.b/c\": \"d\"\n  }},\n  \"owner\": \"\"\n}}",
        bundle.id,
        dir.display()
    );
    assert_eq!(text, expected);
    container.start();
    assert_eq!(container.state()["status"], "running");
    // The monitor is the container on the host.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    container.reaches("stopped");
    assert_eq!(container.state()["pid"], 0);
}

#[test]
fn a_missing_container_is_named() {
    Bundle::new().rt(&["state", "nothing"]).fails(&["container does not exist"]);
}
