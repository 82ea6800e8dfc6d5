//! What a run of rt leaves behind: nothing, or it is found here.
//!
//! Each run has a key. Its processes are known by it: it is in the environment that rt was started with, in the
//! arguments of its helpers, or they run as orphans of rt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::patience;
use super::running::own;

/// The variable that carries a run's key into all its processes.
pub const MARK: &str = "RT_TEST_RUN";

/// Called before the first run: orphans of rt come to this process, and the host is as it was before.
pub fn before() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        nix::sys::prctl::set_child_subreaper(true).expect("orphans can be adopted");
    });
    baseline();
}

/// Network devices before any run.
fn baseline() -> &'static BTreeSet<String> {
    static BEFORE: OnceLock<BTreeSet<String>> = OnceLock::new();
    BEFORE.get_or_init(|| names("/sys/class/net"))
}

/// Processes of one run.
pub struct Processes(Vec<(i32, String)>);

impl Processes {
    pub fn of(key: &str) -> Self {
        reap_orphans();
        let mark = format!("{MARK}={key}");
        let mut found = Vec::new();
        for (pid, stat) in all() {
            if pid == std::process::id() as i32 || stat.state == 'Z' {
                continue;
            }
            let arguments = read(&format!("/proc/{pid}/cmdline"));
            let has = |list: &str, text: &str| list.split('\0').any(|word| word.contains(text));
            if has(&arguments, key) || has(&read(&format!("/proc/{pid}/environ")), &mark) {
                found.push((pid, arguments.replace('\0', " ")));
            }
        }
        Self(found)
    }

    /// The one that is `rt fsd`, or `rt vmm` or QEMU for `vmm`.
    pub fn with_role(&self, role: &str) -> Option<i32> {
        let is = |words: &str| {
            let mut words = words.split(' ');
            let (program, verb) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            match role {
                "vmm" => verb == "vmm" || program.contains("qemu-system"),
                _ => verb == role,
            }
        };
        self.0.iter().find(|(_, words)| is(words)).map(|(pid, _)| *pid)
    }

    /// The one that is `rt … VERB …`, as a user calls it.
    pub fn calling(&self, verb: &str) -> Option<i32> {
        // Not the shell that is about to become it.
        let is = |words: &str| {
            !words.starts_with("/bin/sh ")
                && words.contains(" --root ")
                && words.split(' ').any(|word| word == verb)
        };
        self.0.iter().find(|(_, words)| is(words)).map(|(pid, _)| *pid)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.0.iter().map(|(pid, _)| *pid)
    }

    pub fn kill(&self) {
        for (pid, _) in &self.0 {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

impl fmt::Display for Processes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => formatter.write_str("no processes"),
            false => write!(formatter, "processes {:?}", self.0),
        }
    }
}

/// What is left of a run whose rt has ended. What dies a moment later is waited for.
pub fn of(key: &str, dir: &Path, state: &Path, id: Option<&str>, record_stays: bool) -> Vec<String> {
    let deadline = Instant::now() + patience(20);
    loop {
        let found = look(key, dir, state, id, record_stays);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn look(key: &str, dir: &Path, state: &Path, id: Option<&str>, record_stays: bool) -> Vec<String> {
    let mut found = Vec::new();
    let processes = Processes::of(key);
    if !processes.0.is_empty() {
        found.push(processes.to_string());
    }
    let (dir_text, key_text) = (dir.to_string_lossy(), id.filter(|id| id.contains("test-")).unwrap_or(key));
    for line in read("/proc/self/mountinfo").lines() {
        if line.contains(&*dir_text) || line.contains(key_text) {
            found.push(format!("the mount {line}"));
        }
    }
    if !record_stays {
        let own_root = state.starts_with(dir);
        for name in names(state) {
            if own_root || name.contains(key_text) {
                found.push(format!("{}", state.join(name).display()));
            }
        }
    }
    for name in names(dir.join("tmp")) {
        found.push(format!("the temporary file {name}"));
    }
    for place in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
        for name in names(place).iter().filter(|name| name.contains(key_text)) {
            found.push(format!("{place}/{name}"));
        }
    }
    for name in names("/sys/class/net").difference(baseline()) {
        if ["rt", "tap", "vsock"].iter().any(|prefix| name.starts_with(prefix)) {
            found.push(format!("the network device {name}"));
        }
    }
    if !record_stays {
        cgroups(Path::new("/sys/fs/cgroup"), key_text, 0, &mut found);
    }
    found
}

fn cgroups(dir: &Path, key: &str, depth: u32, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if depth < 6 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(key) {
                found.push(format!("the cgroup {}", entry.path().display()));
            }
            cgroups(&entry.path(), key, depth + 1, found);
        }
    }
}

/// How orphans of rt have ended, by PID.
static ENDED: Mutex<BTreeMap<i32, i32>> = Mutex::new(BTreeMap::new());

/// The exit code of an orphan of rt that has ended, or 128 + signal; of the last one with this PID.
pub fn exit_code(pid: i32) -> Option<i32> {
    reap_orphans();
    ENDED.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).copied()
}

/// Orphans of rt that have ended become this process's to reap.
fn reap_orphans() {
    let own = own();
    let known = own.as_ref().expect("own() fills it");
    let me = std::process::id() as i32;
    for (pid, stat) in all() {
        if stat.parent == me && stat.state == 'Z' && !known.contains(&pid) {
            let code = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => code,
                Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
                _ => continue,
            };
            ENDED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, code);
        }
    }
}

struct Stat {
    state: char,
    parent: i32,
}

fn all() -> HashMap<i32, Stat> {
    let pids = names("/proc").into_iter().filter_map(|name| name.parse().ok());
    let stats = pids.filter_map(|pid: i32| {
        let text = read(&format!("/proc/{pid}/stat"));
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some((pid, Stat { state, parent: fields.next()?.parse().ok()? }))
    });
    stats.collect()
}

/// Of a file in /proc, which may be gone at any time.
fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn names(dir: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
