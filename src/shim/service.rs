//! containerd's Task service: its words for what `container` does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::Task as TaskService;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::{self, Code, TtrpcContext, get_status};
use nix::sys::signal::Signal;

use super::events::Publisher;
use super::flags::Flags;
use super::process::{Exit, Handle, Phase, Process, Up, timestamp};
use super::rootfs::Rootfs;
use super::streams::Streams;
use super::{Error, metrics, options, states, store};
use crate::agent::Agent;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::container::{self, Ends, ExecRequest, Monitor, Request, StateError, Store};
use crate::log;
use crate::sandbox::Timeline;

/// How long the end of a container waits for the last news of its memory, which the guest may never send.
const LAST_NEWS: Duration = Duration::from_secs(2);
/// Between two questions for such news.
const BETWEEN_NEWS: Duration = Duration::from_millis(100);

/// The service of one shim.
pub struct Service {
    store: Store,
    root: PathBuf,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    pub events: Arc<Publisher>,
    stop: Mutex<Sender<()>>,
}

/// One container, from Create to Delete.
struct Container {
    id: String,
    bundle: PathBuf,
    config: Config,
    main: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    // Unmounted with the container.
    rootfs: Mutex<Option<Rootfs>>,
}

struct Exec {
    process: Arc<Process>,
    request: ExecRequest,
}

/// Who tells of a container's want of memory.
struct OomWatch {
    /// A connection of its own.
    agent: Agent,
    /// Ends with it.
    ended: Receiver<()>,
}

/// What the shim answers instead.
struct Refusal(Code, String);

impl Refusal {
    fn missing(what: &str, id: &str) -> Self {
        Self(Code::NOT_FOUND, format!("{what} {id} does not exist"))
    }

    fn ended() -> Self {
        // containerd looks for these words, too.
        Self(Code::NOT_FOUND, "process already finished".into())
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(Refusal(code, text): Refusal) -> Self {
        Self::RpcStatus(get_status(code, text))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Container(error) => error.into(),
            Error::Options(_) | Error::Config(_) => Self(Code::INVALID_ARGUMENT, log::chain(&error)),
            other => Self(Code::UNKNOWN, log::chain(&other)),
        }
    }
}

impl From<container::Error> for Refusal {
    fn from(error: container::Error) -> Self {
        use container::Error as Cause;
        let code = match &error {
            Cause::State(StateError::Missing(_)) => Code::NOT_FOUND,
            Cause::State(StateError::Exists(_)) => Code::ALREADY_EXISTS,
            Cause::Id(_) => Code::INVALID_ARGUMENT,
            Cause::NotRunning
            | Cause::NotPaused
            | Cause::AlreadyStarted
            | Cause::StartIn(_)
            | Cause::Ended
            | Cause::NotStopped { .. }
            | Cause::ExecStopped
            | Cause::ExecPaused => Code::FAILED_PRECONDITION,
            _ => Code::UNKNOWN,
        };
        Self(code, log::chain(&error))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Service {
    /// `stop` is told when containerd wants the shim to end and there is nothing left to serve.
    pub fn new(flags: &Flags, events: Publisher, stop: Sender<()>) -> Self {
        Self {
            store: store(&flags.namespace),
            root: states(&flags.namespace),
            containers: Mutex::default(),
            events: Arc::new(events),
            stop: Mutex::new(stop),
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Refusal> {
        lock(&self.containers).get(id).cloned().ok_or_else(|| Refusal::missing("container", id))
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, Refusal> {
        let container = self.container(id)?;
        match exec_id {
            "" => Ok(Arc::clone(&container.main)),
            _ => container.exec(exec_id).map(|exec| Arc::clone(&exec.process)),
        }
    }

    fn add(&self, request: &CreateTaskRequest) -> Result<u32, Refusal> {
        let id = &request.id;
        if lock(&self.containers).contains_key(id) {
            return Err(Refusal(Code::ALREADY_EXISTS, format!("container {id} exists already")));
        }
        if !request.checkpoint.is_empty() {
            let text = "cannot restore a checkpoint: a virtual machine is not CRIU's to save";
            return Err(Refusal(Code::UNIMPLEMENTED, text.into()));
        }
        let bundle = PathBuf::from(&request.bundle);
        let config = options::config(request.options.as_ref())?;
        let rootfs = Rootfs::mount(&bundle, &request.rootfs)?;
        let streams = Streams {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let container = Arc::new(Container {
            id: id.clone(),
            bundle,
            config,
            main: Process::new(id, "", streams),
            execs: Mutex::default(),
            rootfs: Mutex::new(Some(rootfs)),
        });
        let _order = container.main.order();
        let pid = self.create_in(&container).inspect_err(|_| {
            // What came up before it failed goes.
            let _ = container::delete(&self.store, &container.config, id, true);
        })?;
        lock(&self.containers).insert(id.clone(), Arc::clone(&container));
        self.events.publish(
            topics::TASK_CREATE_EVENT_TOPIC,
            &TaskCreate {
                container_id: id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(TaskIO {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                    ..Default::default()
                })
                .into(),
                pid,
                ..Default::default()
            },
        );
        Ok(pid)
    }

    fn create_in(&self, container: &Arc<Container>) -> Result<u32, Refusal> {
        let bundle = Bundle::load(&container.bundle).map_err(container::Error::from)?;
        let request = Request {
            id: container.id.clone(),
            bundle: container.bundle.clone(),
            root: self.root.clone(),
            systemd_cgroup: bundle.cgroups_path().is_some_and(is_systemds),
            rootless: false,
            console_socket: None,
            notify_socket: None,
            preserve: container::PreserveRange::default(),
            listen_fds: 0,
            start: false,
            keep: true,
            trace: None,
            shared_monitor: true,
        };
        let config = container.config.clone();
        let carry = move |ends: Ends, up: &mut Up| {
            let mut monitor = Monitor::reserve(&request, &config, Timeline::default())?;
            let result = carry_to_the_end(&mut monitor, &request.id, ends, up);
            let left = monitor.leave();
            let code = result?;
            left.map(|()| code)
        };
        let (events, id) = (Arc::clone(&self.events), container.id.clone());
        // Known once the container has come up; its end is told after.
        let oom: Arc<Mutex<Option<OomWatch>>> = Arc::default();
        let watcher = Arc::clone(&oom);
        let ended = move |exit: &Exit| {
            if let Some(OomWatch { agent, ended }) = lock(&watcher).take() {
                let _ = ended.recv_timeout(LAST_NEWS);
                agent.close();
            }
            tell_exit(&events, &id, &id, exit);
        };
        let pid = container.main.launch(carry, ended)?;
        *lock(&oom) = self.watch_oom(container);
        Ok(pid)
    }

    /// Tells of processes that the guest killed for want of memory, until the container ends; what it gives ends with that.
    fn watch_oom(&self, container: &Container) -> Option<OomWatch> {
        let (events, id) = (Arc::clone(&self.events), container.id.clone());
        let unwatched = |error: &dyn std::fmt::Display| {
            tracing::warn!("nobody watches the memory of {}: {error}", container.id)
        };
        let agent = container::agent(&self.store, &container.config, &id);
        let agent = agent.inspect_err(|error| unwatched(error)).ok()?;
        let own = agent.clone();
        let (until, ended) = mpsc::channel::<()>();
        let watch = move || {
            let _until = until;
            let mut seen = 0;
            while let Ok(news) = agent.watch_oom(&id, seen) {
                if news.kills > seen {
                    let event = TaskOOM { container_id: id.clone(), ..Default::default() };
                    events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
                }
                // A guest that counts backwards is not to be asked again and again.
                if news.ended || news.kills <= seen {
                    break;
                }
                seen = news.kills;
                // Nor one that counts as fast as it is asked.
                std::thread::sleep(BETWEEN_NEWS);
            }
        };
        let started = std::thread::Builder::new().name("oom".into()).spawn(watch);
        started.inspect_err(|error| unwatched(error)).ok()?;
        Some(OomWatch { agent: own, ended })
    }

    fn start_exec(&self, container: &Container, exec: &Exec) -> Result<u32, Refusal> {
        let process = &exec.process;
        let _order = process.order();
        if !matches!(process.phase(), Phase::Added) {
            return Err(Refusal(
                Code::FAILED_PRECONDITION,
                format!("exec {} was started already", process.exec_id),
            ));
        }
        let (request, config) = (exec.request.clone(), container.config.clone());
        let carry = move |ends: Ends, up: &mut Up| {
            let exec = container::Exec::start(&request, &config, container::Streams::Given(ends), None)?;
            let (agent, exec_id) = exec.handle();
            let (agent, exec_id, flow) = (agent.clone(), exec_id.to_owned(), exec.flow());
            up.up(Handle { agent, id: request.id.clone(), exec_id, flow });
            exec.wait()
        };
        let (events, id, exec_id) = (Arc::clone(&self.events), container.id.clone(), process.exec_id.clone());
        let ended = move |exit: &Exit| tell_exit(&events, &id, &exec_id, exit);
        let pid = process.launch(carry, ended)?;
        feed(process);
        self.events.publish(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            &TaskExecStarted {
                container_id: container.id.clone(),
                exec_id: process.exec_id.clone(),
                pid,
                ..Default::default()
            },
        );
        Ok(pid)
    }

    fn start_main(&self, container: &Container) -> Result<u32, Refusal> {
        let _order = container.main.order();
        let pid = match container.main.phase() {
            Phase::Up(pid) => pid,
            Phase::Added | Phase::Exited(_) => return Err(container::Error::Ended.into()),
        };
        container::start(&self.store, &container.config, &container.id)?;
        feed(&container.main);
        let event = TaskStart { container_id: container.id.clone(), pid, ..Default::default() };
        self.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
        Ok(pid)
    }

    fn signal(&self, request: &KillRequest) -> Result<(), Refusal> {
        let container = self.container(&request.id)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let signal = request.signal as i32;
        if signal == Signal::SIGKILL as i32 {
            self.expect_end(&container, &process);
        }
        let result = match (process.phase(), process.handle()) {
            (Phase::Exited(_), _) => return Err(Refusal::ended()),
            (Phase::Added, _) => {
                let text = format!("exec {} was not started yet", request.exec_id);
                return Err(Refusal(Code::FAILED_PRECONDITION, text));
            }
            (Phase::Up(_), Some(Handle { agent, id, exec_id, .. })) if !exec_id.is_empty() => {
                agent.signal_process(&id, &exec_id, signal, false).map_err(container::Error::from)
            }
            (Phase::Up(_), _) => {
                container::kill(&self.store, &container.config, &container.id, signal, request.all)
            }
        };
        match result {
            // It ended meanwhile.
            Err(container::Error::NotRunning) => Err(Refusal::ended()),
            other => Ok(other?),
        }
    }

    /// It is killed: a guest that does not end it is not waited for. An exec is cut off from its guest, and with that over for
    /// the host; a container's own process takes the machine along.
    fn expect_end(&self, container: &Container, process: &Arc<Process>) {
        let Some(handle) = process.handle() else { return };
        let machine = match container::Machine::of(&self.store, &container.config, &container.id) {
            Ok(machine) => machine,
            // It has ended.
            Err(_) => return,
        };
        let (id, limit) = (container.id.clone(), machine.limit);
        let end = move || {
            if !handle.exec_id.is_empty() {
                handle.agent.close();
            } else if let Err(error) = machine.end() {
                tracing::error!("the machine of {id} cannot be ended: {}", log::chain(&error));
            }
        };
        if let Err(error) = process.expect_end(limit, end) {
            tracing::warn!("nobody watches the end of {}: {error}", container.id);
        }
    }

    fn delete_exec(&self, container: &Container, exec_id: &str) -> Result<Exit, Refusal> {
        let exec = container.exec(exec_id)?;
        let order = exec.process.order();
        let exit = match exec.process.phase() {
            Phase::Exited(exit) => exit,
            Phase::Added => {
                let exit = Exit { pid: 0, code: 0, at: SystemTime::now() };
                exec.process.leave(exit);
                exit
            }
            Phase::Up(_) => {
                return Err(Refusal(Code::FAILED_PRECONDITION, format!("exec {exec_id} is still running")));
            }
        };
        drop(order);
        lock(&container.execs).remove(exec_id);
        Ok(exit)
    }

    fn delete_main(&self, container: &Container) -> Result<Exit, Refusal> {
        // The end has been told by then, if there was one.
        drop(container.main.order());
        if !matches!(container.main.phase(), Phase::Exited(_)) {
            if self.status(container) == Status::CREATED {
                self.expect_end(container, &container.main);
            }
            // Refuses one that runs, ends one that never did.
            container::delete(&self.store, &container.config, &container.id, false)?;
        }
        let exit = container.main.wait();
        container::delete(&self.store, &container.config, &container.id, true)?;
        drop(lock(&container.rootfs).take());
        lock(&self.containers).remove(&container.id);
        self.events.publish(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: container.id.clone(),
                pid: exit.pid,
                exit_status: exit.code,
                exited_at: Some(timestamp(exit.at)).into(),
                ..Default::default()
            },
        );
        Ok(exit)
    }

    fn status(&self, container: &Container) -> Status {
        let record = self.store.read(&container.id).map(|record| record.status());
        match record {
            Ok(container::Status::Creating | container::Status::Created) => Status::CREATED,
            Ok(container::Status::Paused) => Status::PAUSED,
            // Whether it has ended is what its monitor's end says: the exit code comes with it.
            Ok(container::Status::Running | container::Status::Stopped) | Err(_) => Status::RUNNING,
        }
    }

    fn add_exec(&self, request: ExecProcessRequest) -> Result<(), Refusal> {
        let container = self.container(&request.id)?;
        if matches!(container.main.phase(), Phase::Exited(_)) {
            return Err(container::Error::ExecStopped.into());
        }
        let spec = request.spec.as_ref().map_or(&[][..], |spec| spec.value.as_slice());
        let spec = serde_json::from_slice(spec).map_err(|error| {
            Refusal(Code::INVALID_ARGUMENT, format!("the exec's process is not a process object: {error}"))
        })?;
        let exec_request = ExecRequest {
            program: None,
            id: request.id.clone(),
            root: self.root.clone(),
            process: spec,
            console_socket: None,
            preserve: container::PreserveRange::default(),
            cgroup: String::new(),
            ignore_paused: false,
            detached: false,
        };
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Process::new(&request.id, &request.exec_id, streams);
        {
            let mut execs = lock(&container.execs);
            if request.exec_id.is_empty() || execs.contains_key(&request.exec_id) {
                let text = format!("exec {:?} exists already", request.exec_id);
                return Err(Refusal(Code::ALREADY_EXISTS, text));
            }
            execs.insert(request.exec_id.clone(), Arc::new(Exec { process, request: exec_request }));
        }
        self.events.publish(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded { container_id: request.id, exec_id: request.exec_id, ..Default::default() },
        );
        Ok(())
    }

    fn state_of(&self, request: &StateRequest) -> Result<StateResponse, Refusal> {
        let container = self.container(&request.id)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let mut state = StateResponse {
            id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            bundle: container.bundle.display().to_string(),
            stdin: process.streams.stdin.clone(),
            stdout: process.streams.stdout.clone(),
            stderr: process.streams.stderr.clone(),
            terminal: process.streams.terminal,
            ..Default::default()
        };
        let status = match process.phase() {
            Phase::Added => Status::CREATED,
            Phase::Up(pid) => {
                state.pid = pid;
                if request.exec_id.is_empty() { self.status(&container) } else { Status::RUNNING }
            }
            Phase::Exited(exit) => {
                state.pid = exit.pid;
                state.exit_status = exit.code;
                state.exited_at = Some(timestamp(exit.at)).into();
                Status::STOPPED
            }
        };
        state.status = status.into();
        Ok(state)
    }

    fn update_limits(&self, request: &UpdateTaskRequest) -> Result<(), Refusal> {
        let container = self.container(&request.id)?;
        let resources = request.resources.as_ref().map_or(&[][..], |resources| resources.value.as_slice());
        let resources = serde_json::from_slice(resources).map_err(|error| {
            Refusal(Code::INVALID_ARGUMENT, format!("the limits are not a resources object: {error}"))
        })?;
        Ok(container::update(&self.store, &container.config, &container.id, &resources)?)
    }

    fn metrics(&self, id: &str) -> Result<Any, Refusal> {
        let container = self.container(id)?;
        let files = container::cgroup_files(&self.store, &container.config, id)?;
        let value = metrics::from_cgroup(&files).write_to_bytes();
        let value = value.map_err(|error| Refusal(Code::INTERNAL, error.to_string()))?;
        Ok(Any { type_url: metrics::TYPE_URL.into(), value, ..Default::default() })
    }
}

impl Container {
    fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, Refusal> {
        lock(&self.execs).get(exec_id).cloned().ok_or_else(|| Refusal::missing("exec", exec_id))
    }
}

fn carry_to_the_end(
    monitor: &mut Monitor,
    id: &str,
    ends: Ends,
    up: &mut Up,
) -> Result<u8, container::Error> {
    monitor.create(container::Streams::Given(ends), None)?;
    monitor.keep_timeline();
    monitor.is_known();
    let (agent, flow) = (monitor.agent()?.clone(), monitor.flow()?);
    up.up(Handle { agent, id: id.into(), exec_id: String::new(), flow });
    monitor.wait()
}

/// A process that runs already goes on without an input that cannot be had.
fn feed(process: &Process) {
    if let Err(error) = process.feed() {
        tracing::error!("{}", log::chain(&error));
    }
}

fn tell_exit(events: &Publisher, container: &str, id: &str, exit: &Exit) {
    events.publish(
        topics::TASK_EXIT_EVENT_TOPIC,
        &TaskExit {
            container_id: container.into(),
            id: id.into(),
            pid: exit.pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        },
    );
}

/// Whether a cgroup's path has systemd's form, `SLICE:PREFIX:NAME`: containerd says it by nothing else.
fn is_systemds(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let mut parts = text.split(':');
    let slice = parts.next().unwrap_or_default();
    !slice.contains('/') && (slice.is_empty() || slice.ends_with(".slice")) && parts.count() == 2
}

impl TaskService for Service {
    fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let pid = self.add(&request)?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let container = self.container(&request.id)?;
        let pid = match request.exec_id.as_str() {
            "" => self.start_main(&container)?,
            exec_id => self.start_exec(&container, &*container.exec(exec_id)?)?,
        };
        Ok(StartResponse { pid, ..Default::default() })
    }

    fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        let exit = match request.exec_id.as_str() {
            "" => self.delete_main(&container)?,
            exec_id => self.delete_exec(&container, exec_id)?,
        };
        Ok(DeleteResponse {
            pid: exit.pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.add_exec(request)?;
        Ok(Empty::new())
    }

    fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        // One that does not run has no terminal yet, or any more.
        if let Some(Handle { agent, id, exec_id, .. }) = process.handle().filter(|_| process.streams.terminal)
        {
            let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
            agent
                .resize_terminal(&id, &exec_id, clamp(request.height), clamp(request.width))
                .map_err(|error| Refusal::from(container::Error::from(error)))?;
        }
        Ok(Empty::new())
    }

    fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(self.state_of(&request)?)
    }

    fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container::pause(&self.store, &container.config, &request.id).map_err(Refusal::from)?;
        let event = TaskPaused { container_id: request.id, ..Default::default() };
        self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container::resume(&self.store, &container.config, &request.id).map_err(Refusal::from)?;
        let event = TaskResumed { container_id: request.id, ..Default::default() };
        self.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.signal(&request)?;
        Ok(Empty::new())
    }

    fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let processes = container::processes(&self.store, &container.config, &request.id);
        let processes = processes.map_err(Refusal::from)?.into_iter();
        // As `rt ps` tells them: the guest's numbers.
        let processes = processes.map(|process| ProcessInfo { pid: process.pid, ..Default::default() });
        Ok(PidsResponse { processes: processes.collect(), ..Default::default() })
    }

    fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        self.update_limits(&request)?;
        Ok(Empty::new())
    }

    fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.process(&request.id, &request.exec_id)?.wait();
        let exited_at = Some(timestamp(exit.at)).into();
        Ok(WaitResponse { exit_status: exit.code, exited_at, ..Default::default() })
    }

    fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self.metrics(&request.id)?;
        Ok(StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }

    fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = match self.container(&request.id)?.main.phase() {
            Phase::Up(pid) => pid,
            Phase::Exited(exit) => exit.pid,
            Phase::Added => 0,
        };
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // Other containers of the pod still want it.
        if lock(&self.containers).is_empty() {
            let _ = lock(&self.stop).send(());
        }
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_form_is_told_from_a_path() {
        for path in ["a.slice:cri-containerd:x", ":rt:x"] {
            assert!(is_systemds(Path::new(path)), "{path}");
        }
        for path in ["/kubepods/x", "/a:b:c", "a:b:c", "a.slice:b", "k8s.io"] {
            assert!(!is_systemds(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn refusals_have_the_codes_that_containerd_acts_on() {
        let code = |error: container::Error| Refusal::from(error).0;
        assert_eq!(code(StateError::Missing("a".into()).into()), Code::NOT_FOUND);
        assert_eq!(code(StateError::Exists("a".into()).into()), Code::ALREADY_EXISTS);
        assert_eq!(code(container::Error::NotPaused), Code::FAILED_PRECONDITION);
        assert_eq!(code(container::Error::Monitor("x".into())), Code::UNKNOWN);
    }
}
