//! rt create: the process waits; the PID file is written last; what fails leaves nothing.

use std::fs;

use serde_json::json;

use crate::shell::{Bundle, host};

#[test]
fn the_process_waits_for_start() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "echo ran"]);
    let pid_file = bundle.path("pid");
    let container = bundle.create(&["--pid-file", pid_file.to_str().unwrap()]);
    let state = container.state();
    assert_eq!(state["status"], "created");
    // No newline, and nothing beside it.
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    assert!(!bundle.path(".pid").exists());
    assert_eq!(container.out(), "");
    container.start();
    container.reaches("stopped");
    assert_eq!(container.out(), "ran\n");
}

#[test]
fn a_taken_id_is_refused() {
    let bundle = Bundle::new();
    let container = bundle.create(&[]);
    container.rt(&["create", "-b", bundle.dir().to_str().unwrap()]).fails(&[
        "rt create failed: ",
        "container with given ID already exists",
        &bundle.id,
    ]);
    assert_eq!(container.state()["status"], "created");
}

/// The process is the one that config.json named when the container was created.
#[test]
fn the_bundle_changes_between_create_and_start() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/echo", "first"]);
    let container = bundle.create(&[]);
    let second = bundle.path("config.json");
    let text = fs::read_to_string(&second).unwrap().replace("first", "second");
    fs::write(&second, text).unwrap();
    // Not through the harness, which writes config.json again.
    host(&format!(
        "{} --root {} start {}",
        crate::shell::rt_binary().display(),
        bundle.state_root().display(),
        bundle.id
    ));
    container.reaches("stopped");
    assert_eq!(container.out(), "first\n");
}

#[test]
fn what_fails_leaves_nothing() {
    let mut bundle = Bundle::new();
    let dir = bundle.dir().to_str().unwrap().to_owned();
    let create = |bundle: &Bundle, flags: &[&str]| {
        let id = bundle.id.clone();
        bundle.rt(&[&["create", "-b", &dir], flags, &[&id]].concat())
    };
    create(&bundle, &["--pid-file", "/no/such/dir/pid"])
        .fails(&["cannot write the PID file /no/such/dir/pid"]);
    bundle.leaves_nothing();
    create(&bundle, &["--preserve-fds", "1"]).fails(&["cannot pass descriptor 3", "not open"]);
    create(&bundle, &["--console-socket", "/no/such/socket"]).fails(&["cannot use console socket if"]);
    bundle.config["process"]["terminal"] = json!(true);
    create(&bundle, &[]).fails(&["cannot allocate tty if runc will detach without setting console socket"]);
    create(&bundle, &["--console-socket", "/no/such/socket"]).fails(&["/no/such/socket"]);
    bundle.leaves_nothing();
    bundle.config["process"]["terminal"] = json!(false);
    bundle.args(&["/no/such/program"]);
    create(&bundle, &[]).fails(&["rt create failed: ", "no such file or directory"]);
    bundle.leaves_nothing();
}

/// Standard streams are the container's: rt itself ends and holds none of them.
#[test]
fn the_pid_is_reparented_and_ends_with_the_workloads_code() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "exit 9"]);
    let container = bundle.create(&[]);
    let pid = container.pid();
    let parent = host(&format!("awk '{{ print $4 }}' /proc/{pid}/stat"));
    assert_eq!(parent, std::process::id().to_string(), "this process is the nearest subreaper");
    container.start();
    container.reaches("stopped");
}
