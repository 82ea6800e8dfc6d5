//! One process of a container as the server knows it: the container's first one, or one that was executed in it.
//!
//! States: *creating* (its runner is at work), *made* (it has a pid; whether it waits for its start or runs only it
//! knows), *ended* (it has an exit code). They are reached in this order and never left backwards.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use crate::sys;

/// How often a waiter looks whether a pipe that others keep open has been emptied.
const LOOK: Duration = Duration::from_millis(20);

/// A process.
pub struct Process {
    /// Names it in [`crate::link`]; never used twice.
    pub sequence: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Result<Made, String>>,
    started: bool,
    exit_code: Option<u32>,
    ended_at: Option<Instant>,
    /// Outputs that have not come to their end.
    outputs: Vec<Flow>,
    next_output: u32,
}

/// An output on its way to the host.
struct Flow {
    output: Output,
    /// The read end of its pipe, to see whether that is empty.
    pipe: Option<OwnedFd>,
    stream: OwnedFd,
}

/// Names an output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output(u32);

/// What PID 1 says of a process it has made.
pub struct Made {
    pub pid: i32,
    /// `None` when the process had gone before it could be had.
    pidfd: Option<OwnedFd>,
    pub own_pid_namespace: bool,
    pub terminal: Option<OwnedFd>,
}

impl Made {
    pub fn new(pid: i32, own_pid_namespace: bool, terminal: Option<OwnedFd>) -> Self {
        Self { pid, pidfd: sys::pidfd_open(pid).ok(), own_pid_namespace, terminal }
    }
}

impl Process {
    pub fn new(sequence: u64) -> Self {
        Self { sequence, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// PID 1 says how the creation went.
    pub fn created(&self, outcome: Result<Made, String>) {
        self.lock().outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// PID 1 says that the process has ended.
    pub fn exited(&self, code: u32) {
        let mut state = self.lock();
        state.exit_code = Some(code);
        state.ended_at = Some(Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the end of the creation: its process's pid and terminal.
    ///
    /// # Errors
    /// The runner's message.
    pub fn creation(&self) -> Result<(i32, Option<OwnedFd>), String> {
        let mut state = self.lock();
        loop {
            match &state.outcome {
                Some(Ok(made)) => {
                    let terminal = made.terminal.as_ref().map(OwnedFd::try_clone).transpose();
                    return terminal.map(|fd| (made.pid, fd)).map_err(|error| error.to_string());
                }
                Some(Err(message)) => return Err(message.clone()),
                None => state = self.wait(state),
            }
        }
    }

    /// Claims the one start that a container has.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn claim_start(&self) -> Result<(), &'static str> {
        let mut state = self.lock();
        match &state.outcome {
            None => return Err("it is not made yet"),
            Some(Err(_)) => return Err("it could not be made"),
            Some(Ok(_)) => {}
        }
        if state.exit_code.is_some() {
            return Err("it has stopped");
        }
        if std::mem::replace(&mut state.started, true) {
            return Err("it is already running");
        }
        Ok(())
    }

    /// An output that [`Process::output_ended`] will end. `pipe` tells whether something is left in it; without one its
    /// end is waited for.
    pub fn output_begins(&self, pipe: Option<OwnedFd>, stream: OwnedFd) -> Output {
        let mut state = self.lock();
        let output = Output(state.next_output);
        state.next_output += 1;
        state.outputs.push(Flow { output, pipe, stream });
        output
    }

    /// An output has been moved to its end.
    pub fn output_ended(&self, output: Output) {
        self.lock().outputs.retain(|flow| flow.output != output);
        self.changed.notify_all();
    }

    /// Waits for the process's end; its output has been moved then.
    ///
    /// The first process of a PID namespace takes every other process of it along, and so every writer. Beside any other
    /// one a process may stay behind with stdout open, for ever perhaps: then what the pipes held at the end is waited
    /// for, and the streams are closed to what comes later. A terminal is hung up when its session's leader ends.
    pub fn ended(&self) -> u32 {
        let mut state = self.lock();
        let mut quiet = 0;
        loop {
            let Some(code) = state.exit_code else {
                state = self.wait(state);
                continue;
            };
            if state.outputs.is_empty() {
                return code;
            }
            if quiet == 2 {
                for flow in &state.outputs {
                    let _ = shutdown(flow.stream.as_raw_fd(), Shutdown::Write);
                }
                return code;
            }
            let alone = matches!(&state.outcome, Some(Ok(made)) if made.own_pid_namespace);
            if alone || state.outputs.iter().any(|flow| flow.pipe.is_none()) {
                state = self.wait(state);
                continue;
            }
            let waited = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            let empty = |pipe: &OwnedFd| !matches!(sys::bytes_waiting(pipe.as_fd()), Ok(1..));
            let all_empty = state.outputs.iter().filter_map(|flow| flow.pipe.as_ref()).all(empty);
            quiet = match (all_empty, waited.1.timed_out()) {
                (false, _) => 0,
                (true, false) => quiet,
                (true, true) => quiet + 1,
            };
        }
    }

    /// True when it ended longer ago than `age`, and so nobody is going to ask for it.
    pub fn is_forgotten(&self, age: Duration) -> bool {
        self.lock().ended_at.is_some_and(|ended_at| ended_at.elapsed() > age)
    }

    /// True while it is made and has not ended.
    pub fn is_running(&self) -> bool {
        let state = self.lock();
        matches!(state.outcome, Some(Ok(_))) && state.exit_code.is_none()
    }

    /// True when it is the first process of a PID namespace, and the others end with it.
    pub fn is_alone(&self) -> bool {
        matches!(&self.lock().outcome, Some(Ok(made)) if made.own_pid_namespace)
    }

    /// Waits for the process's end, at most `limit`. True when there is no process.
    pub fn gone_within(&self, limit: Duration) -> bool {
        let running = |state: &mut State| matches!(state.outcome, Some(Ok(_))) && state.exit_code.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), limit, running);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Signals the process.
    ///
    /// # Errors
    /// ESRCH when there is none, or no longer.
    pub fn signal(&self, signal: i32) -> nix::Result<()> {
        let state = self.lock();
        match (&state.outcome, state.exit_code) {
            (Some(Ok(Made { pidfd: Some(pidfd), .. })), None) => sys::pidfd_signal(pidfd.as_fd(), signal),
            _ => Err(nix::Error::ESRCH),
        }
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// ENOTTY when there is no terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> nix::Result<()> {
        match &self.lock().outcome {
            Some(Ok(Made { terminal: Some(terminal), .. })) => {
                sys::set_window_size(terminal.as_fd(), rows, columns)
            }
            _ => Err(nix::Error::ENOTTY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn stream() -> OwnedFd {
        UnixStream::pair().expect("a pair").0.into()
    }

    fn created(own_pid_namespace: bool) -> Process {
        let container = Process::new(1);
        container.created(Ok(Made { pid: 1, pidfd: None, own_pid_namespace, terminal: None }));
        container
    }

    #[test]
    fn a_container_starts_once() {
        let container = Process::new(1);
        assert!(container.claim_start().is_err());
        let container = created(true);
        assert_eq!(container.claim_start(), Ok(()));
        assert_eq!(container.claim_start(), Err("it is already running"));
        container.exited(0);
        assert_eq!(container.claim_start(), Err("it has stopped"));
    }

    #[test]
    fn the_end_waits_for_the_output() {
        let container = Arc::new(created(true));
        let output = container.output_begins(None, stream());
        let waiter = std::thread::spawn({
            let container = container.clone();
            move || container.ended()
        });
        container.exited(3);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiter.is_finished());
        container.output_ended(output);
        assert_eq!(waiter.join().expect("no panic"), 3);
    }

    #[test]
    fn a_background_process_of_a_shared_namespace_is_not_waited_for() {
        let container = created(false);
        let (read, _write) = nix::unistd::pipe().expect("a pipe");
        let (near, mut far) = UnixStream::pair().expect("a pair");
        container.output_begins(Some(read), near.into());
        container.exited(0);
        assert_eq!(container.ended(), 0);
        // And the host is told that no more will come.
        assert_eq!(far.read(&mut [0; 1]).expect("the end"), 0);
    }

    #[test]
    fn nothing_to_signal_or_resize() {
        let container = created(true);
        assert_eq!(container.resize(1, 1), Err(nix::Error::ENOTTY));
        container.exited(0);
        assert_eq!(container.signal(15), Err(nix::Error::ESRCH));
        assert!(container.gone_within(Duration::ZERO));
    }
}
