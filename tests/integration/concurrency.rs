//! Many at once, of the same and of different IDs: one wins, each state is right. These tests run alone (all.sh): fifty
//! machines leave others no time, and all patience is theirs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::shell::{Bundle, Ended, Place, host, patience, place};

/// Each gets a fiftieth of the machine.
const SETTINGS: &str =
    "[hypervisor]\nmemory_mib = 128\n[agent]\nboot_timeout_ms = 900000\ntimeout_ms = 900000\n";

fn patiently(bundle: &Bundle, args: &[&str]) -> Ended {
    bundle.rt_within(patience(900), args)
}

#[test]
fn fifty_creates_of_one_id_make_one_container() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle.settings = SETTINGS.into();
    let dir = bundle.dir().to_str().unwrap().to_owned();
    // The first call writes config.json, which the others then find as it is.
    bundle.rt(&["list", "-q"]).says(&[]);
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let ended = patiently(&bundle, &["create", "-b", &dir, &bundle.id]);
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
                patiently(&bundle, &["delete", "--force", &bundle.id]).code(0).stdout("").stderr("");
            });
        }
    });
    bundle.leaves_nothing();
}

/// Fifty virtual machines where software carries them; where hardware does, in the machine with one processor, fewer.
#[test]
fn fifty_different_ids_do_not_meet() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle.settings = SETTINGS.into();
    let dir = bundle.dir().to_str().unwrap().to_owned();
    bundle.rt(&["list", "-q"]).says(&[]);
    let count = match place() {
        Place::Emulation => 50.min(available_mib() / 256),
        Place::Kvm => 8,
    };
    println!("{count} at once");
    let ids: Vec<String> = (0..count).map(|number| format!("{}-{number:02}", bundle.id)).collect();
    let all = |act: &(dyn Fn(&str) + Sync)| {
        thread::scope(|scope| ids.iter().for_each(|id| drop(scope.spawn(|| act(id)))));
    };
    let rt = |args: &[&str]| patiently(&bundle, args);
    all(&|id| {
        rt(&["create", "-b", &dir, id]).says(&[]);
    });
    bundle.rt(&["list", "-q"]).says(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    all(&|id| {
        rt(&["start", id]).says(&[]);
    });
    all(&|id| {
        rt(&["exec", id, "/bin/echo", id]).says(&[id]);
    });
    all(&|id| assert!(rt(&["state", id]).text().contains("\"running\""), "{id}"));
    all(&|id| {
        rt(&["delete", "--force", id]).says(&[]);
    });
    assert_eq!(host(&format!("ls -A {}", bundle.state_root().display())), "");
    bundle.leaves_nothing();
}

fn available_mib() -> usize {
    host("awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo").parse().expect("a number")
}
