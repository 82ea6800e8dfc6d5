//! `rt stats` and `rt metrics`: what containers use.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::shell::{Bundle, rt_binary};

fn busy() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "while :; do :; done"]);
    bundle.config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20});
    bundle
}

#[test]
fn guest_and_host_are_counted() {
    let bundle = busy();
    let container = bundle.run_detached(&[]);
    let ended = bundle.rt(&["stats", "--no-stream", "--format", "json"]);
    ended.code(0).stderr("");
    let rows: Vec<Value> =
        serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended}"));
    let [row] = &rows[..] else { panic!("{ended}") };
    assert_eq!((&row["id"], &row["status"]), (&bundle.id.as_str().into(), &"running".into()));
    assert_eq!(row["guest"]["memory_limit_bytes"], 64 << 20);
    assert_eq!(row["guest"]["pids"], 1);
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{row}"));
    assert!(number(&row["guest_cpu_percent"]) > 1.0 && number(&row["host_cpu_percent"]) > 1.0, "{row}");
    // The VM and its file server at least; the guest's kernel is in the host's memory only.
    assert!(number(&row["host"]["processes"]) >= 3.0, "{row}");
    assert!(number(&row["host"]["memory_bytes"]) > number(&row["guest"]["memory_bytes"]), "{row}");

    let table = container.rt(&["stats", "--no-stream"]).text().to_owned();
    assert!(table.starts_with("ID ") && table.contains("64.0MiB") && table.lines().count() == 2, "{table}");
    bundle.rt(&["stats", "--no-stream", "nobody"]).fails(&["container does not exist"]);
}

#[test]
fn prometheus_is_answered() {
    let bundle = busy();
    let _container = bundle.run_detached(&[]);
    let mut server = Command::new(rt_binary())
        .arg("--root")
        .arg(bundle.state_root())
        .args(["metrics", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.trim().trim_start_matches("listening on http://").trim_end_matches("/metrics").to_owned();
    let ask = |request: &str| {
        let mut connection = TcpStream::connect(&address).unwrap();
        write!(connection, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    };
    let (metrics, elsewhere, post) = (ask("GET /metrics"), ask("GET /"), ask("POST /metrics"));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    for line in [
        format!("rt_container_guest_up{{id=\"{}\"}} 1", bundle.id),
        format!("rt_container_memory_limit_bytes{{id=\"{}\"}} 67108864", bundle.id),
        "rt_containers{status=\"running\"} 1".into(),
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line} is not in {metrics}");
    }
    assert!(elsewhere.starts_with("HTTP/1.1 404 ") && post.starts_with("HTTP/1.1 405 "), "{elsewhere}{post}");
}
