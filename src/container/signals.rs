//! Signals to rt are the container's.
//!
//! All are blocked in every thread; one thread waits for them. Until the container can take them, a signal that
//! asks to end kills the VMM, which makes the main thread's wait for it fail and undo everything. Afterwards each signal goes to the
//! container's process, and a changed window size to its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::sys::signal::{SigSet, Signal};

use super::console::Console;
use crate::agent::{self, Agent};
use crate::sys::{pidfd, signal};

/// Not forwarded: about rt's own children, its own faults, job control of rt itself, and its own broken pipes.
const OWN: [Signal; 12] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGURG,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];
/// Before the container runs, these end the attempt; others are dropped.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

enum Target {
    /// There is no process to take them yet. A pidfd of the VMM that boots for it, unless the machine is another's.
    Boot(Option<OwnedFd>),
    /// This signal ended the attempt.
    Interrupted(i32),
    Process(Process),
}

/// A process of the guest that takes signals.
#[derive(Clone)]
struct Process {
    agent: Agent,
    id: String,
    exec_id: String,
    console: Option<Console>,
}

/// Blocked signals that nobody waits for yet.
pub struct Signals {
    set: SigSet,
}

impl Signals {
    /// Blocks the signals for this thread and all that it starts.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::all();
        OWN.into_iter().for_each(|own| set.remove(own));
        set.thread_block()?;
        Ok(Self { set })
    }

    /// Starts the thread for a process that is to come: in a guest that boots, of which `vmm` is a pidfd, or else in one that
    /// is not ours to end.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub fn watch_boot(self, vmm: Option<BorrowedFd<'_>>) -> io::Result<Watch> {
        let vmm = vmm.map(|vmm| vmm.try_clone_to_owned()).transpose()?;
        self.watch(Target::Boot(vmm))
    }

    /// Starts the thread for a process that runs.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn watch_process(
        self,
        agent: &Agent,
        id: &str,
        exec_id: &str,
        console: Option<Console>,
    ) -> io::Result<Watch> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        self.watch(Target::Process(Process { agent: agent.clone(), id, exec_id, console }))
    }

    fn watch(self, target: Target) -> io::Result<Watch> {
        let target = Arc::new(Mutex::new(target));
        let seen = Arc::clone(&target);
        let set = self.set;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(number) = signal::wait(&set) {
                deliver(&seen, number);
            }
        })?;
        Ok(Watch { target })
    }
}

/// The handle to the thread that waits for signals.
pub struct Watch {
    target: Arc<Mutex<Target>>,
}

impl Watch {
    /// The signal that ended the attempt, if one did.
    pub fn interrupted(&self) -> Option<i32> {
        match *lock(&self.target) {
            Target::Interrupted(signal) => Some(signal),
            _ => None,
        }
    }

    /// From now on signals go to the container. Its process exists already, so that none is lost.
    ///
    /// # Errors
    /// The signal that ended the attempt before.
    pub fn forward_to(&self, agent: &Agent, id: &str, console: Option<Console>) -> Result<(), i32> {
        let mut target = lock(&self.target);
        if let Target::Interrupted(signal) = *target {
            return Err(signal);
        }
        let (agent, id) = (agent.clone(), id.to_owned());
        *target = Target::Process(Process { agent, id, exec_id: String::new(), console });
        Ok(())
    }
}

fn lock(target: &Mutex<Target>) -> MutexGuard<'_, Target> {
    target.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// `signal` may be a real-time one, which nix has no name for.
fn deliver(target: &Mutex<Target>, signal: i32) {
    let mut target = lock(target);
    match &*target {
        Target::Boot(vmm) if ENDING.iter().any(|&ending| ending as i32 == signal) => {
            if let Some(vmm) = vmm {
                let _ = pidfd::kill(vmm.as_fd(), Signal::SIGKILL);
            }
            *target = Target::Interrupted(signal);
        }
        Target::Boot(_) | Target::Interrupted(_) => {}
        Target::Process(process) => {
            let process = process.clone();
            // A call may take its time: not under the lock.
            drop(target);
            if let Err(error) = process.take(signal) {
                tracing::debug!("signal {signal} did not reach the container: {error}");
            }
        }
    }
}

impl Process {
    fn take(&self, signal: i32) -> Result<(), agent::Error> {
        match (signal, self.console.as_ref().and_then(Console::size)) {
            (libc::SIGWINCH, Some((rows, columns))) => {
                self.agent.resize_terminal(&self.id, &self.exec_id, rows, columns)
            }
            (libc::SIGWINCH, None) => Ok(()),
            (other, _) => self.agent.signal_process(&self.id, &self.exec_id, other, false),
        }
    }
}
