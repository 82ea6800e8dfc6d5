//! Waiting for a process of the guest, or for the death of what carries it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::{Error, system};
use crate::agent::{Agent, Exit};

/// Waits until a process of a container has ended; an empty `exec_id` means the container's own.
///
/// # Errors
/// [`Error::NotRunning`] when one of `carriers` (pidfds) ends first; what the agent says.
pub fn for_exit(agent: &Agent, id: &str, exec_id: &str, carriers: &[BorrowedFd<'_>]) -> Result<Exit, Error> {
    if carriers.is_empty() {
        return Ok(agent.wait_process(id, exec_id)?);
    }
    let done = EventFd::new().map_err(|error| system("make an eventfd")(error.into()))?;
    let notify: OwnedFd = done.as_fd().try_clone_to_owned().map_err(system("duplicate a descriptor"))?;
    let (agent, id, exec_id) = (agent.clone(), id.to_owned(), exec_id.to_owned());
    let waiter = move || {
        let result = agent.wait_process(&id, &exec_id);
        let _ = nix::unistd::write(&notify, &1u64.to_ne_bytes());
        result
    };
    let waiter =
        std::thread::Builder::new().name("wait".into()).spawn(waiter).map_err(system("start a thread"))?;
    loop {
        let mut fds = vec![PollFd::new(done.as_fd(), PollFlags::POLLIN)];
        fds.extend(carriers.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(system("wait for the container")(error.into())),
            Ok(_) => {}
        }
        if fds[0].any() == Some(true) {
            break;
        }
        if fds[1..].iter().any(|fd| fd.any() == Some(true)) {
            return Err(Error::NotRunning);
        }
    }
    Ok(waiter.join().unwrap_or_else(|_| unreachable!("panics abort"))?)
}
