//! kata-check and kata-env on the host that the tests run on; src/check/tests.rs has hosts of other kinds.

use serde_json::Value;

use crate::shell::{Bundle, Place, place};

/// Called by the name of Kata Containers' runtime.
const AS_KATA: &str = "rt=$1; shift; exec bash -c 'exec -a kata-runtime \"$0\" \"$@\"' \"$rt\" \"$@\"";

#[test]
fn it_says_what_carries_guests_here() {
    let ended = Bundle::new().rt(&["kata-check", "--format", "json"]);
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let find = |key: &str, value: &str| findings.iter().find(|finding| finding[key] == value);
    let backend = findings.last().unwrap();
    let guest = find("feature", "run-guest").map(|finding| finding["level"] == "info");
    match place() {
        Place::Kvm => {
            assert_eq!((&backend["backend"], guest), (&"kvm".into(), Some(true)), "{ended}");
        }
        Place::Emulation => {
            assert_eq!(
                (&backend["backend"], &backend["accelerator"]),
                (&"qemu".into(), &"tcg".into()),
                "{ended}"
            );
            assert!(backend["reason"].as_str().unwrap().contains("kvm") && guest != Some(true), "{ended}");
            assert_eq!(report["capable"], false);
        }
    }
    assert_eq!(find("message", "guest found").unwrap()["level"], "info", "{ended}");
    assert!(find("message", "QEMU found").is_some() && find("message", "cgroups found").is_some(), "{ended}");
    ended.code(if report["capable"] == true { 0 } else { 1 });
}

#[test]
fn katas_words_are_used_under_its_name() {
    let bundle = Bundle::new();
    for verb in ["kata-check", "check"] {
        let ended = bundle.rt_through(AS_KATA, &[verb]);
        ended.stdout("");
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("time=\"20") && lines[0].contains(" msg=\"CPU property "), "{ended}");
        assert!(lines[0].contains(" source=runtime type=attribute"), "{ended}");
        match ended.code {
            0 => assert!(
                text.contains("msg=\"System can currently create Kata Containers\" name=kata-runtime pid="),
                "{ended}"
            ),
            1 => assert_eq!(
                lines.last(),
                Some(&"ERROR: System is not capable of running Kata Containers"),
                "{ended}"
            ),
            _ => panic!("{ended}"),
        }
    }
    let ended = bundle.rt(&["kata-check", "--format", "table"]);
    assert!(ended.text().starts_with("STATUS   CHECK ") && !ended.text().contains("Kata"), "{ended}");
}

/// script(1) gives it one.
#[test]
fn on_a_terminal_lines_are_short_and_coloured() {
    let bundle = Bundle::new();
    for (environment, starts) in [("NO_COLOR=", "\x1b[36mINFO\x1b[0m[0000] "), ("NO_COLOR=1", "INFO[0000] ")]
    {
        let script = format!("{environment} exec script -qec \"$*\" /dev/null");
        let text = bundle.rt_through(&script, &["kata-check"]).text();
        let line = text.lines().find(|line| line.contains("64Bit CPU")).unwrap_or_else(|| panic!("{text}"));
        let message = format!("{starts}{:<44}  ", "CPU property found");
        assert!(line.starts_with(&message), "{line:?}");
    }
}

#[test]
fn a_broken_configuration_is_a_finding() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nvcpu = 1\n".into();
    let ended = bundle.rt(&["kata-check"]);
    ended.code(1);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(text.contains("msg=\"configuration not usable\"") && text.contains("rt.toml:2: "), "{ended}");
}

#[test]
fn the_environment_is_told_as_toml_and_json() {
    let bundle = Bundle::new();
    let ended = bundle.rt(&["kata-env"]);
    ended.code(0).stderr("");
    assert!(ended.text().contains("[Host.Distro]\n") && ended.text().contains("[Meta]\n"), "{ended}");
    let ended = bundle.rt(&["kata-env", "--json"]);
    let json: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(json["Runtime"]["Version"]["Semver"], env!("CARGO_PKG_VERSION"));
    assert!(json["Kernel"]["Path"].as_str().unwrap().ends_with("vmlinux"), "{ended}");
    assert!(json["Host"]["Memory"]["Total"].as_u64().unwrap() > 100_000, "{ended}");
}

/// Which engines this node has is its own affair; that what is wrong decides the exit code is not.
#[test]
fn doctor_looks_at_this_node() {
    let bundle = Bundle::new();
    let ended = bundle.rt(&["doctor", "--format", "json"]);
    let notes: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap();
    let is_wrong = notes.iter().any(|note| note["level"] == "error");
    ended.code(is_wrong.into()).stderr("");
    assert_eq!(
        bundle.rt(&["doctor"]).text().lines().filter(|line| !line.contains(" mend: ")).count(),
        notes.len()
    );
}
