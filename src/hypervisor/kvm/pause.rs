//! Stops all vCPUs between two instructions, and lets them go on.
//!
//! KVM_RUN returns with EINTR when a signal comes, and only then is nothing of an earlier exit still to be finished. A
//! signal that comes a moment before KVM_RUN is lost, so it is sent until each thread has come to [`Pause::stop_here`].

use std::os::unix::thread::JoinHandleExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Error;
use super::registers::Registers;

const SIGNAL: Signal = Signal::SIGUSR1;
const AGAIN: Duration = Duration::from_millis(1);

/// Shared by the vCPUs' threads and the one that stops them.
#[derive(Debug)]
pub struct Pause {
    /// For [`Registers::take`].
    msrs: Vec<u32>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    /// By number, of those that stand.
    standing: Vec<Option<Result<Registers, Error>>>,
}

extern "C" fn interrupt(_signal: libc::c_int) {}

impl Pause {
    /// Before any vCPU runs.
    pub fn new(vcpus: usize, msrs: Vec<u32>) -> Result<Self, Error> {
        let failed = |errno: nix::Error| Error::host("take signals")(errno.into());
        let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, and nobody here waits in a call that must not be interrupted by it: it is sent
        // to the vCPUs' threads alone.
        unsafe { sigaction(SIGNAL, &action) }.map_err(failed)?;
        let mut signals = SigSet::empty();
        signals.add(SIGNAL);
        // Threads to come inherit it.
        signals.thread_unblock().map_err(failed)?;
        let standing = (0..vcpus).map(|_| None).collect();
        Ok(Self { msrs, state: State { wanted: false, standing }.into(), changed: Condvar::new() })
    }

    /// A vCPU's thread comes here when KVM_RUN was interrupted, and stays while it is to stand.
    pub fn stop_here(&self, id: usize, vcpu: &VcpuFd) {
        let mut state = self.lock();
        if !state.wanted {
            return;
        }
        state.standing[id] = Some(Registers::take(vcpu, &self.msrs));
        self.changed.notify_all();
        while state.wanted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.standing[id] = None;
    }

    /// Calls `act` with the registers of all vCPUs while they stand.
    pub fn during<T>(
        &self,
        threads: &[JoinHandle<()>],
        act: impl FnOnce(Vec<Registers>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let registers = self.stop(threads);
        let result = registers.and_then(act);
        self.lock().wanted = false;
        self.changed.notify_all();
        result
    }

    fn stop(&self, threads: &[JoinHandle<()>]) -> Result<Vec<Registers>, Error> {
        let mut state = self.lock();
        state.wanted = true;
        while state.standing.iter().any(Option::is_none) {
            for thread in threads {
                pthread_kill(thread.as_pthread_t(), SIGNAL)
                    .map_err(|errno| Error::host("stop a vCPU")(errno.into()))?;
            }
            let waited = self.changed.wait_timeout(state, AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.standing.iter_mut().filter_map(Option::take).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
