//! Many at once, of the same and of different IDs: one wins, each state is right.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::shell::{Bundle, host};

#[test]
fn fifty_creates_of_one_id_make_one_container() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let dir = bundle.dir().to_str().unwrap().to_owned();
    // The first call writes config.json, which the others then find as it is.
    bundle.rt(&["list", "-q"]).says(&[]);
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let ended = bundle.rt(&["create", "-b", &dir, &bundle.id]);
                match ended.code {
                    0 => drop(made.fetch_add(1, Ordering::Relaxed)),
                    _ => drop(ended.fails(&["container with given ID already exists"])),
                }
            });
        }
    });
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert!(bundle.rt(&["state", &bundle.id]).text().contains("\"created\""));
    // As many deletes: each finds it, or finds it gone.
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let ended = bundle.rt(&["delete", "--force", &bundle.id]);
                ended.code(0).stdout("").stderr("");
            });
        }
    });
    bundle.leaves_nothing();
}

#[test]
fn different_ids_do_not_meet() {
    let bundle = Bundle::new();
    let dir = bundle.dir().to_str().unwrap().to_owned();
    bundle.rt(&["list", "-q"]).says(&[]);
    // A few at a time: each is a virtual machine.
    for round in 0..2 {
        thread::scope(|scope| {
            for number in 0..4 {
                let (bundle, dir) = (&bundle, &dir);
                scope.spawn(move || {
                    let id = format!("{}-{round}-{number}", bundle.id);
                    bundle.rt(&["create", "-b", dir, &id]).says(&[]);
                    bundle.rt(&["start", &id]).says(&[]);
                    bundle.rt(&["delete", "--force", &id]).says(&[]);
                });
            }
        });
    }
    assert_eq!(host(&format!("ls -A {}", bundle.state_root().display())), "");
    bundle.leaves_nothing();
}
