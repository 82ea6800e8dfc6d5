//! The agent's calls (guest/proto/agent.proto), served with threads in PID 1's first child.
//!
//! Owns the containers ([`crate::containers`]) and the streams that wait for them ([`crate::streams`]); asks PID 1 to make
//! processes and is told of their ends over [`crate::link`]. The caller is the host, which is trusted; its mistakes are errors all
//! the same, never panics.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::MsgFlags;
use rt_proto::messages as wire;
use rt_proto::service::{Agent, create_agent};
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, TtrpcContext};

use crate::boot::Listeners;
use crate::containers::{Container, Process};
use crate::link::{self, Create, Event, Request};
use crate::runner::{SPEC_FILE, STATE_DIR, bundle_dir};
use crate::streams::{self, Registry};
use crate::{cgroup, kmsg, share, stdio, sys};

/// Longest container ID: it names directories.
const MAX_ID: usize = 255;
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What all calls and threads share.
struct Shared {
    started_ns: u64,
    ready_ns: u64,
    /// Held while the share is mounted: callers may come at once.
    greeted: Mutex<bool>,
    link: OwnedFd,
    streams: Arc<Registry>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// The containers whose creation or end PID 1 has yet to report, by the creation's number.
    pending: Mutex<BTreeMap<u64, Arc<Container>>>,
    sequence: AtomicU64,
}

struct Service(Arc<Shared>);

/// Serves until PID 1 goes away or serving becomes impossible; returns why.
pub fn serve(listeners: Listeners, link: OwnedFd, started_ns: u64) -> String {
    sys::ignore_broken_pipes();
    let shared = Arc::new(Shared {
        started_ns,
        ready_ns: sys::monotonic_ns(),
        greeted: Mutex::new(false),
        link,
        streams: Arc::default(),
        containers: Mutex::default(),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
                    if let Some(container) = pending.get(&sequence) {
                        let terminal = fds.into_iter().next();
                        container.created(Ok(Process::new(pid, own_pid_namespace, terminal)));
                    }
                }
                Event::Failed { sequence, message } => {
                    if let Some(container) = pending.remove(&sequence) {
                        container.created(Err(message));
                    }
                }
                Event::Exited { sequence, code } => {
                    if let Some(container) = pending.remove(&sequence) {
                        container.exited(code);
                    }
                }
            }
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, ttrpc::Error> {
        self.greeted()?;
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| get_rpc_status(Code::NOT_FOUND, format!("container {id} does not exist")))
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Container>, ttrpc::Error> {
        if exec_id.is_empty() {
            return self.container(id);
        }
        let message = format!("process {exec_id} of container {id} does not exist");
        Err(get_rpc_status(Code::NOT_FOUND, message))
    }

    fn greeted(&self) -> Result<(), ttrpc::Error> {
        if *lock(&self.greeted) {
            return Ok(());
        }
        Err(get_rpc_status(Code::FAILED_PRECONDITION, "Hello must be the first call"))
    }

    /// Makes the container's process and connects its streams.
    fn make(
        &self,
        container: &Arc<Container>,
        request: &wire::CreateContainerRequest,
    ) -> Result<i32, String> {
        let stream = |number: u64| match number {
            0 => Ok(None),
            number => self.streams.take(number).map(Some).map_err(|error| error.to_string()),
        };
        let terminal = stream(request.terminal)?;
        let (input, output, error) =
            (stream(request.stdin)?, stream(request.stdout)?, stream(request.stderr)?);
        let bundle = bundle_dir(&container.id);
        fs::create_dir_all(&bundle).map_err(|error| format!("cannot make {}: {error}", bundle.display()))?;
        let file = bundle.join(SPEC_FILE);
        fs::write(&file, &request.spec)
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;

        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        if terminal.is_none() {
            for (stream, is_input) in [(&input, true), (&output, false), (&error, false)] {
                let (their, our) = standard_stream(stream.is_some(), is_input)
                    .map_err(|error| format!("cannot make a pipe: {error}"))?;
                theirs.push(their);
                ours.push(our);
            }
        }
        let create = Create {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            container: container.id.clone(),
            terminal: terminal.as_ref().map(|_| (request.terminal_rows, request.terminal_columns)),
        };
        let sequence = create.sequence;
        lock(&self.pending).insert(sequence, container.clone());
        let fds: Vec<_> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        if let Err(error) = link::transmit(self.link.as_fd(), &Request::Create(create), &fds) {
            lock(&self.pending).remove(&sequence);
            return Err(format!("cannot ask PID 1: {error}"));
        }
        drop(theirs);
        let (pid, master) = container.creation()?;

        let mut ours = ours.into_iter().flatten();
        let connected =
            match (terminal, master) {
                (Some(stream), Some(master)) => stdio::move_terminal(master, stream, container.clone()),
                _ => input
                    .and_then(|stream| Some((stream, ours.next()?)))
                    .map_or(Ok(()), |(stream, pipe)| stdio::move_input(stream, pipe))
                    .and_then(|()| {
                        [output, error].into_iter().flatten().zip(ours).try_for_each(|(stream, pipe)| {
                            stdio::move_output(pipe, stream, container.clone())
                        })
                    }),
            };
        connected.map_err(|error| format!("cannot connect standard streams: {error}"))?;
        Ok(pid)
    }

    /// Ends what is left of a container and forgets it.
    fn remove(&self, container: &Container) -> Result<(), String> {
        let id = &container.id;
        cgroup::kill(id).map_err(|error| format!("cannot kill the processes of {id}: {error}"))?;
        // Also when it has left its cgroup, which a privileged process can.
        let _ = container.signal(libc::SIGKILL);
        if !container.gone_within(GONE) {
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
        lock(&self.containers).remove(id);
        Ok(())
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

impl Agent for Service {
    fn hello(&self, _: &TtrpcContext, request: wire::HelloRequest) -> ttrpc::Result<wire::HelloResponse> {
        if request.version != rt_proto::PROTOCOL_VERSION {
            return Err(get_rpc_status(Code::FAILED_PRECONDITION, version_mismatch(request.version)));
        }
        // Each part but the share is the better for being there, not needed.
        if request.realtime_ns > 0
            && let Err(error) = sys::set_realtime(request.realtime_ns)
        {
            kmsg::warning!("cannot set the clock: {error}");
        }
        if !request.entropy.is_empty()
            && let Err(error) = sys::add_entropy(&request.entropy[..request.entropy.len().min(512)])
        {
            kmsg::warning!("cannot seed the random pool: {error}");
        }
        if !request.hostname.is_empty()
            && let Err(error) = nix::unistd::sethostname(&request.hostname)
        {
            kmsg::warning!("cannot set the hostname: {error}");
        }
        let mut greeted = lock(&self.0.greeted);
        if !*greeted && !request.share_tag.is_empty() {
            share::mount(&request.share_tag)
                .map_err(|message| get_rpc_status(Code::FAILED_PRECONDITION, message))?;
        }
        *greeted = true;
        drop(greeted);
        let mut response = wire::HelloResponse::new();
        response.version = rt_proto::PROTOCOL_VERSION;
        response.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        response.kernel_release = kernel_release();
        response.init_ns = self.0.started_ns;
        response.ready_ns = self.0.ready_ns;
        Ok(response)
    }

    fn create_container(
        &self,
        _: &TtrpcContext,
        request: wire::CreateContainerRequest,
    ) -> ttrpc::Result<wire::CreateContainerResponse> {
        self.0.greeted()?;
        check_id(&request.container_id).map_err(|message| get_rpc_status(Code::INVALID_ARGUMENT, message))?;
        let container = Arc::new(Container::new(request.container_id.clone()));
        {
            let mut containers = lock(&self.0.containers);
            if containers.contains_key(&container.id) {
                let message = format!("container {} already exists", container.id);
                return Err(get_rpc_status(Code::ALREADY_EXISTS, message));
            }
            containers.insert(container.id.clone(), container.clone());
        }
        match self.0.make(&container, &request) {
            Ok(pid) => {
                let mut response = wire::CreateContainerResponse::new();
                response.pid = pid.unsigned_abs();
                Ok(response)
            }
            Err(message) => {
                container.created(Err(message.clone()));
                if let Err(left) = self.0.remove(&container) {
                    kmsg::warning!("after a failed creation: {left}");
                }
                Err(get_rpc_status(Code::INVALID_ARGUMENT, message))
            }
        }
    }

    fn start_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.container(&request.container_id)?;
        let refused = |why: &dyn std::fmt::Display| {
            let message = format!("cannot start container {}: {why}", container.id);
            get_rpc_status(Code::FAILED_PRECONDITION, message)
        };
        container.claim_start().map_err(|why| refused(&why))?;
        release(&container.id).map_err(|error| refused(&error))?;
        Ok(wire::Empty::new())
    }

    fn wait_process(
        &self,
        _: &TtrpcContext,
        request: wire::ProcessRequest,
    ) -> ttrpc::Result<wire::WaitProcessResponse> {
        let container = self.0.process(&request.container_id, &request.exec_id)?;
        let mut response = wire::WaitProcessResponse::new();
        response.exit_code = container.ended();
        Ok(response)
    }

    fn signal_process(
        &self,
        _: &TtrpcContext,
        request: wire::SignalProcessRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.process(&request.container_id, &request.exec_id)?;
        // 0 asks whether the process is there; the last real-time signal is 64.
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal.ok_or_else(|| {
            get_rpc_status(Code::INVALID_ARGUMENT, format!("{} is not a signal", request.signal))
        })?;
        let sent = if request.all {
            signal_all(&container, signal)
        } else {
            container.signal(signal).map_err(Into::into)
        };
        sent.map(|()| wire::Empty::new()).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => {
                get_rpc_status(Code::NOT_FOUND, format!("container {} is not running", container.id))
            }
            _ => get_rpc_status(Code::INTERNAL, format!("cannot signal container {}: {error}", container.id)),
        })
    }

    fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: wire::ResizeTerminalRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.process(&request.container_id, &request.exec_id)?;
        container.resize(request.rows, request.columns).map_err(|error| {
            let message =
                format!("cannot resize the terminal of container {}: {}", container.id, error.desc());
            get_rpc_status(Code::FAILED_PRECONDITION, message)
        })?;
        Ok(wire::Empty::new())
    }

    fn delete_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.container(&request.container_id)?;
        self.0.remove(&container).map_err(|message| get_rpc_status(Code::INTERNAL, message))?;
        Ok(wire::Empty::new())
    }

    fn shutdown(&self, _: &TtrpcContext, _: wire::Empty) -> ttrpc::Result<wire::Empty> {
        let containers: Vec<_> = lock(&self.0.containers).values().cloned().collect();
        for container in containers {
            if let Err(left) = self.0.remove(&container) {
                kmsg::warning!("at shutdown: {left}");
            }
        }
        share::unmount().map_err(|message| get_rpc_status(Code::INTERNAL, message))?;
        Ok(wire::Empty::new())
    }
}

fn version_mismatch(host: u32) -> String {
    format!(
        "the host speaks version {host} of the agent's protocol, this agent (rt {}) version {}: use a guest image built \
         together with rt",
        env!("CARGO_PKG_VERSION"),
        rt_proto::PROTOCOL_VERSION
    )
}

/// An ID names directories and a cgroup.
fn check_id(id: &str) -> Result<(), String> {
    let is_name = !id.is_empty() && id.len() <= MAX_ID && id != "." && id != "..";
    if is_name && !id.bytes().any(|byte| byte == b'/' || byte == 0 || byte == b'\n') {
        return Ok(());
    }
    Err(format!("{id:?} is not a usable container ID"))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Lets a created container run: its first process waits for a connection to libcontainer's socket.
fn release(id: &str) -> std::io::Result<()> {
    // By the directory's descriptor, since a socket's path holds no more than 107 bytes.
    let directory = File::open(Path::new(STATE_DIR).join(id))?;
    let path =
        format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), libcontainer::notify_socket::NOTIFY_FILE);
    UnixStream::connect(path)?.write_all(b"start container")
}

/// Signals every process of the container. SIGKILL is the kernel's to spread; for others the container stands still
/// meanwhile, so that no process escapes by forking.
fn signal_all(container: &Container, signal: i32) -> std::io::Result<()> {
    let id = &container.id;
    if signal == libc::SIGKILL {
        return cgroup::kill(id);
    }
    let _ = cgroup::freeze(id, true);
    let processes = cgroup::processes(id);
    for pid in processes.iter().flatten() {
        let pid = nix::unistd::Pid::from_raw(*pid);
        // Every number, not only those that have a name in nix.
        if let Ok(pidfd) = sys::pidfd_open(pid.as_raw()) {
            let _ = sys::pidfd_signal(pidfd.as_fd(), signal);
        }
    }
    cgroup::freeze(id, false)?;
    match processes {
        Ok(processes) if processes.is_empty() => Err(Errno::ESRCH.into()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_file_name() {
        for good in ["a", "a.b-c_d", "...", &"x".repeat(255)] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mismatch_names_both_versions() {
        let text = version_mismatch(9);
        assert!(
            text.contains("version 9") && text.contains("version 1") && text.contains("use a guest image")
        );
    }

    #[test]
    fn without_a_stream_there_is_dev_null() {
        let (_, ours) = standard_stream(false, true).expect("/dev/null");
        assert!(ours.is_none());
        let (_, ours) = standard_stream(true, false).expect("a pipe");
        assert!(ours.is_some());
    }
}
