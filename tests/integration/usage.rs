//! Wrong command lines, and what rt says of itself.

use std::fs;

use crate::shell::{Bundle, Ended, host, rt_binary};

#[track_caller]
fn is_wrong(ended: &Ended, words: &[&str]) {
    ended.code(1);
    let (out, err) = (ended.text(), String::from_utf8_lossy(&ended.stderr).into_owned());
    assert!(out.starts_with("Incorrect Usage.\n\n") && out.contains("\n\nUSAGE:\n   rt "), "{ended}");
    assert_eq!(err.lines().count(), 1, "{ended}");
    assert!(err.contains("level=error") && words.iter().all(|word| err.contains(word)), "{words:?} {ended}");
}

#[test]
fn a_wrong_value_of_any_flag_is_told() {
    let bundle = Bundle::new();
    let wrong: [(&[&str], &str); 26] = [
        (&["--log-format", "xml", "list"], "xml"),
        (&["--rootless", "perhaps", "list"], "perhaps"),
        (&["--hypervisor", "xen", "list"], "xen"),
        (&["--frob", "list"], "--frob"),
        (&["frob"], "No help topic for 'frob'"),
        (&["list", "--format", "xml"], "xml"),
        (&["list", "extra"], "extra"),
        (&["ps", "--format", "xml", "a"], "xml"),
        (&["state"], "<ID>"),
        (&["state", "a", "b"], "'b'"),
        (&["state", "--frob", "a"], "--frob"),
        (&["create"], "<ID>"),
        (&["create", "--preserve-fds", "many", "a"], "many"),
        (&["create", "--preserve-fds", "-1", "a"], "-1"),
        (&["run", "--preserve-fds", "x", "a"], "--preserve-fds"),
        (&["kill"], "<ID>"),
        (&["events", "--interval", "0s", "a"], "greater than 0"),
        (&["events", "--interval", "soon", "a"], "soon"),
        (&["exec", "--user", "root", "a", "b"], "root"),
        (&["exec", "--user", "1:wheel", "a", "b"], "1:wheel"),
        (&["exec", "--cap", "CAP_FLY", "a", "b"], "CAP_FLY"),
        (&["exec", "--additional-gids", "wheel", "a", "b"], "wheel"),
        (&["exec", "--preserve-fds", "many", "a", "b"], "many"),
        (&["events", "--interval=-1s", "a"], "--interval"),
        (&["update", "--memory", "much", "a"], "much"),
        (&["update", "--pids-limit", "few", "a"], "few"),
    ];
    for (line, word) in wrong {
        is_wrong(&bundle.rt(line), &[word]);
    }
    let numbers = [
        "blkio-weight",
        "cpu-period",
        "cpu-quota",
        "cpu-burst",
        "cpu-share",
        "cpu-rt-period",
        "cpu-rt-runtime",
        "cpu-idle",
        "memory",
        "memory-reservation",
        "memory-swap",
        "pids-limit",
    ];
    for flag in numbers {
        for value in ["many", "", "1e3", "99999999999999999999"] {
            is_wrong(&bundle.rt(&["update", &format!("--{flag}={value}"), "a"]), &[flag]);
        }
    }
    for verb in ["start", "pause", "resume", "delete", "ps", "events", "update", "checkpoint", "restore"] {
        is_wrong(&bundle.rt(&[verb]), &["<ID>"]);
    }
}

#[test]
fn without_a_verb_there_is_help() {
    let bundle = Bundle::new();
    for (line, name) in [(&[][..], "rt"), (&["config"], "rt config")] {
        let ended = bundle.rt(line);
        ended.code(0).stderr("");
        assert!(ended.text().starts_with(&format!("NAME:\n   {name} - ")), "{ended}");
    }
}

/// What the command line alone does not show to be wrong.
#[test]
fn a_value_that_leads_nowhere_is_told() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let exec = |flags: &[&str]| container.exec(flags, &["/bin/true"]);
    exec(&["--cwd", "relative"]).fails_with(255, &["exec failed: ", "relative"]);
    exec(&["--cwd", "/no/such/dir"]).fails_with(255, &["/no/such/dir"]);
    exec(&["--cwd", "/etc/passwd"]).fails_with(255, &["/etc/passwd"]);
    exec(&["--pid-file", "/no/such/dir/pid"]).fails_with(255, &["/no/such/dir/pid"]);
    exec(&["--pidfd-socket", "/no/such/socket"]).fails_with(255, &["/no/such/socket"]);
    exec(&["-t", "-d", "--console-socket", "/no/such/socket"]).fails_with(255, &["/no/such/socket"]);
    exec(&["--preserve-fds", "33"]).fails_with(255, &["33 more descriptors"]);
    bundle.rt(&["kill", &bundle.id, "FROB"]).fails(&["FROB"]);
    bundle.rt(&["kill", &bundle.id, "65"]).fails(&["65"]);
    container.exec(&[], &["/bin/echo", "unharmed"]).says(&["unharmed"]);
    drop(container);
    let dir = bundle.dir().to_str().unwrap().to_owned();
    let create = |flags: &[&str]| bundle.rt(&[&["create", "-b", &dir], flags, &[&bundle.id]].concat());
    create(&["--pidfd-socket", "/no/such/socket"]).fails(&["/no/such/socket"]);
    create(&["--preserve-fds", "33"]).fails(&["33 more descriptors"]);
    bundle.rt(&["create", "-b", "/no/such/bundle", &bundle.id]).fails(&["/no/such/bundle"]);
    bundle.leaves_nothing();
}

/// The long flags of a verb, from its own help: name, and whether it wants a value.
fn flags(bundle: &Bundle, verb: &[&str]) -> Vec<(String, bool)> {
    let help = bundle.rt(&[verb, &["--help"]].concat());
    help.code(0).stderr("");
    let text = help.text();
    let options = text.lines().filter_map(|line| {
        let line = line.trim_start().strip_prefix('-')?;
        let (_, name) = line.split_once("--").or_else(|| Some(("", line.strip_prefix('-')?)))?;
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
        Some((format!("--{}", &name[..end]), name[end..].starts_with(" <")))
    });
    options.collect()
}

/// Of every verb: a flag without the value that it wants, one with a value that it does not want, and one that is not there.
#[test]
fn every_flag_of_every_verb_is_checked() {
    let bundle = Bundle::new();
    let verbs = [
        "checkpoint",
        "create",
        "delete",
        "events",
        "exec",
        "features",
        "kill",
        "list",
        "pause",
        "ps",
        "restore",
        "resume",
        "run",
        "spec",
        "start",
        "state",
        "update",
    ];
    let mut seen = 0;
    for verb in std::iter::once(&[][..]).chain(verbs.iter().map(std::slice::from_ref)) {
        for (flag, wants_value) in flags(&bundle, verb) {
            let wrong = if wants_value { flag.clone() } else { format!("{flag}=x") };
            is_wrong(&bundle.rt(&[verb, &[&wrong]].concat()), &[&flag]);
            seen += 1;
        }
        is_wrong(&bundle.rt(&[verb, &["--no-such-flag"]].concat()), &["--no-such-flag"]);
    }
    assert!(seen > 90, "{seen} flags");
}

#[test]
fn the_reason_goes_to_the_log_too() {
    let bundle = Bundle::new();
    let log = bundle.path("own-log");
    let ended = bundle.rt(&["--log", log.to_str().unwrap(), "--log-format=json", "state"]);
    ended.code(1);
    let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(ended.stderr, format!("{}\n", line["msg"].as_str().unwrap()).as_bytes());
}

#[test]
fn checkpoint_and_restore_say_what_to_use() {
    let bundle = Bundle::new();
    let flags =
        ["--image-path", "/i", "--work-path=/w", "--tcp-established", "--leave-running", "--pre-dump"];
    bundle.rt(&[&["checkpoint"][..], &flags, &["a"]].concat()).fails(&["cannot checkpoint a", "rt pause"]);
    let flags = ["--image-path", "/i", "-d", "--pid-file", "/p", "-b", "/b", "--lsm-profile", "x"];
    bundle.rt(&[&["restore"][..], &flags, &["a"]].concat()).fails(&["cannot restore a", "rt pause"]);
}

#[test]
fn the_version_has_three_lines_in_the_form_of_the_name() {
    let bundle = Bundle::new();
    for flag in ["--version", "-v"] {
        let text = bundle.rt(&[flag]).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("rt version ") && lines[1].starts_with("commit: "), "{text}");
        assert!(lines[2].starts_with("spec: 1."), "{text}");
    }
    for name in ["kata-runtime", "kata"] {
        let text = host(&format!("bash -c 'exec -a {name} {} --version'", rt_binary().display()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("kata-runtime  : "), "{text}");
        assert!(lines[1].starts_with("   commit   : ") && lines[2].starts_with("   OCI specs: 1."), "{text}");
    }
}
