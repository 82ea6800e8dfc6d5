//! `rt logs`: the guest's kernel and agent, while they live and afterwards.

use serde_json::Value;

use crate::shell::Bundle;

#[test]
fn kernel_and_agent_are_heard() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let ended = container.rt(&["logs"]);
    ended.code(0).stderr("");
    assert!(ended.text().contains("Linux version 6.12"), "{ended}");
    assert!(ended.text().lines().all(|line| line.starts_with('[')), "{ended}");

    let ended = container.rt(&["logs", "--format", "json", "--log-level", "notice"]);
    let records: Vec<Value> = ended.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!records.is_empty(), "{ended}");
    for record in &records {
        assert!(!["info", "debug"].contains(&record["level"].as_str().unwrap()), "{record}");
    }
}

/// What a container writes into the kernel's log is not followed by a terminal.
#[test]
fn the_guests_text_is_made_printable() {
    let mut bundle = Bundle::new();
    bundle.capabilities(&["CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_MKNOD"]);
    let script = "mknod /dev/kmsg c 1 11; printf '<3>evil\\033[2Jword\\n' >/dev/kmsg; sleep 1000";
    bundle.args(&["/bin/sh", "-c", script]);
    bundle.config["linux"]["resources"]["devices"] = serde_json::json!([{"allow": true, "access": "rwm"}]);
    let container = bundle.run_detached(&[]);
    let deadline = std::time::Instant::now() + crate::shell::patience(30);
    let text = loop {
        let text = container.rt(&["logs", "--log-level", "error"]).text().to_owned();
        if text.contains("evil") || std::time::Instant::now() > deadline {
            break text;
        }
    };
    let err = std::fs::read_to_string(bundle.path("err")).unwrap_or_default();
    assert!(text.contains("evil") && text.contains("word") && !text.contains('\x1b'), "{text:?}{err}");
}

#[test]
fn the_console_outlives_the_guest() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nconsole = true\n".into();
    let container = bundle.create(&[]);
    container.start();
    container.reaches("stopped");
    let ended = container.rt(&["logs"]);
    ended.code(0);
    assert!(ended.text().contains("Linux version 6.12"), "{ended}");
    assert!(!ended.text().contains('\x1b') && !ended.text().contains('\r'), "{ended}");
    container.rt(&["logs", "--console", "--format", "json"]).code(0);
}

#[test]
fn of_no_container_there_is_none() {
    Bundle::new().rt(&["logs", "nobody"]).fails(&["container does not exist"]);
}
