//! PID 1: boots the guest, forks the server and one runner per container, and reaps everything that ends.
//!
//! It never starts a thread, so every fork of it is whole. A container's first process is the runner's child and comes to
//! PID 1 when the runner ends; its exit is reported to the server always after its creation, even when both had happened
//! before PID 1 looked: what a runner has to say is read before any reaped process is attributed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;

use crate::cmdline::Parameters;
use crate::link::{self, Create, Event, Exec, Outcome, Place, Request};
use crate::{boot, cgroup, exec, kmsg, runner, server, sys};

/// A forked runner that has not ended, or a process of which is not known yet whether it was executed.
struct Runner {
    sequence: u64,
    socket: OwnedFd,
    /// Its outcome has been passed on.
    told: bool,
    /// It says that it is about to be executed: its terminal's master.
    ready: Option<Option<OwnedFd>>,
}

/// PID 1's state.
struct Supervisor {
    server: Pid,
    link: OwnedFd,
    runners: BTreeMap<i32, Runner>,
    /// Processes of containers: their creation's sequence number.
    processes: BTreeMap<i32, u64>,
    /// This process's own PID namespace.
    pids: OwnedFd,
}

/// [`Parameters::end_by_reset`], once known.
static END_BY_RESET: AtomicBool = AtomicBool::new(false);

/// Says what went wrong and ends the machine. PID 1 that merely returned would be a kernel panic.
fn give_up(message: &str) -> ! {
    kmsg::error!("{message}; ending the virtual machine");
    sys::end_machine(END_BY_RESET.load(Ordering::Relaxed));
    // The machine cannot end by itself: the host ends it when the agent stays silent.
    loop {
        nix::unistd::pause();
    }
}

/// A panic is reported where the host sees it. In PID 1 it ends the machine; elsewhere the process, which PID 1 notices.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if std::process::id() == 1 {
            give_up(&format!("the agent broke: {panic}"));
        }
        kmsg::error!("the agent's process {} broke: {panic}", std::process::id());
    }));
}

/// The whole life of PID 1.
pub fn run(started_ns: u64) -> ! {
    let parameters = match boot::first() {
        Ok(parameters) => parameters,
        Err(error) => give_up(&chain(&error)),
    };
    END_BY_RESET.store(parameters.end_by_reset, Ordering::Relaxed);
    match start(started_ns, &parameters).map(Supervisor::serve) {
        Ok(reason) => give_up(&reason),
        Err(reason) => give_up(&reason),
    }
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Boots and forks the server.
fn start(started_ns: u64, parameters: &Parameters) -> Result<Supervisor, String> {
    let listeners = boot::open_listeners().map_err(|error| chain(&error))?;
    let mut beacon = boot::Beacon::start(parameters.beacon_port).map_err(|error| chain(&error))?;
    boot::rest(&mut beacon).map_err(|error| chain(&error))?;
    let (link, server_link) = link::pair().map_err(|error| format!("cannot make a socket pair: {error}"))?;
    let pids =
        File::open("/proc/self/ns/pid").map_err(|error| format!("cannot open the PID namespace: {error}"))?;
    let pids = OwnedFd::from(pids);
    // Before the fork: no child may end unnoticed.
    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block().map_err(|error| format!("cannot block SIGCHLD: {error}"))?;
    match sys::fork() {
        Err(error) => Err(format!("cannot fork: {error}")),
        Ok(None) => {
            drop(link);
            let _ = children.thread_unblock();
            // The connection to the host is PID 1's to finish.
            drop(beacon);
            let reason = server::serve(listeners, server_link, started_ns);
            kmsg::error!("the agent's server ended: {reason}");
            sys::exit_now(1)
        }
        Ok(Some(server)) => {
            drop(listeners);
            drop(server_link);
            beacon.finish().map_err(|error| chain(&error))?;
            Ok(Supervisor { server, link, runners: BTreeMap::new(), processes: BTreeMap::new(), pids })
        }
    }
}

impl Supervisor {
    /// Works until nothing is left to work for, and returns why.
    fn serve(mut self) -> String {
        let children = SigSet::from(Signal::SIGCHLD);
        let signals = match SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) {
            Ok(signals) => signals,
            Err(error) => return format!("cannot watch for ended processes: {error}"),
        };
        loop {
            let (ended, asked, told) = {
                let mut wait = vec![
                    PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.link.as_fd(), PollFlags::POLLIN),
                ];
                let waiting = self.runners.values().filter(|runner| !runner.told);
                wait.extend(waiting.map(|runner| PollFd::new(runner.socket.as_fd(), PollFlags::POLLIN)));
                match poll(&mut wait, PollTimeout::NONE) {
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(error) => return format!("cannot wait for events: {error}"),
                }
                let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
                (ready(&wait[0]), ready(&wait[1]), wait[2..].iter().any(ready))
            };
            if told {
                self.read_outcomes();
            }
            if ended {
                while let Ok(Some(_)) = signals.read_signal() {}
                if let Err(reason) = self.reap() {
                    return reason;
                }
            }
            if asked && let Err(reason) = self.answer() {
                return reason;
            }
        }
    }

    /// One request of the server.
    fn answer(&mut self) -> Result<(), String> {
        match link::receive::<Request>(self.link.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Request::Create(create), stdio))) => {
                let sequence = create.sequence;
                if let Err(error) = self.fork_runner(create, stdio) {
                    let message = format!("cannot fork a runner: {error}");
                    self.tell(&Event::Failed { sequence, message }, None);
                }
                Ok(())
            }
            Ok(Some((Request::Exec(exec), fds))) => {
                let sequence = exec.sequence;
                if let Err(message) = self.fork_exec(&exec, fds)? {
                    self.tell(&Event::Failed { sequence, message }, None);
                }
                Ok(())
            }
            Err(Errno::EAGAIN) => Ok(()),
            // The server's end is reaped next, with its status.
            Ok(None) => self.reap(),
            Err(error) => Err(format!("cannot read the server's request: {error}")),
        }
    }

    fn fork_runner(&mut self, create: Create, stdio: Vec<OwnedFd>) -> nix::Result<()> {
        let (socket, runner_socket) = link::pair()?;
        let sequence = create.sequence;
        match sys::fork()? {
            None => {
                let _ = SigSet::from(Signal::SIGCHLD).thread_unblock();
                runner::run(&create, stdio, runner_socket.as_fd());
                sys::exit_now(0)
            }
            Some(pid) => {
                self.runners.insert(pid.as_raw(), Runner { sequence, socket, told: false, ready: None });
                Ok(())
            }
        }
    }

    /// Forks a process into its cgroup and, for a container, its PID namespace. The outer failure is PID 1's own.
    fn fork_exec(&mut self, exec: &Exec, fds: Vec<OwnedFd>) -> Result<Result<(), String>, String> {
        let (pid, init, namespaces) = match exec.place {
            Place::Guest => (1, None, 0),
            Place::Container { sequence, namespaces } => {
                let container = self.processes.iter().find(|(_, other)| **other == sequence);
                // Not reaped yet, so the number is still its own.
                let init = container.and_then(|(&pid, _)| Some((pid, sys::pidfd_open(pid).ok()?)));
                let Some((pid, init)) = init else { return Ok(Err(exec::NOT_RUNNING.to_owned())) };
                (pid, Some(init), namespaces)
            }
        };
        let (socket, their_socket) = match link::pair() {
            Ok(pair) => pair,
            Err(error) => return Ok(Err(format!("cannot make a socket pair: {error}"))),
        };
        let joins = namespaces & libc::CLONE_NEWPID != 0;
        if joins
            && let Some(init) = &init
            && let Err(error) = setns(init, CloneFlags::CLONE_NEWPID)
        {
            return Ok(Err(match error {
                Errno::ESRCH => exec::NOT_RUNNING.to_owned(),
                error => format!("cannot join the container's PID namespace: {}", error.desc()),
            }));
        }
        let forked = cgroup::fork_into(&exec.cgroup, exec.cgroup_named, pid).map_err(|error| {
            match error.raw_os_error() {
                // The namespace's first process has ended.
                Some(libc::ENOMEM) if joins => exec::NOT_RUNNING.to_owned(),
                _ => cgroup::refusal(&exec.cgroup, &error),
            }
        });
        if let Ok(None) = forked {
            exec::run(exec, fds, init, their_socket.as_fd());
        }
        if joins && let Err(error) = setns(&self.pids, CloneFlags::CLONE_NEWPID) {
            return Err(format!("cannot return to the own PID namespace: {error}"));
        }
        Ok(forked.map(|pid| {
            if let Some(pid) = pid {
                let runner = Runner { sequence: exec.sequence, socket, told: false, ready: None };
                self.runners.insert(pid.as_raw(), runner);
            }
        }))
    }

    /// Reaps all that has ended; fails when the server has.
    fn reap(&mut self) -> Result<(), String> {
        loop {
            let (pid, code) = match sys::reap() {
                Ok(Some(ended)) => ended,
                Ok(None) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(format!("cannot reap: {error}")),
            };
            if pid == self.server.as_raw() {
                return Err(format!("the agent's server ended with code {code}"));
            }
            self.read_outcomes();
            if let Some(runner) = self.runners.remove(&pid) {
                if !runner.told {
                    let message = format!("it ended without a word, with code {code}");
                    self.tell(&Event::Failed { sequence: runner.sequence, message }, None);
                }
            } else if let Some(sequence) = self.processes.remove(&pid) {
                self.tell(&Event::Exited { sequence, code }, None);
            }
        }
    }

    /// Passes on what runners have to say.
    fn read_outcomes(&mut self) {
        let (mut events, mut executed) = (Vec::new(), Vec::new());
        for (&pid, runner) in self.runners.iter_mut().filter(|(_, runner)| !runner.told) {
            let sequence = runner.sequence;
            while !runner.told {
                match link::receive::<Outcome>(runner.socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
                    Ok(Some((Outcome::Created { pid, own_pid_namespace }, fds))) => {
                        runner.told = true;
                        self.processes.insert(pid, sequence);
                        let event = Event::Created { sequence, pid, own_pid_namespace };
                        events.push((event, fds.into_iter().next()));
                    }
                    Ok(Some((Outcome::Failed { message }, _))) => {
                        runner.told = true;
                        events.push((Event::Failed { sequence, message }, None));
                    }
                    Ok(Some((Outcome::Ready, fds))) => runner.ready = Some(fds.into_iter().next()),
                    Ok(None) => {
                        // One that ended in silence is told when it is reaped.
                        let Some(terminal) = runner.ready.take() else { break };
                        runner.told = true;
                        executed.push(pid);
                        self.processes.insert(pid, sequence);
                        events.push((Event::Created { sequence, pid, own_pid_namespace: false }, terminal));
                    }
                    Err(_) => break,
                }
            }
        }
        for pid in executed {
            self.runners.remove(&pid);
        }
        for (event, terminal) in events {
            self.tell(&event, terminal);
        }
    }

    fn tell(&self, event: &Event, terminal: Option<OwnedFd>) {
        let fds: Vec<_> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
        if let Err(error) = link::transmit(self.link.as_fd(), event, &fds) {
            kmsg::warning!("cannot tell the server of {event:?}: {error}");
        }
    }
}
