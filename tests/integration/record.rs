//! State that is damaged, of another version, or cannot be written.

use std::fs;

use crate::shell::{Bundle, host};

#[test]
fn a_damaged_record_is_told_and_removed_by_force() {
    for text in ["", "{", "null", "{\"version\": 1}", "\0\u{1}\u{2}", "{\"version\": \"new\"}"] {
        let bundle = Bundle::new();
        let dir = bundle.state_root().join(&bundle.id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("state.json"), text).unwrap();
        for verb in ["state", "start", "kill", "delete", "pause"] {
            bundle.rt(&[verb, &bundle.id]).fails(&["state record", "damaged", "rt delete --force"]);
        }
        // One bad apple does not hide the others.
        bundle.rt(&["list", "-q"]).code(0).stdout("");
        bundle.rt(&["delete", "--force", &bundle.id]).code(0).stdout("");
        bundle.leaves_nothing();
    }
}

#[test]
fn a_record_of_a_later_version_is_left_alone() {
    let bundle = Bundle::new();
    let dir = bundle.state_root().join(&bundle.id);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("state.json"), "{\"version\": 999, \"status\": {\"new\": 1}}").unwrap();
    for verb in [&["state"][..], &["start"], &["kill"], &["delete"], &["delete", "--force"]] {
        bundle.rt(&[verb, &[&bundle.id]].concat()).fails(&["is of version 999", "use the rt that made"]);
    }
    bundle.rt(&["create", "-b", bundle.dir().to_str().unwrap(), &bundle.id]).fails(&["already exists"]);
    assert!(dir.join("state.json").exists());
}

#[test]
fn a_state_directory_that_cannot_be_written_is_told() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.state_root()).unwrap();
    let root = bundle.state_root().display().to_string();
    let mounted = |options: &str| {
        format!(
            "exec unshare -m sh -c 'mount --make-rprivate / && mount -t tmpfs -o {options} none {root} && exec \"$@\"' sh \"$@\""
        )
    };
    let args = ["create", "-b", bundle.dir().to_str().unwrap(), &bundle.id];
    bundle.rt_through(&mounted("ro"), &args).fails(&[&root, "Read-only file system"]);
    // No block, no inode but those of the root.
    bundle.rt_through(&mounted("size=4k,nr_inodes=2"), &args).fails(&[&root, "No space left on device"]);
    bundle.leaves_nothing();
}

#[test]
fn ids_at_the_limit() {
    let mut bundle = Bundle::new();
    bundle.id = format!("{}-{}", bundle.id, "x".repeat(255));
    bundle.id.truncate(255);
    let container = bundle.create(&[]);
    container.start();
    container.reaches("stopped");
    drop(container);
    let longer = format!("{}y", bundle.id);
    let dir = host(&format!("echo {}", bundle.dir().display()));
    bundle.rt(&["create", "-b", &dir, &longer]).fails(&["invalid container ID format"]);
    bundle.rt(&["state", &longer]).code(1).stdout("");
}
