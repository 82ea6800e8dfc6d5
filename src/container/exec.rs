//! Another process in a running container, `rt exec`, or beside the agent, `rt debug`.
//!
//! In the foreground this process pumps its streams and forwards signals, as for a container; detached, a monitor of its own
//! does.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use super::console::Console;
use super::flow::Flow;
use super::record::{Status, Store};
use super::signals::Signals;
use super::stdio::{Pumps, Stdio, Streams};
use super::{Error, KILLED, debug, lifecycle, preserve, system, wait};
use crate::agent::{self, Agent};
use crate::bundle::process_problem;
use crate::cgroup;
use crate::config::Config;
use crate::sys::random;

/// What `rt exec` is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's ID.
    pub id: String,
    /// The directory of all state directories.
    pub root: PathBuf,
    /// Complete: what is absent is not taken from the container.
    pub process: Process,
    /// A static executable of the host: it runs beside the agent, not in the container.
    pub program: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    /// A cgroup below the container's.
    pub cgroup: String,
    pub ignore_paused: bool,
    /// This process stands for the other one only, and so counts as the container's on the host, too.
    pub detached: bool,
    /// The process's descriptors beyond the standard ones.
    pub preserve: preserve::Range,
}

/// A process that was executed in a container.
pub struct Exec {
    agent: Agent,
    id: String,
    exec_id: String,
    pumps: Pumps,
    /// For its streams to end.
    limit: Duration,
    /// The process ends with this one, whatever ends it.
    _lifeline: UnixStream,
}

impl Exec {
    /// Executes the process; returns when it runs. With `signals`, those that come to this process are its from now on.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(
        request: &ExecRequest,
        config: &Config,
        streams: Streams,
        signals: Option<Signals>,
    ) -> Result<Self, Error> {
        let record = Store::new(request.root.clone()).read(&request.id)?;
        match record.status() {
            Status::Stopped if request.program.is_some() => return Err(Error::NotRunning),
            Status::Stopped => return Err(Error::ExecStopped),
            Status::Paused if !request.ignore_paused => return Err(Error::ExecPaused),
            _ => {}
        }
        if let Some((name, problem)) = process_problem(&request.process) {
            return Err(Error::Process { name, problem });
        }
        let vm = record.vm.as_ref().ok_or(Error::ExecStopped)?;
        if request.detached {
            cgroup::join(&record.cgroups)?;
        }
        let agent = Agent::connect(&vm.vsock, lifecycle::patience(vm, config))?;
        let terminal = request.process.terminal().unwrap_or(false);
        let size = request.process.console_size();
        let (console, ends) = streams.open(terminal, request.console_socket.as_deref(), size)?;
        let lifeline = random::non_zero().map_err(system("make a stream's name"))?;
        let opening = agent.begin_stream(lifeline)?;
        let (stdio, mut names) = Stdio::open(&agent, terminal, ends)?;
        names.lifeline = lifeline;
        let lifeline = opening.finish()?;
        let moving = preserve::open(request.preserve.take()?, &agent, &mut names)?;
        if let Some(program) = &request.program {
            names.program = debug::lend(program, &agent)?;
        }
        let exec_id = format!("{:016x}", random::non_zero().map_err(system("make an ID"))?);
        let process = serde_json::to_vec(&request.process).expect("a process has only string keys");
        let size = console.as_ref().and_then(Console::size);
        let calling = match record.status() {
            // It is frozen at its first instruction, until the container is resumed.
            Status::Paused if request.program.is_none() => agent.patient(),
            _ => agent.clone(),
        };
        calling.exec_process(&request.id, &exec_id, process, names, size, &request.cgroup)?;
        if let Some(signals) = signals {
            let watch = signals.watch_process(&agent, &request.id, &exec_id, console);
            watch.map_err(system("watch signals"))?;
        }
        let mut pumps = stdio.start().map_err(system("start the standard streams"))?;
        moving.start(&mut pumps).map_err(system("start the preserved descriptors' streams"))?;
        let limit = lifecycle::end_limit(vm, config);
        Ok(Self { agent, id: request.id.clone(), exec_id, pumps, limit, _lifeline: lifeline })
    }

    /// The agent of the container's machine, and the name by which it knows the process.
    pub fn handle(&self) -> (&Agent, &str) {
        (&self.agent, &self.exec_id)
    }

    /// What it writes.
    pub fn flow(&self) -> Arc<Flow> {
        self.pumps.flow()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// What the agent says.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        Ok(self.agent.signal_process(&self.id, &self.exec_id, signal, false)?)
    }

    /// Waits for its end and that of its output: its exit code.
    ///
    /// # Errors
    /// [`Error`]
    pub fn wait(self) -> Result<u8, Error> {
        let exit = wait::for_exit(&self.agent, &self.id, &self.exec_id, &[]);
        self.pumps.flow().tell();
        self.pumps.finish(self.limit);
        match exit {
            Ok(exit) => Ok(exit.code),
            // The sandbox's end closes the connection.
            Err(Error::Agent(agent::Error::Transport { call, reason })) => {
                tracing::info!("the virtual machine ended in {call}: {reason}");
                Ok(KILLED)
            }
            Err(error) => Err(error),
        }
    }
}

/// Runs the process, calls `up` once it has been executed, and gives its exit code.
///
/// # Errors
/// [`Error`]
pub fn carry(
    request: &ExecRequest,
    config: &Config,
    up: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<u8, Error> {
    let signals = Signals::block().map_err(system("block signals"))?;
    let exec = Exec::start(request, config, Streams::Own, Some(signals))?;
    if let Err(error) = up() {
        let _ = exec.signal(libc::SIGKILL);
        return Err(error);
    }
    exec.wait()
}
