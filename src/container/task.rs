//! A monitor in a process of its own, for containers and processes that outlive the command that made them.
//!
//! The command starts `rt monitor ID` in a session of its own, with its own standard streams as the container's, hands it a
//! [`Task`] in a memory file, and waits for one line on a pipe: done, or an error's text. Then the command
//! ends; the monitor goes to the nearest subreaper and ends with the exit code of the process it stands for.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::exec::{self, ExecRequest};
use super::preserve::{self, Range};
use super::{Error, Request, system};
use crate::config::Config;
use crate::log;
use crate::sandbox::Timeline;
use crate::sys::process::Program;
use crate::sys::{fd, pidfd};

/// What a monitor is started for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Create a container, and start it if so asked; stand for it until it ends.
    Container { request: Box<Request>, config: Box<Config> },
    /// Run a process in a running container; stand for it until it ends.
    Exec { request: Box<ExecRequest>, config: Box<Config> },
}

impl Task {
    /// Of the command that starts the monitor.
    fn preserved(&self) -> Range {
        let range = match self {
            Self::Container { request, .. } => request.preserve,
            Self::Exec { request, .. } => request.preserve,
        };
        Range { first: preserve::FIRST, ..range }
    }

    fn id(&self) -> &str {
        match self {
            Self::Container { request, .. } => &request.id,
            Self::Exec { request, .. } => &request.id,
        }
    }
}

/// What a monitor is given.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    task: Task,
    log: log::Settings,
}

/// The monitor's word when the container or process has come up, or has not.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Up,
    Failed(String),
}

const ORDER: i32 = 3;
const REPORT: i32 = 4;
/// Where a monitor finds the descriptors that the container's process is to have.
pub const PRESERVED: i32 = 5;
/// The exit code of a monitor whose container or process was lost: its machine died, most likely.
const LOST: u8 = 255;
/// A report is one error message.
const MAX_REPORT: u64 = 64 << 10;

/// A process that stands for a container, or for another process in it.
#[derive(Debug)]
pub struct MonitorProcess {
    pub pid: i32,
    pidfd: OwnedFd,
}

impl MonitorProcess {
    /// This process.
    ///
    /// # Errors
    /// What pidfd_open(2) says.
    pub fn own() -> Result<Self, Error> {
        let pid = std::process::id() as i32;
        Ok(Self { pid, pidfd: pidfd::open(pid).map_err(system("open this process"))? })
    }

    /// Ends it, and with it what it stands for.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd::kill(self.pidfd.as_fd(), Signal::SIGKILL);
    }

    /// Tells its PID to a file, as runc does (beside its place, then renamed, no newline), and a pidfd of it to whoever
    /// listens on a socket.
    ///
    /// # Errors
    /// [`Error::PidFile`], [`Error::PidfdSocket`]
    pub fn tell(&self, file: Option<&Path>, socket: Option<&Path>) -> Result<(), Error> {
        if let Some(path) = socket {
            let failed = |source| Error::PidfdSocket { path: path.into(), source };
            let stream = UnixStream::connect(path).map_err(failed)?;
            fd::send(stream.as_fd(), b"pidfd", self.pidfd.as_fd()).map_err(failed)?;
        }
        let Some(path) = file else { return Ok(()) };
        let failed = |source| Error::PidFile { path: path.into(), source };
        let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        let draft = path.with_file_name(hidden);
        std::fs::write(&draft, self.pid.to_string()).map_err(failed)?;
        std::fs::rename(&draft, path).map_err(failed)
    }
}

/// Starts a monitor and waits until its container or process has come up.
///
/// # Errors
/// What the monitor reports, in its words; or that it could not be started.
pub fn start(task: Task, log: log::Settings) -> Result<MonitorProcess, Error> {
    let id = CString::new(task.id()).map_err(|error| system("name the monitor")(error.into()))?;
    let preserved = task.preserved().numbers().map(fd::borrowed).collect::<std::io::Result<Vec<_>>>();
    let preserved = preserved.map_err(system("pass descriptors on"))?;
    let order = Order { task, log };
    let order = serde_json::to_vec(&order).expect("an order has only string keys");
    let order = fd::memory_file(c"rt-order", &order).map_err(system("write the monitor's order"))?;
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|e| system("make a pipe")(e.into()))?;
    let mut descriptors =
        vec![fd::standard(0), fd::standard(1), fd::standard(2), order.as_fd(), reporter.as_fd()];
    descriptors.extend(preserved);
    let program = Program {
        path: c"/proc/self/exe",
        arguments: &[c"rt".into(), c"monitor".into(), id],
        descriptors: &descriptors,
        namespaces: CloneFlags::empty(),
    };
    let (pid, pidfd) = program.start().map_err(system("start the monitor"))?;
    drop(reporter);
    let mut text = Vec::new();
    let read = File::from(report).take(MAX_REPORT).read_to_end(&mut text);
    read.map_err(system("read the monitor's report"))?;
    match serde_json::from_slice(&text) {
        Ok(Report::Up) => Ok(MonitorProcess { pid, pidfd }),
        Ok(Report::Failed(text)) => Err(Error::Monitor(text)),
        Err(_) => Err(Error::Monitor("the monitor ended before the container had come up".into())),
    }
}

/// `rt monitor ID`: see the module.
pub fn main(_arguments: &[OsString]) -> ExitCode {
    let (Ok(order), Ok(report)) = (fd::inherited(ORDER), fd::inherited(REPORT)) else {
        eprintln!("rt monitor is started by rt itself");
        return ExitCode::FAILURE;
    };
    let mut reporter = Reporter(Some(report));
    match carry(order, &mut reporter) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let text = log::chain(&error);
            if reporter.send(&Report::Failed(text.clone())) {
                return ExitCode::FAILURE;
            }
            tracing::error!("{text}");
            ExitCode::from(LOST)
        }
    }
}

fn carry(order: OwnedFd, reporter: &mut Reporter) -> Result<u8, Error> {
    let order: Order = serde_json::from_reader(BufReader::new(File::from(order)))
        .map_err(|error| system("read the monitor's order")(error.into()))?;
    order.log.start_in_monitor().map_err(system("open the log file"))?;
    reporter.stay()?;
    match order.task {
        Task::Container { request, config } => {
            let mut timeline = Timeline::default();
            timeline.mark("rt.monitor-started");
            super::carry(&request, &config, timeline, &mut || reporter.up())
        }
        Task::Exec { request, config } => exec::carry(&request, &config, &mut || reporter.up()),
    }
}

/// The pipe to the command that waits; closed after the one word on it.
struct Reporter(Option<OwnedFd>);

impl Reporter {
    /// False when the word had been sent before, or nobody is there to read it.
    fn send(&mut self, report: &Report) -> bool {
        let Some(pipe) = self.0.take() else { return false };
        let text = serde_json::to_vec(report).expect("a report has only string keys");
        File::from(pipe).write_all(&text).is_ok()
    }

    /// Until it is up, what this process stands for is the command's: it ends with it, in order.
    fn stay(&self) -> Result<(), Error> {
        let failed = |error: Errno| system("stay with the command")(error.into());
        set_pdeathsig(Signal::SIGTERM).map_err(failed)?;
        // The command may have ended before.
        let Some(pipe) = &self.0 else { return Err(Error::Abandoned) };
        let mut reader = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
        let gone = poll(&mut reader, PollTimeout::ZERO).map_err(failed)? > 0;
        if gone { Err(Error::Abandoned) } else { Ok(()) }
    }

    fn up(&mut self) -> Result<(), Error> {
        set_pdeathsig(None).map_err(|error| system("leave the command")(error.into()))?;
        if self.send(&Report::Up) { Ok(()) } else { Err(Error::Abandoned) }
    }
}
