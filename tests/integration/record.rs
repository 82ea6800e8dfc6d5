//! State that is damaged, of another version, or cannot be written.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

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

/// A file system that is gone again when the test is over.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: PathBuf, options: &str) -> Self {
        host(&format!("mkdir {0}; mount -t tmpfs -o {options} none {0}", path.display()));
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        host(&format!("umount -l {}", self.0.display()));
    }
}

/// The container is as it was, or on its way, but never lost: it can be ended and removed.
#[test]
fn a_state_directory_that_fills_up_is_told() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let root = Mounted::tmpfs(bundle.state_root(), "size=1m");
    let dir = bundle.dir().to_str().unwrap().to_owned();
    bundle.rt(&["create", "-b", &dir, &bundle.id]).says(&[]);
    let fill = root.0.join("fill");
    host(&format!("dd if=/dev/zero of={} bs=4k 2>/dev/null || :", fill.display()));
    let full = ["write the state record", "No space left on device"];
    bundle.rt(&["start", &bundle.id]).fails(&full);
    assert!(bundle.rt(&["state", &bundle.id]).text().contains("\"created\""));
    bundle.rt(&["create", "-b", &dir, "another"]).fails(&full);
    bundle.rt(&["list", "-q"]).says(&[&bundle.id]);
    bundle.rt(&["delete", "--force", &bundle.id]).says(&[]);
    assert_eq!(host(&format!("ls -A {}", root.0.display())), "fill");
    drop(root);
    bundle.leaves_nothing();
}

/// What one rt has made another uses as far as it understands it, and leaves alone where it does not.
#[test]
fn two_versions_on_one_state_directory() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    let newer = bundle.state_root().join("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("state.json"), "{\"version\": 2, \"status\": {\"new\": 1}}").unwrap();
    // As an rt of this version would have written it that had less to tell, and one that had more.
    let mut record = container.record();
    let fields = record.as_object_mut().unwrap();
    for field in ["size", "network", "sandbox", "share", "sharedMonitor", "resources"] {
        assert!(fields.remove(field).is_some(), "{field}");
    }
    fields.insert("later".into(), json!({"a": 1}));
    fs::write(container.state_dir().join("state.json"), record.to_string()).unwrap();
    container.start();
    container.exec(&[], &["/bin/echo", "here"]).says(&["here"]);
    bundle.rt(&["list", "-q"]).says(&[&bundle.id]);
    bundle.rt(&["gc"]).code(0);
    bundle.rt(&["delete", "--force", "newer"]).fails(&["is of version 2"]);
    container.rt(&["delete", "--force"]).says(&[]);
    assert!(newer.join("state.json").exists());
    fs::remove_dir_all(newer).unwrap();
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
