//! One container as the server knows it, from the call that makes it to the one that deletes it.
//!
//! States: *creating* (its runner is at work), *created* or *running* (it has a process; only the process knows
//! which), *ended* (it has an exit code). They are reached in this order and never left backwards.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys;

/// How often a waiter looks whether a pipe that others keep open has been emptied.
const LOOK: Duration = Duration::from_millis(20);

/// A container.
pub struct Container {
    pub id: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Result<Process, String>>,
    started: bool,
    exit_code: Option<u32>,
    /// Outputs that have not come to their end, with the read ends of their pipes, to see whether those are empty.
    outputs: Vec<(Output, Option<OwnedFd>)>,
    next_output: u32,
}

/// Names an output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output(u32);

/// A container's first process.
pub struct Process {
    pub pid: i32,
    /// `None` when the process had gone before it could be had.
    pidfd: Option<OwnedFd>,
    pub own_pid_namespace: bool,
    pub terminal: Option<OwnedFd>,
}

impl Process {
    pub fn new(pid: i32, own_pid_namespace: bool, terminal: Option<OwnedFd>) -> Self {
        Self { pid, pidfd: sys::pidfd_open(pid).ok(), own_pid_namespace, terminal }
    }
}

impl Container {
    pub fn new(id: String) -> Self {
        Self { id, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// PID 1 says how the creation went.
    pub fn created(&self, outcome: Result<Process, String>) {
        self.lock().outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// PID 1 says that the process has ended.
    pub fn exited(&self, code: u32) {
        self.lock().exit_code = Some(code);
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
                Some(Ok(process)) => {
                    let terminal = process.terminal.as_ref().map(OwnedFd::try_clone).transpose();
                    return terminal.map(|fd| (process.pid, fd)).map_err(|error| error.to_string());
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

    /// An output that [`Container::output_ended`] will end. `pipe` tells whether something is left in it.
    pub fn output_begins(&self, pipe: Option<OwnedFd>) -> Output {
        let mut state = self.lock();
        let output = Output(state.next_output);
        state.next_output += 1;
        state.outputs.push((output, pipe));
        output
    }

    /// An output has been moved to its end.
    pub fn output_ended(&self, output: Output) {
        self.lock().outputs.retain(|(other, _)| *other != output);
        self.changed.notify_all();
    }

    /// Waits for the process's end; its output has been moved then.
    ///
    /// With a PID namespace of its own, its end is that of every process in it, and so of every writer. Without, a
    /// process may stay behind with stdout open, for ever perhaps: then what the pipes held at the end is waited for,
    /// not what comes later.
    pub fn ended(&self) -> u32 {
        let mut state = self.lock();
        let mut quiet = 0;
        loop {
            let Some(code) = state.exit_code else {
                state = self.wait(state);
                continue;
            };
            let alone = matches!(&state.outcome, Some(Ok(process)) if process.own_pid_namespace);
            if state.outputs.is_empty() || quiet == 2 {
                return code;
            }
            if alone {
                state = self.wait(state);
                continue;
            }
            let empty = |pipe: &OwnedFd| !matches!(sys::bytes_waiting(pipe.as_fd()), Ok(1..));
            let all_empty = state.outputs.iter().filter_map(|(_, pipe)| pipe.as_ref()).all(empty);
            quiet = if all_empty { quiet + 1 } else { 0 };
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// True when the container's processes are in a PID namespace of their own, and end with the first.
    pub fn is_alone(&self) -> bool {
        matches!(&self.lock().outcome, Some(Ok(process)) if process.own_pid_namespace)
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
            (Some(Ok(Process { pidfd: Some(pidfd), .. })), None) => sys::pidfd_signal(pidfd.as_fd(), signal),
            _ => Err(nix::Error::ESRCH),
        }
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// ENOTTY when there is no terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> nix::Result<()> {
        match &self.lock().outcome {
            Some(Ok(Process { terminal: Some(terminal), .. })) => {
                sys::set_window_size(terminal.as_fd(), rows, columns)
            }
            _ => Err(nix::Error::ENOTTY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn created(own_pid_namespace: bool) -> Container {
        let container = Container::new("c".into());
        container.created(Ok(Process { pid: 1, pidfd: None, own_pid_namespace, terminal: None }));
        container
    }

    #[test]
    fn a_container_starts_once() {
        let container = Container::new("c".into());
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
        let output = container.output_begins(None);
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
        container.output_begins(Some(read));
        container.exited(0);
        assert_eq!(container.ended(), 0);
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
