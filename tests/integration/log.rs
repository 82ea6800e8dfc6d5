//! --log: lines that callers parse, the error last; nothing else on standard output and error.

use std::fs;

use serde_json::Value;

use crate::shell::Bundle;

#[test]
fn the_error_is_the_last_line_and_plainly_on_standard_error() {
    let bundle = Bundle::new();
    let log = bundle.file("own-log", "{\"before\": 1}\n");
    let ended =
        bundle.rt(&["--log", log.to_str().unwrap(), "--log-format", "json", "--debug", "state", "nothing"]);
    ended.fails(&["container does not exist"]);
    let text = fs::read_to_string(log).unwrap();
    assert!(text.starts_with("{\"before\": 1}\n"), "it is appended to");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert_eq!(ended.stderr, format!("{}\n", last["msg"].as_str().unwrap()).as_bytes());
    humantime(last["time"].as_str().unwrap());
}

#[test]
fn every_line_of_a_run_is_json() {
    let mut bundle = Bundle::new();
    let log = bundle.path("own-log");
    bundle.args(&["/bin/echo", "hello"]);
    let call = bundle.call().no_log();
    call.global(&["--log", log.to_str().unwrap(), "--log-format=json", "--debug"]).end().says(&["hello"]);
    let text = fs::read_to_string(log).unwrap();
    assert!(!text.is_empty());
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["msg"].is_string() && line["level"].is_string() && line["time"].is_string(), "{line}");
    }
}

#[test]
fn without_a_log_an_error_is_one_line_of_text() {
    let ended = Bundle::new().rt(&["state", "nothing"]);
    ended.fails(&["level=error msg=\"container does not exist"]);
    assert!(ended.stderr.starts_with(b"time=\""), "{ended}");
}

/// RFC 3339, to the second at least.
fn humantime(text: &str) {
    let bytes = text.as_bytes();
    assert!(bytes.len() >= 20 && bytes[4] == b'-' && bytes[10] == b'T' && text.ends_with('Z'), "{text}");
}
