//! A running sandbox, seen from a process that did not start it: one that stands for another container of its pod.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;
use crate::agent::Agent;
use crate::hypervisor::VmRecord;
use crate::sys::pidfd::ProcessId;
use crate::sys::random;

/// How long a machine whose agent cannot be heard any more may take to be seen dead: its memory is given back before.
const LAST_MOMENT_MS: u16 = 10_000;

/// A place in another's sandbox. The container is killed when this is dropped, or this process ends.
pub struct Joined {
    pub agent: Agent,
    vmm: OwnedFd,
    /// The stream whose end is the container's, and its number.
    _lifeline: UnixStream,
    pub lifeline: u64,
}

/// Connects to a sandbox's agent.
///
/// # Errors
/// [`Error::Gone`] when its VMM has ended; what connecting says.
pub fn join(vm: &VmRecord, timeout: Duration) -> Result<Joined, Error> {
    let process = ProcessId { pid: vm.pid, start_time: vm.start_time };
    let vmm = process.open().map_err(Error::Process)?.ok_or(Error::Gone)?;
    let agent = Agent::connect(&vm.vsock, timeout)?;
    let lifeline = random::non_zero().map_err(Error::Process)?;
    let stream = agent.open_stream(lifeline)?;
    Ok(Joined { agent, vmm, _lifeline: stream, lifeline })
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Whoever waits for an answer on it, which the guest may never give, waits for nothing any more.
        self.agent.close();
    }
}

impl Joined {
    /// A pidfd of the sandbox's VMM.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.vmm.as_fd()
    }

    /// Whether the machine has ended, or does within a moment: a lost connection often comes first.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.vmm.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::from(LAST_MOMENT_MS)), Ok(1..))
    }
}
