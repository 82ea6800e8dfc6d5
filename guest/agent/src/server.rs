//! The agent's server: PID 1's first child, with threads.
//!
//! Owns the containers ([`crate::containers`]) and the streams that wait for their processes ([`crate::streams`]); asks PID 1
//! to make processes and is told of their ends over [`crate::link`]. Its calls are in [`crate::service`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::MsgFlags;
use rt_proto::messages as wire;
use rt_proto::service::create_agent;
use ttrpc::Code;
use ttrpc::error::get_rpc_status;

use crate::boot::Listeners;
use crate::containers::Container;
use crate::exec::{NOT_RUNNING, Order};
use crate::link::{self, Create, Event, Exec, Place, Request};
use crate::notify::Notify;
use crate::process::{Made, Process};
use crate::report::Started;
use crate::runner::{SPEC_FILE, STATE_DIR, bundle_dir};
use crate::seccomp::Filter;
use crate::service::Service;
use crate::streams::{self, Registry};
use crate::{cgroup, kmsg, spec, stdio, sys};

/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// Containers that are remembered for those who ask for a process of theirs.
const MAX_REMOVED: usize = 64;

/// What all calls and threads share.
pub struct Shared {
    pub started_ns: u64,
    pub ready_ns: u64,
    /// Held while the share is mounted: callers may come at once.
    pub greeting: Mutex<bool>,
    link: OwnedFd,
    pub streams: Arc<Registry>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// Removed ones of which processes were not asked for, the last at the end.
    removed: Mutex<Vec<Arc<Container>>>,
    /// The processes whose creation or end PID 1 has yet to report, by their number.
    pending: Mutex<BTreeMap<u64, Arc<Process>>>,
    sequence: AtomicU64,
}

/// Serves until PID 1 goes away or serving becomes impossible; returns why.
pub fn serve(listeners: Listeners, link: OwnedFd, started_ns: u64) -> String {
    sys::ignore_broken_pipes();
    // Each process has about ten descriptors here; the limit that containers are to inherit is too low for a hundred.
    sys::raise_file_limit();
    let shared = Arc::new(Shared {
        started_ns,
        ready_ns: sys::monotonic_ns(),
        greeting: Mutex::new(false),
        link,
        streams: Arc::default(),
        containers: Mutex::default(),
        removed: Mutex::default(),
        pending: Mutex::default(),
        sequence: AtomicU64::new(1),
    });
    // The listener is ttRPC's from here on. Its pool makes a new thread whenever all are busy: a call that blocks delays
    // no other one.
    let server = ttrpc::Server::new()
        .add_listener(listeners.agent.into_raw_fd())
        .map(|server| server.register_service(create_agent(Arc::new(Service(shared.clone())))))
        .map(|server| server.set_thread_count_min(1).set_thread_count_default(2).set_thread_count_max(4));
    let started = server.and_then(|mut server| server.start().map(|()| server));
    let _server = match started {
        Ok(server) => server,
        Err(error) => return format!("cannot serve the host: {error}"),
    };
    let registry = shared.streams.clone();
    let accepting = thread::Builder::new().name("streams".to_owned()).spawn(move || {
        let error = streams::accept_all(&listeners.streams, &registry);
        kmsg::error!("cannot accept streams any more: {error}");
        sys::exit_now(1)
    });
    if let Err(error) = accepting {
        return format!("cannot start a thread: {error}");
    }
    kmsg::debug!("serving");
    shared.hear()
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds one of them can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes PID 1's events in, until there is no PID 1 or no sense in them.
    fn hear(&self) -> String {
        loop {
            let (event, fds) = match link::receive::<Event>(self.link.as_fd(), MsgFlags::empty()) {
                Ok(Some(message)) => message,
                Ok(None) => return "PID 1 is gone".to_owned(),
                Err(error) => return format!("cannot hear PID 1: {error}"),
            };
            kmsg::debug!("{event:?}");
            let mut pending = lock(&self.pending);
            match event {
                Event::Created { sequence, pid, own_pid_namespace } => {
                    if let Some(process) = pending.get(&sequence) {
                        let terminal = fds.into_iter().next();
                        process.created(Ok(Made::new(pid, own_pid_namespace, terminal)));
                    }
                }
                Event::Failed { sequence, message } => {
                    if let Some(process) = pending.remove(&sequence) {
                        process.created(Err(message));
                    }
                }
                Event::Exited { sequence, code } => {
                    if let Some(process) = pending.remove(&sequence) {
                        process.exited(code);
                    }
                }
            }
        }
    }

    /// # Errors
    /// There is none.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, ttrpc::Error> {
        self.greeted()?;
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| get_rpc_status(Code::NOT_FOUND, format!("container {id} does not exist")))
    }

    /// A container whose first process has not ended.
    ///
    /// # Errors
    /// There is none, or it has.
    pub fn running(&self, id: &str) -> Result<Arc<Container>, ttrpc::Error> {
        let container = self.container(id)?;
        match container.process.is_running() {
            true => Ok(container),
            false => Err(get_rpc_status(Code::FAILED_PRECONDITION, NOT_RUNNING)),
        }
    }

    /// A process of a container; the empty name is its first one's.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>), ttrpc::Error> {
        let container = match self.container(id) {
            Err(error) => self.removed(id, exec_id).ok_or(error)?,
            Ok(container) => container,
        };
        let process = container.find(exec_id).ok_or_else(|| {
            let message = format!("process {exec_id} of container {id} does not exist");
            get_rpc_status(Code::NOT_FOUND, message)
        })?;
        Ok((container, process))
    }

    /// A container that was removed before it was asked how this process in it ended: whoever executed one may come later than whoever saw the
    /// container end by it.
    fn removed(&self, id: &str, exec_id: &str) -> Option<Arc<Container>> {
        let removed = lock(&self.removed);
        let mut alike = removed.iter().filter(|container| container.id == id && !exec_id.is_empty());
        alike.find(|container| container.find(exec_id).is_some()).cloned()
    }

    /// # Errors
    /// The host has not said hello.
    pub fn greeted(&self) -> Result<(), ttrpc::Error> {
        if *lock(&self.greeting) {
            return Ok(());
        }
        Err(get_rpc_status(Code::FAILED_PRECONDITION, "Hello must be the first call"))
    }

    /// A number that no process has had.
    fn number(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the container's process and connects its streams.
    ///
    /// # Errors
    /// For the user.
    pub fn make(
        &self,
        container: &Container,
        spec: &[u8],
        streams: &Names,
        size: (u32, u32),
        notify: u64,
    ) -> Result<i32, String> {
        let streams = self.take(streams)?;
        if notify != 0 {
            let stream = self.streams.take(notify).map_err(|error| error.to_string())?;
            let notify = Notify::start(&container.id, stream)
                .map_err(|error| format!("cannot make the socket for notifications: {error}"))?;
            *lock(&container.notify) = Some(notify);
        }
        let bundle = bundle_dir(&container.id);
        fs::create_dir_all(&bundle).map_err(|error| format!("cannot make {}: {error}", bundle.display()))?;
        let file = bundle.join(SPEC_FILE);
        fs::write(&file, spec).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        let mut ends = Ends::new(&streams)?;
        let startable = spec::has_start_hooks(spec);
        if startable {
            let (started, end) =
                Started::pair().map_err(|error| format!("cannot make a socket pair: {error}"))?;
            *lock(&container.started) = Some(started);
            ends.theirs.push(end);
        }
        let create = Create {
            sequence: container.process.sequence,
            container: container.id.clone(),
            startable,
            terminal: streams.terminal.as_ref().map(|_| size),
        };
        let pid = self.ask(&container.process, &Request::Create(create), Vec::new(), streams, ends)?;
        // For the others of its pod: see rt_proto::namespace_path.
        symlink(format!("/proc/{pid}/ns"), bundle.join("ns"))
            .map_err(|error| format!("cannot name the namespaces of {}: {error}", container.id))?;
        Ok(pid)
    }

    /// Does `kill` when the stream ends.
    ///
    /// # Errors
    /// For the user.
    pub fn tie(lifeline: Option<OwnedFd>, kill: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let Some(stream) = lifeline else { return Ok(()) };
        let watch = move || {
            // Nothing is ever said on it.
            let _ = File::from(stream).read(&mut [0]);
            kill();
        };
        let thread = thread::Builder::new().name("lifeline".to_owned()).stack_size(64 << 10);
        thread.spawn(watch).map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(())
    }

    /// Runs another process in a container and connects its streams.
    ///
    /// # Errors
    /// For the user.
    pub fn exec(
        &self,
        container: &Container,
        process: &Arc<Process>,
        request: &wire::ExecProcessRequest,
    ) -> Result<i32, String> {
        let (object, names) = parse_exec(request)?;
        if !container.process.is_running() {
            return Err(NOT_RUNNING.to_owned());
        }
        let cgroup = cgroup::below(&container.id, &request.cgroup)?;
        let common = container.common()?;
        let streams = self.take(&names)?;
        let ends = Ends::new(&streams)?;
        stdio::own(&ends.theirs, common.outside_user(object.user().uid()));
        let order = Order { process: object, personality: common.personality };
        let exec = Exec {
            sequence: process.sequence,
            place: Place::Container { sequence: container.process.sequence, namespaces: common.namespaces },
            cgroup,
            cgroup_named: !request.cgroup.is_empty(),
            terminal: names.size(request),
        };
        let order = write_order(&order, common.filter.as_ref())?;
        self.ask(process, &Request::Exec(exec), vec![order], streams, ends)
    }

    /// Runs a program of the host's beside the agent and connects its streams.
    ///
    /// # Errors
    /// For the user.
    pub fn debug(
        &self,
        _named_by: &Container,
        process: &Arc<Process>,
        request: &wire::ExecProcessRequest,
    ) -> Result<i32, String> {
        let (object, names) = parse_exec(request)?;
        let program = self.take_program(request.program)?;
        let streams = self.take(&names)?;
        let ends = Ends::new(&streams)?;
        let order = write_order(&Order { process: object, personality: None }, None)?;
        let exec = Exec {
            sequence: process.sequence,
            place: Place::Guest,
            cgroup: cgroup::ROOT.into(),
            cgroup_named: true,
            terminal: names.size(request),
        };
        self.ask(process, &Request::Exec(exec), vec![order, program], streams, ends)
    }

    /// Takes a program in, whole: a file in memory, gone with the last process that runs it.
    fn take_program(&self, stream: u64) -> Result<OwnedFd, String> {
        let stream = self.streams.take(stream).map_err(|error| error.to_string())?;
        let failed = |error: std::io::Error| format!("cannot take the program in: {error}");
        let file = memfd_create(c"program", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
        let mut file = File::from(file);
        let most = rt_proto::MAX_PROGRAM;
        let length = std::io::copy(&mut File::from(stream).take(most + 1), &mut file).map_err(failed)?;
        match length {
            0 => Err("the program is empty".to_owned()),
            length if length > most => Err(format!("the program is longer than {} MiB", most >> 20)),
            _ => Ok(file.into()),
        }
    }

    /// A container of this name that is to be made.
    ///
    /// # Errors
    /// It exists.
    pub fn add(&self, id: &str) -> Result<Arc<Container>, ttrpc::Error> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(id) {
            return Err(get_rpc_status(Code::ALREADY_EXISTS, format!("container {id} already exists")));
        }
        let container = Arc::new(Container::new(id.to_owned(), self.number()));
        containers.insert(id.to_owned(), container.clone());
        Ok(container)
    }

    /// A process of this name that is to be executed.
    ///
    /// # Errors
    /// The name is in use or unusable.
    pub fn add_exec(&self, container: &Container, exec_id: &str) -> Result<Arc<Process>, ttrpc::Error> {
        container
            .add(exec_id, self.number())
            .map_err(|message| get_rpc_status(Code::INVALID_ARGUMENT, message))
    }

    /// All containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// The stream of that number; none by the number 0.
    ///
    /// # Errors
    /// For the user.
    pub fn stream(&self, number: u64) -> Result<Option<OwnedFd>, String> {
        match number {
            0 => Ok(None),
            number => self.streams.take(number).map(Some).map_err(|error| error.to_string()),
        }
    }

    fn take(&self, names: &Names) -> Result<Streams, String> {
        let [input, output, error] = names.standard;
        Ok(Streams {
            terminal: self.stream(names.terminal)?,
            standard: [self.stream(input)?, self.stream(output)?, self.stream(error)?],
            preserved: self.take_preserved(&names.preserved)?,
        })
    }

    fn take_preserved(&self, wanted: &[wire::PreservedDescriptor]) -> Result<Vec<Preserved>, String> {
        // Three more may be the standard ones, two the order and the start's report.
        if wanted.len() > sys::MAX_DESCRIPTORS - 5 {
            return Err(format!("{} descriptors are too many to preserve", wanted.len()));
        }
        let take = |one: &wire::PreservedDescriptor| {
            let stream = self.stream(one.stream)?;
            Ok(Preserved { stream, readable: one.readable, writable: one.writable })
        };
        wanted.iter().map(take).collect()
    }

    /// Has PID 1 make a process, given `first` before the ends of its streams, then connects these.
    fn ask(
        &self,
        process: &Arc<Process>,
        request: &Request,
        first: Vec<OwnedFd>,
        streams: Streams,
        ends: Ends,
    ) -> Result<i32, String> {
        let sequence = process.sequence;
        lock(&self.pending).insert(sequence, process.clone());
        let fds: Vec<_> = first.iter().chain(&ends.theirs).map(AsRawFd::as_raw_fd).collect();
        if let Err(error) = link::transmit(self.link.as_fd(), request, &fds) {
            lock(&self.pending).remove(&sequence);
            return Err(format!("cannot ask PID 1: {error}"));
        }
        drop((first, ends.theirs));
        let (pid, master) = process.creation()?;
        connect(process, streams, ends.ours, ends.preserved, master)
            .map_err(|error| format!("cannot connect standard streams: {error}"))?;
        Ok(pid)
    }

    /// Ends what is left of a container and forgets it.
    ///
    /// # Errors
    /// For the user.
    pub fn remove(&self, container: &Container) -> Result<(), String> {
        let id = &container.id;
        cgroup::kill(id).map_err(|error| format!("cannot kill the processes of {id}: {error}"))?;
        // Also when it has left its cgroup, which a privileged process can.
        let _ = container.process.signal(libc::SIGKILL);
        if !container.process.gone_within(GONE) {
            return Err(format!("the process of {id} does not end"));
        }
        cgroup::remove(id).map_err(|error| format!("cannot remove the cgroup of {id}: {error}"))?;
        for directory in [Path::new(STATE_DIR).join(id), bundle_dir(id)] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {error}", directory.display()));
                }
                _ => {}
            }
        }
        *lock(&container.notify) = None;
        let container = lock(&self.containers).remove(id);
        let mut removed = lock(&self.removed);
        removed.extend(container);
        removed.retain(|container| !container.is_forgotten());
        let excess = removed.len().saturating_sub(MAX_REMOVED);
        removed.drain(..excess);
        Ok(())
    }
}

/// The numbers of a process's streams; 0 is none.
pub struct Names {
    pub terminal: u64,
    pub standard: [u64; 3],
    pub preserved: Vec<wire::PreservedDescriptor>,
}

/// A descriptor beyond the standard ones: what the process may do with it, and the host's end.
struct Preserved {
    stream: Option<OwnedFd>,
    readable: bool,
    writable: bool,
}

impl Names {
    /// Rows and columns of the terminal, if there is to be one.
    fn size(&self, request: &wire::ExecProcessRequest) -> Option<(u32, u32)> {
        (self.terminal != 0).then_some((request.terminal_rows, request.terminal_columns))
    }
}

/// What is to be executed, and the numbers of its streams.
fn parse_exec(request: &wire::ExecProcessRequest) -> Result<(oci_spec::runtime::Process, Names), String> {
    let object = spec::parse_process(&request.process)?;
    let names = Names {
        terminal: request.terminal,
        standard: [request.stdin, request.stdout, request.stderr],
        preserved: request.preserved.clone(),
    };
    if object.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("process args cannot be empty".to_owned());
    }
    if object.terminal().unwrap_or(false) != (names.terminal != 0) {
        return Err("process.terminal and the streams that the host offers do not agree".to_owned());
    }
    Ok((object, names))
}

fn write_order(order: &Order, filter: Option<&Filter>) -> Result<OwnedFd, String> {
    order.write(filter).map_err(|error| format!("cannot write down what to execute: {error}"))
}

/// The host's ends of a process's streams.
struct Streams {
    terminal: Option<OwnedFd>,
    standard: [Option<OwnedFd>; 3],
    preserved: Vec<Preserved>,
}

/// The ends of a process's streams: its own, and the agent's of those that the host has a stream for. With a terminal, none of
/// the standard ones.
struct Ends {
    theirs: Vec<OwnedFd>,
    ours: Vec<Option<OwnedFd>>,
    preserved: Vec<Option<OwnedFd>>,
}

impl Ends {
    fn new(streams: &Streams) -> Result<Self, String> {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        if streams.terminal.is_none() {
            for (number, stream) in streams.standard.iter().enumerate() {
                let (their, our) = standard_stream(stream.is_some(), number == 0)
                    .map_err(|error| format!("cannot make a pipe: {error}"))?;
                theirs.push(their);
                ours.push(our);
            }
        }
        let mut preserved = Vec::new();
        for one in &streams.preserved {
            let (their, our) = preserved_stream(one)
                .map_err(|error| format!("cannot make a preserved descriptor: {error}"))?;
            theirs.push(their);
            preserved.push(our);
        }
        Ok(Self { theirs, ours, preserved })
    }
}

/// A process's end of a standard stream, and the agent's: /dev/null and none where the host offers no stream.
fn standard_stream(wanted: bool, is_input: bool) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
    if !wanted {
        let null = File::options().read(is_input).write(!is_input).open("/dev/null")?;
        return Ok((null.into(), None));
    }
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok(if is_input { (read, Some(write)) } else { (write, Some(read)) })
}

fn preserved_stream(one: &Preserved) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
    match (&one.stream, one.readable, one.writable) {
        (Some(_), true, true) => {
            let (their, our) = UnixStream::pair()?;
            Ok((their.into(), Some(our.into())))
        }
        (Some(_), is_input, _) => standard_stream(true, is_input),
        (None, readable, writable) => {
            let null = File::options().read(readable || !writable).write(writable).open("/dev/null")?;
            Ok((null.into(), None))
        }
    }
}

/// Starts to move a process's bytes.
fn connect(
    process: &Arc<Process>,
    mut streams: Streams,
    pipes: Vec<Option<OwnedFd>>,
    preserved: Vec<Option<OwnedFd>>,
    master: Option<OwnedFd>,
) -> std::io::Result<()> {
    for (one, end) in std::mem::take(&mut streams.preserved).into_iter().zip(preserved) {
        match (one.stream, end) {
            (Some(stream), Some(end)) if one.readable && one.writable => {
                stdio::move_socket(end, stream, process.clone())?;
            }
            (Some(stream), Some(end)) if one.readable => stdio::move_input(stream, end)?,
            (Some(stream), Some(end)) => stdio::move_output(end, stream, process.clone())?,
            _ => {}
        }
    }
    if let (Some(stream), Some(master)) = (streams.terminal, master) {
        return stdio::move_terminal(master, stream, process.clone());
    }
    for (number, (stream, pipe)) in streams.standard.into_iter().zip(pipes).enumerate() {
        match (stream, pipe) {
            (Some(stream), Some(pipe)) if number == 0 => stdio::move_input(stream, pipe)?,
            (Some(stream), Some(pipe)) => stdio::move_output(pipe, stream, process.clone())?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_stream_there_is_dev_null() {
        let (_, ours) = standard_stream(false, true).expect("/dev/null");
        assert!(ours.is_none());
        let (_, ours) = standard_stream(true, false).expect("a pipe");
        assert!(ours.is_some());
    }
}
