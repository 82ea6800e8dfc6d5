//! Containers that outlive the command that made them: created, started, asked for, deleted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::leftovers::{self, MARK, Processes};
use super::running::{ended, forget, spawn};
use super::{Bundle, Ended, patience, rt_binary};

/// How long one verb may take before it counts as hung.
const LIMIT_S: u64 = 90;

impl Bundle {
    /// `rt --root ROOT ARGS…` to its end, with this bundle's state directory. Standard output and error are files: what a
    /// verb leaves running may keep them open.
    #[track_caller]
    pub fn rt<A: AsRef<OsStr>>(&self, args: &[A]) -> Ended {
        self.rt_through("exec \"$@\"", args)
    }

    /// As [`Bundle::rt`], for a verb that may take this long.
    #[track_caller]
    pub fn rt_within<A: AsRef<OsStr>>(&self, limit: Duration, args: &[A]) -> Ended {
        self.verb(limit, "exec \"$@\"", args)
    }

    /// As [`Bundle::rt`], started by this script of /bin/sh, in which `"$@"` is the whole call.
    #[track_caller]
    pub fn rt_through<A: AsRef<OsStr>>(&self, script: &str, args: &[A]) -> Ended {
        self.verb(patience(LIMIT_S), script, args)
    }

    #[track_caller]
    fn verb<A: AsRef<OsStr>>(&self, limit: Duration, script: &str, args: &[A]) -> Ended {
        leftovers::before();
        self.write_config();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(rt_binary()).arg("--root").arg(self.state_root()).args(args);
        let outputs =
            ["stdout", "stderr"].map(|name| self.path(&format!("{name}-{}", super::bundle::unique_id())));
        let [stdout, stderr] =
            outputs.each_ref().map(|path| File::create(path).expect("a file in the bundle"));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        command.env(MARK, &self.id).env("TMPDIR", self.path("tmp"));
        if let Some(settings) = self.settings_file() {
            command.env("RT_CONFIG", settings);
        }
        let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
        let shown = format!("rt {}", words.join(" "));
        let mut child = spawn(&mut command).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let deadline = Instant::now() + limit;
        let Some(status) = ended(&mut child, deadline) else {
            let seen = Processes::of(&self.id).to_string();
            let _ = child.kill();
            panic!("{shown} did not end; there are {seen}");
        };
        forget(child.id() as i32);
        let [stdout, stderr] = outputs.each_ref().map(|path| fs::read(path).unwrap());
        outputs.iter().for_each(|path| drop(fs::remove_file(path)));
        let code = status.code().unwrap_or(-1);
        Ended { command: shown, code, stdout, stderr, log: self.path("log") }
    }

    /// Where the state of this bundle's containers is.
    pub fn state_root(&self) -> PathBuf {
        self.root.clone()
    }

    /// `rt create` with these flags. What the container writes is found by [`Container::out`].
    #[track_caller]
    pub fn create(&self, flags: &[&str]) -> Container<'_> {
        let container = Container { bundle: self };
        container.make("create", flags).code(0);
        container
    }

    /// `rt run --detach` with these flags.
    #[track_caller]
    pub fn run_detached(&self, flags: &[&str]) -> Container<'_> {
        let container = Container { bundle: self };
        container.make("run", &[&["--detach"], flags].concat()).code(0);
        container
    }

    /// Says whether anything is left of this bundle's containers.
    #[track_caller]
    pub fn leaves_nothing(&self) {
        let found = leftovers::of(&self.id, self.dir(), &self.state_root(), Some(&self.id), false);
        assert!(found.is_empty(), "something is left: {}", found.join("; "));
    }
}

/// A container with the bundle's ID. Dropping it deletes it by force; then nothing may be left.
pub struct Container<'a> {
    bundle: &'a Bundle,
}

impl Container<'_> {
    #[track_caller]
    fn make(&self, verb: &str, flags: &[&str]) -> Ended {
        let bundle = self.bundle;
        let script = format!("exec \"$@\" >{0}/out 2>{0}/err", bundle.dir().display());
        let dir = bundle.dir().to_str().expect("a path of ours");
        let log = bundle.path("log");
        let global = ["--debug", "--log", log.to_str().expect("a path of ours")];
        let mut ended =
            bundle.rt_through(&script, &[&global[..], &[verb], flags, &["-b", dir, &bundle.id]].concat());
        ended.stderr = fs::read(bundle.path("err")).unwrap_or_default();
        ended
    }

    /// A verb on this container, its ID last.
    #[track_caller]
    pub fn rt(&self, args: &[&str]) -> Ended {
        self.bundle.rt(&[args, &[&self.bundle.id]].concat())
    }

    /// `rt exec FLAGS ID COMMAND`.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], command: &[&str]) -> Ended {
        self.bundle.rt(&[&["exec"], flags, &[&self.bundle.id], command].concat())
    }

    /// `rt exec ID /bin/sh -c SCRIPT`.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Ended {
        self.exec(&[], &["/bin/sh", "-c", script])
    }

    #[track_caller]
    pub fn start(&self) {
        self.rt(&["start"]).says(&[]);
    }

    #[track_caller]
    pub fn state(&self) -> Value {
        let ended = self.rt(&["state"]);
        ended.code(0).stderr("");
        serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}\n{ended}"))
    }

    /// The process that stands for the container.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Waits for the end of the process that stood for the container: its exit code, or 128 + signal.
    #[track_caller]
    pub fn exit_code(&self, pid: i32) -> i32 {
        let deadline = Instant::now() + patience(LIMIT_S);
        loop {
            match leftovers::exit_code(pid) {
                Some(code) => return code,
                None if Instant::now() > deadline => panic!("{pid} does not end: {}", self.state()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The record, as it is now.
    pub fn record(&self) -> Value {
        let text = fs::read(self.state_dir().join("state.json")).expect("a container has a record");
        serde_json::from_slice(&text).expect("a record is JSON")
    }

    /// The directory of the record.
    pub fn state_dir(&self) -> PathBuf {
        self.bundle.state_root().join(&self.bundle.id)
    }

    /// Waits until `state` says so.
    #[track_caller]
    pub fn reaches(&self, status: &str) {
        self.waits_for(status, |container| container.state()["status"] == status);
    }

    /// What the container's process has written to standard output.
    pub fn out(&self) -> String {
        fs::read_to_string(self.bundle.path("out")).unwrap_or_default()
    }

    /// Waits until the container's process has written this.
    #[track_caller]
    pub fn wrote(&self, text: &str) {
        self.waits_for(text, |container| container.out().contains(text));
    }

    #[track_caller]
    fn waits_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + patience(LIMIT_S);
        while !done(self) {
            if Instant::now() > deadline {
                let err = fs::read_to_string(self.bundle.path("err")).unwrap_or_default();
                panic!("{what:?} did not come: {}\n{}{err}", self.state(), self.out());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let deleted = self.rt(&["delete", "--force"]);
        if std::thread::panicking() {
            Processes::of(&self.bundle.id).kill();
        } else {
            deleted.says(&[]);
            self.bundle.leaves_nothing();
        }
    }
}
