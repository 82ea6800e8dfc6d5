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
use crate::agent::Agent;
use crate::sys::pidfd;

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
    /// The VM boots: a pidfd of its VMM.
    Boot(OwnedFd),
    /// This signal ended the attempt.
    Interrupted(i32),
    Container(Agent, String, Option<Console>),
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

    /// Starts the thread. `vmm` is a pidfd.
    pub fn watch(self, vmm: BorrowedFd<'_>) -> io::Result<Watch> {
        let target = Arc::new(Mutex::new(Target::Boot(vmm.try_clone_to_owned()?)));
        let seen = Arc::clone(&target);
        let set = self.set;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = set.wait() {
                deliver(&seen, signal);
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
        *target = Target::Container(agent.clone(), id.to_owned(), console);
        Ok(())
    }
}

fn lock(target: &Mutex<Target>) -> MutexGuard<'_, Target> {
    target.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn deliver(target: &Mutex<Target>, signal: Signal) {
    let mut target = lock(target);
    match &*target {
        Target::Boot(vmm) if ENDING.contains(&signal) => {
            let _ = pidfd::kill(vmm.as_fd(), Signal::SIGKILL);
            *target = Target::Interrupted(signal as i32);
        }
        Target::Boot(_) | Target::Interrupted(_) => {}
        Target::Container(agent, id, console) => {
            let (agent, id, size) = (agent.clone(), id.clone(), console.as_ref().and_then(Console::size));
            // A call may take its time: not under the lock.
            drop(target);
            let result = match (signal, size) {
                (Signal::SIGWINCH, Some((rows, columns))) => agent.resize_terminal(&id, rows, columns),
                (Signal::SIGWINCH, None) => Ok(()),
                (other, _) => agent.signal_process(&id, other as i32),
            };
            if let Err(error) = result {
                tracing::debug!("{signal} did not reach the container: {error}");
            }
        }
    }
}
