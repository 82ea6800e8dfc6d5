//! The loopback of a pod, for those on the host who look for it in the pod's network namespace: a port that is forwarded
//! (`kubectl port-forward`) is connected to at 127.0.0.1 there, and what listens at that address listens in the guest.
//!
//! A listener of ours gets all these connections ([`steer`]). For each the agent connects to the same port of the guest's loopback, and a
//! stream carries the bytes. Who connects is root on the host; the guest gives bytes and nothing else.

use std::io::{self, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::agent::{self, Agent};
use crate::log;
use crate::net::{self, Namespace};
use crate::sys::random;
use crate::sys::steer::{self, Steering};

/// Connections at once; what is more is closed.
const CONNECTIONS: usize = 256;

/// Dropped, it ends; connections that are open go on for as long as the guest does.
pub struct Ports {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Ports {
    /// Connections to the loopback of this namespace are from now on the guest's, by a thread which makes that so: nobody waits for it.
    /// Where the kernel does not allow it, the log says so.
    ///
    /// # Errors
    /// What eventfd(2) and clone(2) say.
    pub fn start(namespace: Namespace, agent: Agent) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let until = Arc::clone(&stop);
        let work = move || match open(&namespace) {
            Ok((listener, _steering)) => take_connections(&listener, &until, &agent),
            Err(error) => tracing::warn!(
                "ports of the pod's loopback cannot be forwarded from its network namespace: {}",
                log::chain(&error)
            ),
        };
        Ok(Self { stop, thread: Some(spawn(work)?) })
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name("ports".into()).stack_size(256 << 10).spawn(work)
}

/// In the namespace, where this thread stays.
fn open(namespace: &Namespace) -> Result<(TcpListener, Steering), net::Error> {
    namespace.enter()?;
    let listen = || {
        let listener = TcpListener::bind((steer::ADDRESS, 0))?;
        let steering = Steering::new(namespace.as_fd(), &listener)?;
        Ok((listener, steering))
    };
    listen().map_err(net::Error::Loopback)
}

fn take_connections(listener: &TcpListener, stop: &EventFd, agent: &Agent) {
    let open = Arc::new(());
    loop {
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[0].any() == Some(true) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return tracing::warn!("ports are no longer forwarded: {}", error.desc()),
        }
        if fds[1].any() != Some(true) {
            continue;
        }
        let Ok((connection, _)) = listener.accept() else { continue };
        if Arc::strong_count(&open) > CONNECTIONS {
            continue;
        }
        let (agent, place) = (agent.clone(), Arc::clone(&open));
        let carry = move || {
            if let Err(error) = carry(&connection, &agent) {
                tracing::debug!("a port was not forwarded: {}", log::chain(&error));
            }
            drop(place);
        };
        if let Err(error) = spawn(carry) {
            tracing::warn!("cannot start a thread for a port: {error}");
        }
    }
}

/// To its end. Whoever connected sees a port on which nobody listens as a connection that ends at once.
fn carry(connection: &TcpStream, agent: &Agent) -> Result<(), agent::Error> {
    let failed = agent::Error::Stream;
    connection.set_nodelay(true).map_err(failed)?;
    let port = connection.local_addr().map_err(failed)?.port();
    let number = random::non_zero().map_err(failed)?;
    let stream = agent.open_stream(number)?;
    agent.forward_port(number, port)?;
    let (from, to) = (connection.try_clone().map_err(failed)?, stream.try_clone().map_err(failed)?);
    let into_the_guest = spawn(move || {
        let _ = copy(&mut &from, &mut &to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let into_the_guest = into_the_guest.map_err(failed)?;
    if out_of_the_guest(&stream, connection).is_err() {
        // Nobody reads any more: nobody is to write either.
        let _ = stream.shutdown(Shutdown::Both);
        let _ = connection.shutdown(Shutdown::Both);
    }
    let _ = into_the_guest.join();
    Ok(())
}

fn out_of_the_guest(stream: &UnixStream, connection: &TcpStream) -> io::Result<()> {
    copy(&mut &*stream, &mut &*connection)?;
    connection.shutdown(Shutdown::Write)
}
