//! What each verb costs, with runc and crun beside it: create, start, state, kill, delete; executing a process in a container
//! that runs; and the memory of one container more.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Table, held_mib, median, monotonic_ms};
use crate::shell::{Bundle, Place, Processes, patience, place, rt_binary};

const ROUNDS: usize = 11;
const EXECS: usize = 100;
const VERBS: [&str; 5] = ["create", "start", "state", "kill", "delete"];

/// A runtime with a state directory of its own.
pub struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    config: Option<PathBuf>,
}

impl Runtime {
    /// rt with that state directory and configuration.
    pub fn rt(root: PathBuf, config: Option<PathBuf>) -> Self {
        Self { name: "rt", program: rt_binary(), root, config }
    }

    /// Those that are here and run the bundle.
    fn all(bundle: &Bundle) -> Vec<Self> {
        let peers = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")]
            .map(|(name, path)| (name, PathBuf::from(path)));
        let all = [("rt", rt_binary())].into_iter().chain(peers).map(|(name, program)| Self {
            name,
            program,
            root: bundle.path(&format!("run-{name}")),
            config: None,
        });
        all.filter(|one| one.program.exists() && one.life(bundle, "probe").is_ok()).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(self.config.iter().map(|config| ("RT_CONFIG", config)));
        command
    }

    /// Wall time in ms, from fork to the exit that the caller sees.
    pub fn time(&self, args: &[&str]) -> Result<f64, String> {
        let begin = monotonic_ms();
        let status = self.command(args).status().map_err(|error| error.to_string())?;
        let took = monotonic_ms() - begin;
        if status.success() { Ok(took) } else { Err(format!("{} {args:?}: {status}", self.name)) }
    }

    fn state(&self, id: &str) -> Option<Value> {
        let output = self.command(&["state", id]).stdout(Stdio::piped()).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// One container's life: how long each verb took. What is waited for in between belongs to no verb.
    fn life(&self, bundle: &Bundle, id: &str) -> Result<[f64; 5], String> {
        let id = format!("{}-{}-{id}", bundle.id, self.name);
        let dir = bundle.dir().to_str().expect("a path of ours");
        let lived = (|| {
            let create = self.time(&["create", "-b", dir, &id])?;
            let start = self.time(&["start", &id])?;
            let state = self.time(&["state", &id])?;
            let kill = self.time(&["kill", &id, "KILL"])?;
            let deadline = monotonic_ms() + patience(30).as_secs_f64() * 1e3;
            while self.state(&id).is_none_or(|state| state["status"] != "stopped") {
                if monotonic_ms() > deadline {
                    return Err(format!("{id} does not stop"));
                }
            }
            // The end of the virtual machine is not delete's.
            while self.name == "rt" && !Processes::of(&id).is_empty() && monotonic_ms() < deadline {}
            Ok([create, start, state, kill, self.time(&["delete", &id])?])
        })();
        if lived.is_err() {
            let _ = self.time(&["delete", "--force", &id]);
        }
        lived
    }
}

#[test]
#[ignore = "a measurement: make bench"]
fn all() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    drop(bundle.call());
    let runtimes = Runtime::all(&bundle);
    assert_eq!(runtimes.first().map(|one| one.name), Some("rt"), "rt does not run here");
    println!();
    let mut table = Table::default();
    table.part("verbs", |table| verbs(&bundle, &runtimes, table));
    table.part("processes executed", |table| execs(&bundle, &runtimes, table));
    table.end("verbs.json");
    bundle.leaves_nothing();
}

fn verbs(bundle: &Bundle, runtimes: &[Runtime], table: &mut Table) {
    let mut medians = Vec::new();
    for runtime in runtimes {
        let lives: Vec<[f64; 5]> = (0..ROUNDS)
            .map(|round| runtime.life(bundle, &round.to_string()).unwrap_or_else(|error| panic!("{error}")))
            .collect();
        medians.push(
            [0, 1, 2, 3, 4].map(|verb| median(&mut lives.iter().map(|life| life[verb]).collect::<Vec<_>>())),
        );
    }
    let crun = runtimes.iter().position(|runtime| runtime.name == "crun");
    for (verb, name) in VERBS.iter().enumerate() {
        for (index, runtime) in runtimes.iter().enumerate() {
            let bound = match (runtime.name, *name) {
                ("rt", "state") => crun.map(|crun| medians[crun][verb]),
                ("rt", "delete") if place() == Place::Emulation => Some(10.0),
                _ => None,
            };
            table.row(format!("{} {name}", runtime.name), medians[index][verb], "ms", bound);
        }
    }
}

fn execs(bundle: &Bundle, runtimes: &[Runtime], table: &mut Table) {
    let dir = bundle.dir().to_str().expect("a path of ours");
    let mut took = Vec::new();
    for runtime in runtimes {
        let id = format!("{}-{}-exec", bundle.id, runtime.name);
        let must = |args: &[&str]| runtime.time(args).unwrap_or_else(|error| panic!("{error}"));
        must(&["run", "--detach", "-b", dir, &id]);
        let mut times: Vec<f64> = (0..EXECS).map(|_| must(&["exec", &id, "/bin/true"])).collect();
        took.push(median(&mut times));
        if runtime.name == "rt" {
            let pids: Vec<i32> = Processes::of(&id).pids().collect();
            table.row("memory that one container holds, guest and helpers", held_mib(&pids), "MiB", None);
        }
        must(&["delete", "--force", &id]);
    }
    let runc = runtimes.iter().position(|runtime| runtime.name == "runc");
    for (runtime, ms) in runtimes.iter().zip(&took) {
        let bound = runc.filter(|_| runtime.name == "rt" && place() == Place::Kvm).map(|runc| took[runc]);
        table.row(format!("{} exec /bin/true, of {EXECS}", runtime.name), *ms, "ms", bound);
    }
}
