//! A process as containerd knows it: a container's own, or an exec. Its life is `Added -> Up -> Exited`; a thread waits for
//! its monitor's end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Builder;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use super::console::{self, Socket};
use super::streams::{Ends, Held, Streams, null};
use super::{Error, SOCKETS, failed};
use crate::container::{self, MonitorProcess, Task};
use crate::log;
use crate::sys::terminal;

/// How long output may take to go out once its process has ended, before the end is told all the same.
const DRAIN: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Of its monitor, which stood for it on the host.
    pub pid: u32,
    pub code: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy)]
pub enum Phase {
    Added,
    /// Created or started; the PID is its monitor's.
    Up(u32),
    Exited(Exit),
}

pub struct Process {
    pub container: String,
    /// Empty for the container's own.
    pub exec_id: String,
    pub streams: Streams,
    state: Mutex<State>,
    changed: Condvar,
    order: Mutex<()>,
}

struct State {
    phase: Phase,
    held: Held,
    console: Option<Arc<OwnedFd>>,
    /// A pidfd.
    monitor: Option<OwnedFd>,
    /// containerd wants no more of the input than its clients still write.
    input_is_over: bool,
}

impl Process {
    pub fn new(container: &str, exec_id: &str, streams: Streams) -> Arc<Self> {
        let state = State {
            phase: Phase::Added,
            held: Held::default(),
            console: None,
            monitor: None,
            input_is_over: false,
        };
        Arc::new(Self {
            container: container.into(),
            exec_id: exec_id.into(),
            streams,
            state: Mutex::new(state),
            changed: Condvar::new(),
            order: Mutex::new(()),
        })
    }

    /// Held while something is done and told: an end is told after what came before it.
    pub fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Starts its monitor, with what `task` makes of the console socket's path, and a thread that calls `ended` in order when it has ended.
    /// Returns the monitor's PID.
    ///
    /// # Errors
    /// [`Error`]; the monitor has ended then.
    pub fn launch(
        self: &Arc<Self>,
        log: log::Settings,
        task: impl FnOnce(Option<PathBuf>) -> Task,
        ended: impl FnOnce(&Exit) + Send + 'static,
    ) -> Result<u32, Error> {
        let (ends, held) =
            self.streams.open().map_err(|(name, error)| failed("open the stream", name)(error))?;
        let (monitor, output) = match self.streams.terminal {
            true => self.start_with_terminal(log, task, ends)?,
            false => {
                let streams = [ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()];
                (container::start_monitor_with(task(None), log, streams)?, None)
            }
        };
        let pid = monitor.pid as u32;
        {
            let mut state = self.state();
            state.phase = Phase::Up(pid);
            state.held = held;
            state.monitor = monitor.pidfd().try_clone_to_owned().ok();
        }
        let process = Arc::clone(self);
        let wait = move || {
            // A child of this process that nobody else waits for: there is always an answer.
            let code = monitor.wait().unwrap_or(u8::MAX).into();
            if let Some(output) = output {
                let _ = output.recv_timeout(DRAIN);
            }
            let exit = Exit { pid, code, at: SystemTime::now() };
            let _order = process.order();
            ended(&exit);
            process.leave(exit);
        };
        Builder::new()
            .name("wait".into())
            .spawn(wait)
            .map_err(failed("start a thread for", &self.container))?;
        Ok(pid)
    }

    fn start_with_terminal(
        &self,
        log: log::Settings,
        task: impl FnOnce(Option<PathBuf>) -> Task,
        ends: Ends,
    ) -> Result<(MonitorProcess, Option<Receiver<()>>), Error> {
        let socket = Socket::bind().map_err(failed("make a socket in", SOCKETS))?;
        let none = null().map_err(failed("open", "/dev/null"))?;
        let monitor = container::start_monitor_with(task(Some(socket.path.clone())), log, [none.as_fd(); 3])?;
        let connect = || {
            let console = Arc::new(socket.receive()?);
            let output = console::pump_out(&console, ends.stdout)?;
            Ok((console, output))
        };
        let (console, output) =
            connect().map_err(failed("use the terminal of", &self.container)).inspect_err(|_| {
                monitor.kill();
                let _ = monitor.wait();
            })?;
        self.state().console = Some(console);
        Ok((monitor, Some(output)))
    }

    /// It has ended: whoever waits is told.
    pub fn leave(&self, exit: Exit) {
        let mut state = self.state();
        state.phase = Phase::Exited(exit);
        state.console = None;
        state.monitor = None;
        state.held.pipe = None;
        state.held.stdin = None;
        self.changed.notify_all();
    }

    /// Waits for its end.
    pub fn wait(&self) -> Exit {
        let mut state = self.state();
        loop {
            if let Phase::Exited(exit) = state.phase {
                return exit;
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Lets its standard input in, now that it runs.
    ///
    /// # Errors
    /// The input cannot be opened, or no thread is to be had.
    pub fn feed(&self) -> Result<(), Error> {
        let mut state = self.state();
        let to = state.console.clone().or_else(|| state.held.pipe.take().map(Arc::new));
        let (false, Some(to), Some(monitor)) = (self.streams.stdin.is_empty(), to, state.monitor.take())
        else {
            return Ok(());
        };
        let start = || {
            let (reader, writer) = self.streams.open_input()?;
            state.held.stdin = (!state.input_is_over).then_some(writer);
            console::pump_in(reader, to, monitor)
        };
        start().map_err(failed("open the stream", &self.streams.stdin))
    }

    /// Ends its standard input, once no client writes to it any more.
    pub fn close_stdin(&self) {
        let mut state = self.state();
        state.input_is_over = true;
        state.held.stdin = None;
    }

    /// Sets the size of its terminal, if it has one.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn resize(&self, rows: u32, columns: u32) -> std::io::Result<()> {
        let console = self.state().console.clone();
        let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        console.map_or(Ok(()), |console| terminal::set_size(&*console, clamp(rows), clamp(columns)))
    }
}

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_of_the_end() {
        let process = Process::new("c", "", Streams::default());
        let waiter = Arc::clone(&process);
        let waiting = std::thread::spawn(move || waiter.wait().code);
        assert!(matches!(process.phase(), Phase::Added));
        process.leave(Exit { pid: 1, code: 7, at: SystemTime::now() });
        assert_eq!(waiting.join().unwrap(), 7);
        assert!(matches!(process.phase(), Phase::Exited(_)));
    }

    #[test]
    fn a_size_without_a_terminal_is_nobodys() {
        assert!(Process::new("c", "", Streams::default()).resize(24, 80).is_ok());
    }
}
