//! SIGKILL for each process of rt at many points of a container's life: afterwards `rt delete --force` leaves nothing.
//!
//! The product knows nothing of this: the kill comes at a fraction of the time that the verb takes when nobody
//! disturbs it, [`points`] fractions for each of create, start, exec and delete. A victim that is not there yet is waited for;
//! one that has ended already is a miss, of which there may be a few.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, Ended, Place, Processes, patience, place};

const VERBS: [&str; 4] = ["create", "start", "exec", "delete"];
/// Points in each verb: twenty in all, where a machine does not take ten seconds for each; `RT_TEST_FAULT_POINTS` has as many looked at there.
fn points() -> u32 {
    let usual = match place() {
        Place::Emulation => 5,
        Place::Kvm => 2,
    };
    std::env::var("RT_TEST_FAULT_POINTS").map_or(usual, |text| text.parse().expect("a number"))
}

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Helper(&'static str),
    /// The verb itself.
    Rt,
}

/// A container with a cgroup of its own on the host, so that this could be left, too.
fn bundle() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", bundle.id));
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

/// One verb to its end, however it ends.
fn verb(bundle: &Bundle, verb: &str) -> Ended {
    let id = bundle.id.as_str();
    let dir = bundle.dir().to_str().expect("a path of ours");
    let args: &[&str] = match verb {
        "create" => &["create", "-b", dir, id],
        "exec" => &["exec", id, "/bin/true"],
        other => &[other, id],
    };
    let script = if verb == "delete" { "exec \"$@\" --force" } else { "exec \"$@\"" };
    bundle.rt_through(script, args)
}

/// How long each verb takes here and now, at the least: later the kill would come too late. The first machine of a kind boots where those
/// after it start from its template: it counts for nothing.
fn durations() -> HashMap<&'static str, Duration> {
    undisturbed();
    let (one, other) = (undisturbed(), undisturbed());
    one.into_iter().map(|(verb, took)| (verb, took.min(other[verb]))).collect()
}

fn undisturbed() -> HashMap<&'static str, Duration> {
    let bundle = bundle();
    let took = VERBS.map(|name| {
        let begin = Instant::now();
        verb(&bundle, name).code(0);
        (name, begin.elapsed())
    });
    bundle.leaves_nothing();
    took.into()
}

/// Kills the victim as soon as it is there; whether it was there before the verb's end.
fn strike(bundle: &Bundle, victim: Victim, verb: &str, ended: impl Fn() -> bool) -> bool {
    loop {
        let over = ended();
        let processes = Processes::of(&bundle.id);
        let found = match victim {
            Victim::Helper(role) => processes.with_role(role),
            Victim::Rt => processes.calling(verb),
        };
        match found.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL)) {
            Some(Ok(())) => return true,
            Some(Err(Errno::ESRCH)) | None if !over => thread::sleep(Duration::from_millis(1)),
            Some(Err(Errno::ESRCH)) | None => return false,
            Some(Err(error)) => panic!("kill: {error}"),
        }
    }
}

/// Lives up to the verb, kills the victim `after` its start, deletes by force, and looks for what is left.
fn life(victim: Victim, at: &str, after: Duration) -> bool {
    let bundle = bundle();
    for before in VERBS.iter().take_while(|name| **name != at) {
        verb(&bundle, before).code(0);
    }
    let hit = thread::scope(|scope| {
        let running = scope.spawn(|| verb(&bundle, at));
        thread::sleep(after);
        strike(&bundle, victim, at, || running.is_finished())
    });
    let begin = Instant::now();
    bundle.rt(&["delete", "--force", &bundle.id]).says(&[]);
    assert!(begin.elapsed() < patience(30), "delete took {:?}", begin.elapsed());
    bundle.leaves_nothing();
    bundle.rt(&["state", &bundle.id]).fails(&["container does not exist"]);
    hit
}

fn kills(victim: Victim) {
    let (durations, points) = (durations(), points());
    let mut hits = 0;
    for at in VERBS {
        for point in 0..points {
            let after = durations[at] * point / points;
            let hit = life(victim, at, after);
            println!("{victim:?} {after:?} into {at}: {}", if hit { "killed" } else { "was gone" });
            hits += u32::from(hit);
        }
    }
    // Fewer have shown nothing; `start` alone takes so little that the rt that it is may be gone at all points but the first.
    let lives = points * VERBS.len() as u32;
    assert!(hits * 2 >= lives, "only {hits} kills of {lives} found their victim");
}

#[test]
fn the_vmm_is_killed_at_many_points() {
    kills(Victim::Helper("vmm"));
}

#[test]
fn the_file_server_is_killed_at_many_points() {
    kills(Victim::Helper("fsd"));
}

#[test]
fn the_monitor_is_killed_at_many_points() {
    kills(Victim::Helper("monitor"));
}

#[test]
fn rt_is_killed_at_many_points() {
    kills(Victim::Rt);
}
