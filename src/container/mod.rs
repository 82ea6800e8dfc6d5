//! One container, from request to exit code.
//!
//! A container on the host is its monitor: the process that owns the sandbox, pumps the standard streams, forwards
//! signals, and ends with the workload's exit code ([`carry`]). A foreground `rt run` is its own monitor; `rt create` starts one in a
//! process of its own ([`start_monitor`]). A shim is one process for a pod, in which a thread for each container has a [`Monitor`] and one for
//! each other process an [`Exec`]; all other verbs are the functions here.

mod block;
mod console;
pub mod debug;
mod exec;
mod flow;
mod follow;
pub mod gc;
mod hooks;
mod id;
mod lifecycle;
mod machine;
mod monitor;
mod network;
mod notify;
mod pod;
mod ports;
mod preserve;
mod record;
mod resolver;
mod signals;
mod state;
pub(crate) mod stats;
mod stdio;
mod task;
mod usage;
mod wait;
mod watch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use console::Console;
pub use exec::{Exec, ExecRequest, carry as exec};
pub use flow::{Flow, Patience};
pub use id::{InvalidId, generate, validate};
pub use lifecycle::{
    Machine, cgroup_files, console, delete, is_live, kill, list, live as agent, log, pause, processes,
    resume, start, stats, update, watch_oom,
};
pub use monitor::Monitor;
pub use preserve::{FIRST as FIRST_PRESERVED, Range as PreserveRange};
pub use record::{Error as StateError, Record, Status, Store};
pub use state::StateView;
pub use stats::Stats;
pub use stdio::{Ends, Streams};
pub use task::{
    MonitorProcess, PRESERVED as MONITORS_PRESERVED, Task, main as monitor_main, start as start_monitor,
};
pub use usage::{Guest as GuestUsage, Host as HostUsage, Usage, usage};

use crate::bundle;
use crate::cgroup;
use crate::config::{self, Config};
use crate::hypervisor;
use crate::net;
use crate::sandbox::{self, Timeline, TraceForm};
pub use signals::Signals;

/// The exit code of a process whose container or virtual machine ended under it: it was killed.
const KILLED: u8 = 128 + libc::SIGKILL as u8;

/// Why a container did not run, or a verb failed. Each message is complete with its source chain; wording that
/// callers search for is runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    Role(#[from] bundle::RoleError),
    #[error(
        "sandbox {0}, whose virtual machine the annotations say to join, does not exist: create it first, in the same --root"
    )]
    NoSandbox(String),
    #[error("cannot join sandbox {0}: it has stopped; delete it and create the pod anew")]
    SandboxStopped(String),
    #[error("cannot join sandbox {0}: it is still being created")]
    SandboxNotReady(String),
    #[error("cannot join {id}: it is a container of sandbox {sandbox} and has no virtual machine of its own")]
    NotASandbox { id: String, sandbox: String },
    #[error(
        "cannot join sandbox {sandbox}: the bundle names the network namespace {path}, which is another than the sandbox's, and a \
         virtual machine has one network for all of its containers; name the sandbox's or none, or run the container alone"
    )]
    OtherNetwork { path: PathBuf, sandbox: String },
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    State(#[from] record::Error),
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Agent(#[from] crate::agent::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Net(#[from] net::Error),
    #[error(transparent)]
    Network(#[from] sandbox::network::Error),
    #[error(transparent)]
    Preserve(#[from] preserve::Error),
    #[error(transparent)]
    Debug(#[from] debug::Error),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write the PID file {path}")]
    PidFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the pidfd socket {path}")]
    PidfdSocket {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the console socket {path}")]
    ConsoleSocket {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot execute: process.{name} {problem}")]
    Process { name: &'static str, problem: String },
    /// What a monitor in a process of its own reported; complete.
    #[error("{0}")]
    Monitor(String),
    #[error("the command that asked for this is gone")]
    Abandoned,
    /// A signal asked rt to end before the container's process ran.
    #[error("interrupted by signal {0} before the container started")]
    Interrupted(i32),
    #[error("cannot give the container the host's block device {}:{} for its {path}", .number.0, .number.1)]
    Disk {
        path: PathBuf,
        number: (i64, i64),
        #[source]
        source: std::io::Error,
    },
    #[error("the guest has {given} of {wanted} {what} in use; `rt logs` says why it takes no more")]
    NotGrown { what: &'static str, wanted: u32, given: u32 },
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot start an already running container")]
    AlreadyStarted,
    #[error("cannot start a container in the {0} state")]
    StartIn(Status),
    #[error("cannot start a container that has stopped")]
    Ended,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("cannot allocate tty if runc will detach without setting console socket")]
    DetachedTerminal,
    #[error("cannot use console socket if runc will not detach or allocate tty")]
    UselessConsoleSocket,
}

/// What `rt create` and `rt run` are asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub id: String,
    pub bundle: PathBuf,
    /// The directory of all state directories.
    pub root: PathBuf,
    /// linux.cgroupsPath has systemd's form.
    pub systemd_cgroup: bool,
    /// Goes on without the host's cgroups where they are not allowed.
    pub rootless: bool,
    /// Who gets the upper end of the container's terminal.
    pub console_socket: Option<PathBuf>,
    /// Where the service manager listens that is to hear of the container's process.
    pub notify_socket: Option<PathBuf>,
    /// The process's descriptors beyond the standard ones.
    pub preserve: preserve::Range,
    /// So many of them, the first, came by sd_listen_fds(3) and go on so.
    pub listen_fds: u32,
    /// The container is started as soon as it has been created.
    pub start: bool,
    /// The container's state stays when it has ended, until it is deleted.
    pub keep: bool,
    /// Where to write the timeline, in the form that the file's name says.
    pub trace: Option<PathBuf>,
    /// This process stands for other containers, too: it is a shim.
    pub shared_monitor: bool,
}

/// Carries a container: creates it, starts it if so asked, calls `up`, and gives the exit code of its process when that has
/// ended. This process is its monitor. After an error before `up` nothing of it is left.
///
/// # Errors
/// [`Error`]
pub fn carry(
    request: &Request,
    config: &Config,
    timeline: Timeline,
    up: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<u8, Error> {
    // Before any thread starts and before anything is acquired: from here on a signal is an event, not an end.
    let signals = Signals::block().map_err(system("block signals"))?;
    let mut monitor = Monitor::reserve(request, config, timeline)?;
    let result = carry_to_the_end(&mut monitor, request.start, signals, up);
    let removed = monitor.leave();
    monitor.timeline.mark("rt.cleaned-up");
    let code = result?;
    removed?;
    if let Some(trace) = &request.trace {
        let text = monitor.timeline.show(TraceForm::of(trace), &request.id);
        std::fs::write(trace, text).map_err(system("write the trace file"))?;
    }
    tracing::debug!(timeline = ?monitor.timeline.marks(), "done");
    Ok(code)
}

fn carry_to_the_end(
    monitor: &mut Monitor,
    start: bool,
    signals: Signals,
    up: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<u8, Error> {
    monitor.create(Streams::Own, Some(signals))?;
    if start {
        monitor.start()?;
    }
    monitor.keep_timeline();
    up()?;
    monitor.is_known();
    monitor.wait()
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System { what, source }
}
