//! rt events.

use serde_json::Value;

use crate::shell::Bundle;

#[test]
fn statistics_are_those_of_the_guests_group() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 128 << 20});
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let ended = container.rt(&["events", "--stats"]);
    ended.code(0).stderr("");
    let event: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&"stats".into(), &bundle.id.clone().into()));
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 128 << 20);
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{ended}");
    assert_eq!(event["data"]["pids"]["current"], 1);
    bundle.rt(&["kill", &bundle.id, "KILL"]).says(&[]);
    container.reaches("stopped");
    container.rt(&["events", "--stats"]).fails(&["is not running"]);
}

/// The stream ends with the container, and tells of memory that ran out.
#[test]
fn want_of_memory_is_an_event() {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 32 << 20, "swap": 32 << 20});
    bundle.args(&["/bin/sh", "-c", "sleep 2; tail -c 100000000 /dev/zero; sleep 2; echo over"]);
    let container = bundle.run_detached(&[]);
    let ended = container.rt(&["events", "--interval=500ms"]);
    ended.code(0).stderr("");
    let text = ended.text();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["type"] == "stats"), "{ended}");
    let oom: Vec<_> = events.iter().filter(|event| event["type"] == "oom").collect();
    assert_eq!(oom, [&serde_json::json!({"type": "oom", "id": bundle.id})]);
}
