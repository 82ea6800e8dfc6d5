//! Starting rt, talking to it while it runs, and waiting for its end within a time limit.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::leftovers::{self, Processes};
use super::{Bundle, Ended, Pty, patience, rt_binary};

/// How long one run of rt may take before it counts as hung.
const LIMIT_S: u64 = 90;

/// What rt's standard input is.
pub enum Input {
    /// /dev/null.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// [`Running::stdin`].
    Open,
    File(File),
}

/// One call of `rt run`, before it is made.
pub struct Call {
    id: Option<String>,
    key: String,
    dir: PathBuf,
    root: Option<PathBuf>,
    bundle: Option<PathBuf>,
    global: Vec<OsString>,
    verb: Vec<OsString>,
    line: Option<Vec<OsString>>,
    env: Vec<(OsString, OsString)>,
    shell: Option<String>,
    input: Input,
    output: Option<File>,
    pty: Option<OwnedFd>,
    log: bool,
    record_stays: bool,
}

impl Call {
    pub(super) fn new(bundle: &Bundle) -> Self {
        Self {
            id: Some(bundle.id.clone()),
            key: bundle.id.clone(),
            dir: bundle.dir().into(),
            root: Some(bundle.state_root()),
            bundle: Some(bundle.dir().into()),
            global: Vec::new(),
            verb: Vec::new(),
            line: None,
            env: Vec::new(),
            shell: None,
            input: Input::Null,
            output: None,
            pty: None,
            log: true,
            record_stays: false,
        }
    }

    /// Another verb than run, of the bundle's container, which outlives the call: the whole line behind the global flags.
    pub fn verb(mut self, line: &[&str]) -> Self {
        self.line = Some(line.iter().map(Into::into).collect());
        self.key = super::bundle::unique_id();
        self.id = None;
        self.record_stays()
    }

    /// Flags before the verb.
    pub fn global(mut self, flags: &[&str]) -> Self {
        self.global.extend(flags.iter().map(Into::into));
        self
    }

    /// Flags after the verb.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.verb.extend(flags.iter().map(Into::into));
        self
    }

    /// The container's ID; without, rt makes one up.
    pub fn id(mut self, id: Option<&str>) -> Self {
        self.id = id.map(str::to_owned);
        self
    }

    /// `--root`; without, it is rt's own default.
    pub fn root(mut self, root: Option<&Path>) -> Self {
        self.root = root.map(Path::to_owned);
        self
    }

    /// `-b`; without, the working directory is the bundle.
    pub fn bundle(mut self, bundle: Option<&Path>) -> Self {
        self.bundle = bundle.map(Path::to_owned);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        self
    }

    /// rt is started by this script of /bin/sh, in which `"$@"` is the whole call; it ends with `exec "$@"`.
    pub fn through(mut self, script: &str) -> Self {
        self.shell = Some(script.into());
        self
    }

    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Standard output goes to this file.
    pub fn stdout(mut self, file: File) -> Self {
        self.output = Some(file);
        self
    }

    /// All three streams are this terminal, which is rt's controlling one.
    pub fn terminal(mut self, pty: &Pty) -> Self {
        self.pty = Some(pty.slave());
        self
    }

    /// Without `--log` and `--debug`, which every call has to explain a failure.
    pub fn no_log(mut self) -> Self {
        self.log = false;
        self
    }

    /// The record is another's, or rt is going to be killed and nobody is there to remove it.
    pub fn record_stays(mut self) -> Self {
        self.record_stays = true;
        self
    }

    /// The whole: starts rt and waits for its end.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.start().end()
    }

    /// Starts rt.
    #[track_caller]
    pub fn start(mut self) -> Running {
        leftovers::before();
        let (mut command, shown) = self.command();
        let (mut stdin, mut readers) = (None, Vec::new());
        let mut child = spawn(&mut command).unwrap_or_else(|error| panic!("{shown}: {error}"));
        drop(command);
        if self.pty.is_none() {
            readers.extend(child.stdout.take().map(Reader::start));
            let stderr = child.stderr.take().map(Reader::start);
            if readers.is_empty() {
                readers.push(Reader::empty());
            }
            readers.extend(stderr);
            stdin = child.stdin.take();
        }
        let feeder = match (self.input, stdin.take()) {
            (Input::Bytes(bytes), Some(mut pipe)) => {
                // A reader that stops reading is the test's affair.
                Some(thread::spawn(move || drop(pipe.write_all(&bytes))))
            }
            (_, pipe) => {
                stdin = pipe;
                None
            }
        };
        Running {
            child,
            shown,
            key: self.key,
            state: self.root.unwrap_or_else(|| "/run/rt".into()),
            id: self.id,
            dir: self.dir,
            stdin,
            readers,
            _feeder: feeder,
            limit: patience(LIMIT_S),
            record_stays: self.record_stays,
        }
    }

    fn command(&mut self) -> (Command, String) {
        let mut words: Vec<OsString> = vec![rt_binary().into()];
        if self.log {
            words.extend(["--debug".into(), "--log".into(), self.dir.join("log").into()]);
        }
        if let Some(root) = &self.root {
            words.extend(["--root".into(), root.into()]);
        }
        words.append(&mut self.global);
        if let Some(line) = &mut self.line {
            words.append(line);
        } else {
            words.push("run".into());
            words.append(&mut self.verb);
            if let Some(bundle) = &self.bundle {
                words.extend(["-b".into(), bundle.into()]);
            }
            words.extend(self.id.iter().map(Into::into));
        }
        let shown = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        if let Some(script) = &self.shell {
            words.splice(0..0, ["/bin/sh", "-c", script, "sh"].map(Into::into));
        }
        if self.pty.is_some() {
            // A session of its own with the terminal as its controlling one. It does not fork: it leads no group.
            words.splice(0..0, ["setsid", "--ctty", "--wait"].map(Into::into));
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env(leftovers::MARK, &self.key).env("TMPDIR", self.dir.join("tmp"));
        if self.bundle.is_none() {
            command.current_dir(&self.dir);
        }
        match &self.pty {
            Some(slave) => {
                let stream = || Stdio::from(slave.try_clone().expect("a descriptor"));
                command.stdin(stream()).stdout(stream()).stderr(stream());
            }
            None => {
                command.process_group(0);
                command.stdin(match &self.input {
                    Input::Null => Stdio::null(),
                    Input::Bytes(_) | Input::Open => Stdio::piped(),
                    Input::File(file) => file.try_clone().expect("a descriptor").into(),
                });
                command.stdout(self.output.take().map_or_else(Stdio::piped, Stdio::from));
                command.stderr(Stdio::piped());
            }
        }
        (command, shown)
    }
}

/// Processes that the harness started and waits for itself. All others that become its children were orphaned by rt.
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// The set, locked: while it is, no process is started or forgotten.
pub(super) fn own() -> MutexGuard<'static, Option<HashSet<i32>>> {
    let mut own = OWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    own.get_or_insert_default();
    own
}

pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut own = own();
    let child = command.spawn()?;
    own.as_mut().unwrap().insert(child.id() as i32);
    Ok(child)
}

/// Waits for a child's end; `None` when it has not come by then. Asleep: a hundred at once leave one processor to those they wait for.
pub fn ended(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let pidfd = rt::sys::pidfd::open(child.id() as i32).expect("a child that nobody else waits for");
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left);
    }
}

/// A process that [`spawn`] started has been waited for.
pub(super) fn forget(pid: i32) {
    own().as_mut().unwrap().remove(&pid);
}

/// Runs a helper of the harness.
pub(super) fn run_to_end(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = child.id() as i32;
    let output = child.wait_with_output().unwrap();
    own().as_mut().unwrap().remove(&pid);
    output
}

/// Collects what comes out of a pipe.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn empty() -> Self {
        Self { bytes: Arc::default(), thread: None }
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}

/// rt, running.
pub struct Running {
    child: Child,
    shown: String,
    key: String,
    state: PathBuf,
    id: Option<String>,
    dir: PathBuf,
    /// With [`Input::Open`]; dropping it is the end of the input.
    pub stdin: Option<ChildStdin>,
    readers: Vec<Reader>,
    _feeder: Option<JoinHandle<()>>,
    limit: Duration,
    record_stays: bool,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal to rt, and to nobody else.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Writes to rt's standard input.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("Input::Open");
        stdin.write_all(bytes.as_ref()).and_then(|()| stdin.flush()).expect("rt reads its standard input");
    }

    /// Waits until standard output has this text.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        let deadline = Instant::now() + self.limit;
        loop {
            let found = {
                let bytes = self.readers[0].bytes.lock().unwrap();
                bytes.windows(text.len()).any(|window| window == text.as_bytes())
            };
            if found {
                return;
            }
            if self.child.try_wait().unwrap().is_some() {
                // What it had still to say may be under way.
                thread::sleep(Duration::from_millis(200));
                let said = String::from_utf8_lossy(&self.readers[0].bytes.lock().unwrap()).into_owned();
                if !said.contains(text) {
                    panic!("rt ended without saying {text:?}\n{}", self.report(None));
                }
                return;
            }
            if Instant::now() > deadline {
                self.kill_all();
                panic!("{text:?} did not come within {:?}\n{}", self.limit, self.report(None));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process that rt started as `rt vmm` or QEMU, or as `rt fsd`. Waits until it is there.
    #[track_caller]
    pub fn helper(&self, role: &str) -> i32 {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(pid) = Processes::of(&self.key).with_role(role) {
                return pid;
            }
            assert!(
                Instant::now() < deadline,
                "there is no {role} process; there are {}",
                Processes::of(&self.key)
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The record that rt keeps of the container.
    pub fn record(&self) -> Option<serde_json::Value> {
        let path = self.state.join(self.id.as_ref()?).join("state.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Waits for rt's end, then until nothing of it is left.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let deadline = Instant::now() + self.limit;
        let Some(status) = ended(&mut self.child, deadline) else {
            let seen = Processes::of(&self.key).to_string();
            self.kill_all();
            panic!("rt did not end within {:?}; there are {seen}\n{}", self.limit, self.report(None));
        };
        own().as_mut().unwrap().remove(&self.pid());
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let deadline = Instant::now() + patience(10);
        while self.readers.iter().any(|reader| !reader.ended()) {
            if Instant::now() > deadline {
                let seen = Processes::of(&self.key).to_string();
                panic!("rt ended, but its output stays open; there are {seen}\n{}", self.report(Some(code)));
            }
            thread::sleep(Duration::from_millis(2));
        }
        let found = leftovers::of(&self.key, &self.dir, &self.state, self.id.as_deref(), self.record_stays);
        if !found.is_empty() {
            self.kill_all();
            panic!("something is left: {}\n{}", found.join("; "), self.report(Some(code)));
        }
        self.ended(code)
    }

    fn ended(&self, code: i32) -> Ended {
        let mut streams = self.readers.iter().map(Reader::take);
        let (stdout, stderr) = (streams.next().unwrap_or_default(), streams.next().unwrap_or_default());
        Ended { command: self.shown.clone(), code, stdout, stderr, log: self.dir.join("log") }
    }

    fn report(&self, code: Option<i32>) -> String {
        self.ended(code.unwrap_or(-1)).to_string()
    }

    fn kill_all(&self) {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        Processes::of(&self.key).kill();
    }
}

impl Drop for Running {
    /// A test that failed in between leaves nothing either.
    fn drop(&mut self) {
        if thread::panicking() {
            self.kill_all();
            let _ = self.child.wait();
            own().as_mut().unwrap().remove(&self.pid());
        }
    }
}

/// Keeps `fd` open elsewhere.
pub(super) fn duplicate(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("a descriptor")
}
