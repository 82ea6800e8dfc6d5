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
use crate::container::{self, Ends, Flow, Patience};
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
    /// What it writes.
    pub flow: Arc<Flow>,
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
    /// Somebody watches its end.
    is_expected: bool,
}

impl Process {
    pub fn new(container: &str, exec_id: &str, streams: Streams) -> Arc<Self> {
        let state = State { phase: Phase::Added, held: Held::default(), handle: None, is_expected: false };
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
        *self.state() = State { phase: Phase::Up(pid), held, handle: Some(handle), is_expected: false };
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

    /// It was killed. Unless its end comes soon it is its output that nobody takes, and that is given up; then it is the guest that does not do
    /// as it is told, and `end` is called when it has had so much time. Once: that it is killed again gives no more.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn expect_end(
        self: &Arc<Self>,
        limit: Duration,
        end: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let mut state = self.state();
        let Some(handle) = state.handle.clone().filter(|_| !state.is_expected) else { return Ok(()) };
        let process = Arc::clone(self);
        let patience = Patience::new(&handle.flow, limit);
        let wait = move || {
            if process.ends_within(DRAIN.min(limit)) {
                return;
            }
            tracing::warn!(
                "{} has been killed and has not ended; nobody reads what it wrote, or its guest hangs",
                process.container
            );
            process.state().held.drop_readers();
            while !process.ends_within(patience.left()) {
                // The rest is its output's, which has an end of its own.
                if handle.flow.is_told() {
                    return;
                }
                if patience.left().is_zero() {
                    tracing::error!("the guest of {} does not end what has been killed", process.container);
                    return end();
                }
            }
        };
        Builder::new().name("drain".into()).spawn(wait)?;
        state.is_expected = true;
        Ok(())
    }

    fn ends_within(&self, time: Duration) -> bool {
        let has_not = |state: &mut State| !matches!(state.phase, Phase::Exited(_));
        let waited = self.changed.wait_timeout_while(self.state(), time, has_not);
        !waited.unwrap_or_else(|poisoned| poisoned.into_inner()).1.timed_out()
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
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::Receiver;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

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

    /// A process that ends when it is told to, in a guest that answers nothing; and what it writes.
    fn running() -> (Arc<Process>, Arc<Flow>, Sender<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 32]);
            stream.write_all(b"OK 1\n").unwrap();
        });
        let agent = Agent::connect(&path, Duration::from_secs(60)).unwrap();
        guest.join().unwrap();
        let process = Process::new("c", "", Streams::default());
        let (flow, (end, code)) = (Arc::new(Flow::default()), mpsc::channel());
        let own = Arc::clone(&flow);
        let carry = move |_: Ends, up: &mut Up| {
            up.up(Handle { agent, id: "c".into(), exec_id: String::new(), flow: own });
            Ok(code.recv().unwrap_or(0))
        };
        process.launch(carry, |_| ()).unwrap();
        (process, flow, end)
    }

    fn expect(process: &Arc<Process>) -> Receiver<()> {
        let (late, is_late) = mpsc::channel();
        process.expect_end(LIMIT, move || late.send(()).unwrap_or_default()).unwrap();
        is_late
    }

    #[test]
    fn a_guest_that_does_not_end_what_was_killed_is_late_once() {
        let (process, _, end) = running();
        let (first, second) = (expect(&process), expect(&process));
        assert!(first.recv_timeout(Duration::from_secs(60)).is_ok());
        assert!(second.recv().is_err());
        end.send(137).unwrap();
        assert_eq!(process.wait().code, 137);
    }

    #[test]
    fn a_reader_that_takes_its_time_does_not_make_a_guest_late() {
        let (process, flow, end) = running();
        let output = flow.open();
        let is_late = output.write(10, || {
            let is_late = expect(&process);
            assert!(is_late.recv_timeout(4 * LIMIT).is_err());
            is_late
        });
        // It has told the end, and what it wrote has its own.
        flow.tell();
        assert!(is_late.recv_timeout(Duration::from_secs(60)).is_err());
        end.send(0).unwrap();
        process.wait();
    }

    #[test]
    fn one_that_ends_is_not_late() {
        let (process, _, end) = running();
        let is_late = expect(&process);
        end.send(9).unwrap();
        assert_eq!(process.wait().code, 9);
        assert!(is_late.recv().is_err());
    }
}
