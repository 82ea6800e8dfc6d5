//! rt spec.

use std::fs;

use serde_json::Value;

use crate::shell::{Bundle, Input, Pty};

#[test]
fn a_specification_is_written_once() {
    let bundle = Bundle::new();
    let dir = bundle.path("new");
    fs::create_dir(&dir).unwrap();
    let spec = |flags: &[&str]| bundle.rt(&[&["spec", "-b", dir.to_str().unwrap()], flags].concat());
    spec(&[]).says(&[]);
    let text = fs::read_to_string(dir.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["hostname"], "rt");
    assert_eq!(config["process"]["args"][0], "sh");
    spec(&[]).fails(&["File config.json exists. Remove it first"]);
    assert_eq!(fs::read_to_string(dir.join("config.json")).unwrap(), text);
    fs::remove_file(dir.join("config.json")).unwrap();
    spec(&["--rootless"]).says(&[]);
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["linux"]["uidMappings"][0]["size"], 1);
    bundle.rt(&["spec", "--bundle", "/no/such/dir"]).fails(&["/no/such/dir/config.json"]);
}

/// As runc's: a shell on a terminal, in the directory rootfs, which is read-only.
#[test]
fn what_is_written_runs_as_it_stands() {
    let mut bundle = Bundle::new();
    let dir = bundle.path("new");
    fs::create_dir(&dir).unwrap();
    bundle.rt(&["spec", "-b", dir.to_str().unwrap()]).says(&[]);
    bundle.config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut pty = Pty::new(24, 80);
    let running = bundle.call().terminal(&pty).start();
    pty.types("PS1=; echo no''w; hostname; id -u; echo >/x; test -t 0; exit $((4 + $?))\r");
    pty.shows("now\r\nrt\r\n0\r\n");
    pty.shows("Read-only file system");
    running.end().code(4);
    bundle.config["process"]["terminal"] = false.into();
    bundle.call().stdin(Input::Bytes(b"hostname; id -u; exit 3\n".to_vec())).end().code(3).stdout("rt\n0\n");
}
