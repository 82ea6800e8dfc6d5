//! A process as containerd knows it: a container's own, or an exec. Its life is `Added -> Up -> Exited`; a thread of its own
//! stands for it, as a monitor does under the command line.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Builder;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use super::streams::{Held, Streams};
use super::{Error, failed};
use crate::agent::Agent;
use crate::container::{self, Ends};
use crate::log;

/// How long output may take to go out once its process was killed, before nobody is thought to read it.
const DRAIN: Duration = Duration::from_secs(10);
/// The exit code of a process that was lost: its machine died, most likely.
const LOST: u32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    pub pid: u32,
    pub code: u32,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy)]
pub enum Phase {
    Added,
    /// Created or started; the PID is the shim's, which stands for it on the host.
    Up(u32),
    Exited(Exit),
}

/// How to reach a process in the guest.
#[derive(Clone)]
pub struct Handle {
    pub agent: Agent,
    pub id: String,
    /// Empty for a container's own process.
    pub exec_id: String,
}

/// Where a process's thread tells that it is up.
pub struct Up(Option<Sender<Result<Handle, container::Error>>>);

impl Up {
    fn tell(&mut self, result: Result<Handle, container::Error>) -> Result<(), container::Error> {
        match self.0.take() {
            // Whoever launched it waits for this word.
            Some(sender) => {
                let _ = sender.send(result);
                Ok(())
            }
            None => result.map(drop),
        }
    }

    /// It is, and this is how to reach it.
    pub fn up(&mut self, handle: Handle) {
        let _ = self.tell(Ok(handle));
    }
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
    handle: Option<Handle>,
}

impl Process {
    pub fn new(container: &str, exec_id: &str, streams: Streams) -> Arc<Self> {
        let state = State { phase: Phase::Added, held: Held::default(), handle: None };
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

    /// How to reach it, while it is up.
    pub fn handle(&self) -> Option<Handle> {
        self.state().handle.clone()
    }

    /// Starts a thread that carries the process: `carry` makes it, tells that it is up, and gives its exit code. `ended` is called in order
    /// when it has ended.
    ///
    /// # Errors
    /// [`Error`]; what `carry` said before it was up.
    pub fn launch(
        self: &Arc<Self>,
        carry: impl FnOnce(Ends, &mut Up) -> Result<u8, container::Error> + Send + 'static,
        ended: impl FnOnce(&Exit) + Send + 'static,
    ) -> Result<u32, Error> {
        let (ends, held) =
            self.streams.open().map_err(|(name, error)| failed("open the stream", name)(error))?;
        let (sender, answer) = mpsc::channel();
        let process = Arc::clone(self);
        let pid = std::process::id();
        let stand = move || {
            let mut up = Up(Some(sender));
            let code = match carry(ends, &mut up) {
                Ok(code) => code.into(),
                Err(error) => match up.tell(Err(error)) {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!("{} was lost: {}", process.container, log::chain(&error));
                        LOST
                    }
                },
            };
            let exit = Exit { pid, code, at: SystemTime::now() };
            let _order = process.order();
            ended(&exit);
            process.leave(exit);
        };
        Builder::new()
            .name("process".into())
            .spawn(stand)
            .map_err(failed("start a thread for", &self.container))?;
        // The thread tells always, and panics abort.
        let handle = answer.recv().unwrap_or(Err(container::Error::Abandoned))?;
        *self.state() = State { phase: Phase::Up(pid), held, handle: Some(handle) };
        Ok(pid)
    }

    /// It has ended: whoever waits is told.
    pub fn leave(&self, exit: Exit) {
        let mut state = self.state();
        state.phase = Phase::Exited(exit);
        state.handle = None;
        state.held.leave();
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

    /// It was killed: unless its end comes soon, it is its output that nobody takes, and that is given up.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn expect_end(self: &Arc<Self>) -> std::io::Result<()> {
        let process = Arc::clone(self);
        let wait = move || {
            let has_not = |state: &mut State| !matches!(state.phase, Phase::Exited(_));
            let waited = process.changed.wait_timeout_while(process.state(), DRAIN, has_not);
            let (mut state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
            if has_not(&mut state) {
                tracing::warn!("nobody reads what {} wrote", process.container);
                state.held.drop_readers();
            }
        };
        Builder::new().name("drain".into()).spawn(wait).map(drop)
    }

    /// Lets its standard input in, now that it runs.
    ///
    /// # Errors
    /// The input cannot be opened, or no thread is to be had.
    pub fn feed(&self) -> Result<(), Error> {
        self.state().held.feed(&self.streams).map_err(failed("open the stream", &self.streams.stdin))
    }

    /// Ends its standard input, once no client writes to it any more.
    pub fn close_stdin(&self) {
        self.state().held.close_input();
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
}
