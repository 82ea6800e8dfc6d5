//! rt list.

use crate::shell::{Bundle, host};

#[test]
fn nothing_is_null_or_the_head() {
    let bundle = Bundle::new();
    bundle.rt(&["list"]).says(&["ID          PID         STATUS      BUNDLE      CREATED     OWNER"]);
    bundle.rt(&["list", "--format", "json"]).says(&["null"]);
    bundle.rt(&["list", "--quiet"]).says(&[]);
}

#[test]
fn a_container_has_an_owner() {
    let bundle = Bundle::new();
    let container = bundle.create(&[]);
    let state = container.state();
    let user = host("id -un");
    let list: serde_json::Value =
        serde_json::from_str(&bundle.rt(&["list", "--format=json"]).text()).unwrap();
    assert_eq!(list[0]["owner"], *user);
    for field in ["id", "pid", "status", "bundle", "rootfs", "created", "ociVersion"] {
        assert_eq!(list[0][field], state[field], "{field}");
    }
    let table = bundle.rt(&["list"]).text();
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[0], bundle.id);
    assert_eq!((row[2], row[5]), ("created", &*user));
    bundle.rt(&["list", "-q"]).says(&[&bundle.id]);
}

/// As for runc: what else lies in the root is passed over.
#[test]
fn strange_entries_are_passed_over() {
    let bundle = Bundle::new();
    for name in ["a b", "~7"] {
        std::fs::create_dir_all(bundle.state_root().join(name)).unwrap();
    }
    bundle.file("run/file", "");
    bundle.rt(&["list", "-q"]).says(&[]);
}
