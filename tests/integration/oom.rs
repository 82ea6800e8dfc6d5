//! Memory that runs out in the guest: exit code 137, an event, and the file that CRI-O looks for.

use serde_json::json;

use crate::shell::Bundle;

#[test]
fn the_oom_file_lies_in_the_bundle() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
    bundle.args(&["/bin/tail", "-c", "100000000", "/dev/zero"]);
    let pid_file = bundle.path("pid");
    let container = bundle.create(&["--pid-file", pid_file.to_str().unwrap()]);
    let file = bundle.path("oom");
    assert!(!file.exists());
    container.start();
    container.reaches("stopped");
    assert_eq!(std::fs::read(&file).unwrap(), b"");
    drop(container);
    std::fs::remove_file(&file).unwrap();
    bundle.call().end().code(137).stdout("");
    assert!(file.exists());
}

/// A container that goes on after one of its processes was killed: the file is there at once, not at its end.
#[test]
fn one_process_of_several() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
    bundle.args(&["/bin/sh", "-c", "tail -c 100000000 /dev/zero; echo code $?; sleep 1000"]);
    let container = bundle.run_detached(&[]);
    container.wrote("code 137");
    let deadline = std::time::Instant::now() + crate::shell::patience(10);
    while !bundle.path("oom").exists() {
        assert!(std::time::Instant::now() < deadline, "there is no oom file");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(container.state()["status"], "running");
}

#[test]
fn without_want_there_is_no_file() {
    let mut bundle = Bundle::new();
    bundle.sh("kill -9 $$; exit 137").code(137);
    assert!(!bundle.path("oom").exists());
}
