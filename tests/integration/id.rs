//! Container IDs.

use crate::shell::{Bundle, Input};

#[test]
fn without_an_id_one_is_made_up() {
    let bundle = Bundle::new();
    bundle.call().id(None).end().code(0).stdout("").stderr("");
}

#[test]
fn an_empty_id_is_refused() {
    Bundle::new().call().id(Some("")).end().fails(&["container id cannot be empty"]);
}

#[test]
fn an_id_that_is_no_file_name_is_refused() {
    let bundle = Bundle::new();
    let long = "x".repeat(1025);
    for id in [&*long, "a/b", "/", "..", "../a", "a b", "a\nb", "ä", "~1"] {
        bundle.call().id(Some(id)).end().fails(&["invalid container ID format"]);
    }
}

/// An ID names a directory: an odd one must lead to no other.
#[test]
fn no_verb_takes_an_odd_id() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let victim = bundle.path("victim");
    std::fs::create_dir_all(victim.join("data")).unwrap();
    for verb in [
        &["delete", "--force"][..],
        &["delete"],
        &["state"],
        &["start"],
        &["kill"],
        &["pause"],
        &["resume"],
        &["ps"],
        &["update", "--pids-limit", "5"],
        &["events", "--stats"],
        &["trace"],
    ] {
        let call = |id: &str| bundle.rt(&[verb, &[id]].concat());
        call("").fails(&["container id cannot be empty"]);
        for id in ["../victim", &format!("./{}", bundle.id), &format!("{}/", bundle.id), "/"] {
            call(id).fails(&["invalid container ID format"]);
        }
    }
    for id in ["", "../victim"] {
        let words =
            if id.is_empty() { "container id cannot be empty" } else { "invalid container ID format" };
        bundle.rt(&["exec", id, "true"]).fails_with(255, &[words]);
    }
    assert!(victim.join("data").is_dir());
    assert_eq!(container.state()["status"], "running");
}

#[test]
fn the_whole_alphabet_is_taken() {
    let bundle = Bundle::new();
    bundle.call().id(Some(&format!("{}_A+b-c.9", bundle.id))).end().code(0);
}

#[test]
fn a_taken_id_is_refused_and_its_container_goes_on() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "echo ready; read line; echo \"$line\""]);
    let mut first = bundle.call().stdin(Input::Open).start();
    first.says("ready\n");

    let root = bundle.path("run");
    let second = Bundle::new().call().root(Some(&root)).id(Some(&bundle.id)).record_stays().end();
    second.fails(&["container with given ID already exists", &bundle.id]);

    first.write("still here\n");
    first.end().says(&["ready", "still here"]);
    // And free again afterwards.
    bundle.run(&["/bin/true"]).code(0);
}

#[test]
fn the_default_root_is_cleaned_too() {
    Bundle::new().call().root(None).end().code(0);
}

#[test]
fn the_bundle_is_the_working_directory_unless_told_otherwise() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/echo", "here"]);
    bundle.call().bundle(None).end().says(&["here"]);
}
