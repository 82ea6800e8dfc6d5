//! The monitor: carries one container from its record to its exit code.
//!
//! [`Monitor::carry`] is one straight line. Whatever it acquires is owned by a value whose end releases it, so that an
//! error anywhere undoes all that came before.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::console::Console;
use super::hooks::{self, Moment};
use super::record::{Record, Status, Store};
use super::signals::{Signals, Watch};
use super::state::StateView;
use super::stdio::{Pumps, Stdio};
use super::{Error, Request, system};
use crate::bundle::{Bundle, guest_spec};
use crate::config::{Config, Guest};
use crate::hypervisor::select;
use crate::sandbox::{self, Booting, Plan, Sandbox, Timeline};
use crate::share;
use crate::sys::pidfd::ProcessId;

/// One container's monitor.
pub struct Monitor<'a> {
    pub request: &'a Request,
    pub config: &'a Config,
    pub bundle: &'a Bundle,
    pub store: &'a Store,
    /// As it is on disk.
    pub record: Record,
    pub timeline: Timeline,
}

impl Monitor<'_> {
    /// Starts the sandbox, creates and starts the container in it, waits for its process, and ends the sandbox.
    ///
    /// # Errors
    /// [`Error`]
    pub fn carry(&mut self, signals: Signals) -> Result<u8, Error> {
        let share = share::plan(&self.request.id, self.bundle)?;
        let spec = guest_spec(&self.bundle.spec, &share.paths);
        let spec = serde_json::to_vec(&spec).expect("a spec has only string keys");
        let booting = self.launch(share)?;
        let signals = signals.watch(booting.vm().pidfd()).map_err(system("watch signals"))?;
        let sandbox = self.boot(booting, &signals)?;
        let (pumps, console) = self.create(&sandbox, spec)?;
        signals.forward_to(&sandbox.agent, &self.request.id, console).map_err(Error::Interrupted)?;
        self.start(&sandbox)?;
        self.finish(sandbox, pumps)
    }

    fn launch(&mut self, share: share::Plan) -> Result<Booting, Error> {
        let guest = Guest::find(&self.config.hypervisor)?;
        let state_dir = self.store.path(&self.request.id);
        let plan = Plan::new(&self.request.id, &state_dir, self.config, &guest, share.entries);
        self.timeline.mark("rt.planned");
        let wanted = self.request.hypervisor.or(self.config.hypervisor.kind);
        let (hypervisor, warning) = select::select(wanted, &self.config.hypervisor)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        self.timeline.mark("rt.backend-selected");
        let booting = sandbox::launch(&plan, &*hypervisor, &mut self.timeline)?;
        self.record.vm = Some(booting.vm().record());
        self.record.fsd = ProcessId::of(booting.fsd().pid());
        self.store.update(&self.record)?;
        Ok(booting)
    }

    /// Runs the hooks while the guest boots, then waits for its agent.
    fn boot(&mut self, booting: Booting, signals: &Watch) -> Result<Sandbox, Error> {
        let state = StateView::for_hook(&self.record, Status::Creating);
        hooks::run(Moment::Prestart, self.bundle.spec.hooks(), &state)?;
        hooks::run(Moment::CreateRuntime, self.bundle.spec.hooks(), &state)?;
        let hostname = self.bundle.spec.hostname().clone().unwrap_or_default();
        booting.ready(&hostname, &mut self.timeline).map_err(|error| match signals.interrupted() {
            Some(signal) => Error::Interrupted(signal),
            None => error.into(),
        })
    }

    fn create(&mut self, sandbox: &Sandbox, spec: Vec<u8>) -> Result<(Pumps, Option<Console>), Error> {
        let terminal = self.bundle.terminal();
        let (stdio, names) = Stdio::open(&sandbox.vm.record().vsock, terminal)?;
        let console = match terminal {
            true => Some(Console::caller().map_err(system("use the terminal"))?),
            false => None,
        };
        let size = console.as_ref().and_then(Console::size);
        sandbox.agent.create_container(&self.request.id, spec, names, size)?;
        self.timeline.mark("container.created");
        self.record.status = Status::Created;
        self.store.update(&self.record)?;
        let pumps = stdio.start(console.as_ref()).map_err(system("start the standard streams"))?;
        Ok((pumps, console))
    }

    fn start(&mut self, sandbox: &Sandbox) -> Result<(), Error> {
        sandbox.agent.start_container(&self.request.id)?;
        self.timeline.mark("container.started");
        self.record.status = Status::Running;
        self.store.update(&self.record)?;
        let state = StateView::for_hook(&self.record, Status::Running);
        if let Err(error) = hooks::run(Moment::Poststart, self.bundle.spec.hooks(), &state) {
            // As the runtime-spec has it: logged, and the container goes on.
            tracing::warn!("{error}");
        }
        Ok(())
    }

    fn finish(&mut self, mut sandbox: Sandbox, pumps: Pumps) -> Result<u8, Error> {
        match wait(&mut sandbox, &self.request.id) {
            Ok(code) => {
                self.timeline.mark("container.exited");
                pumps.finish();
                self.timeline.mark("container.drained");
                sandbox.end(&mut self.timeline);
                Ok(code)
            }
            Err(error) => {
                // First the end of the guest, which is the end of its streams; then what it had still written.
                drop(sandbox);
                pumps.finish();
                Err(error)
            }
        }
    }

    /// Runs the poststop hooks; a failure is logged only, since the container is gone already.
    pub fn poststop(&self) {
        let state = StateView::for_hook(&self.record, Status::Stopped);
        if let Err(error) = hooks::run(Moment::Poststop, self.bundle.spec.hooks(), &state) {
            tracing::warn!("{error}");
        }
    }
}

/// Waits for the container's process, or for the death of what carries it.
fn wait(sandbox: &mut Sandbox, id: &str) -> Result<u8, Error> {
    let done = EventFd::new().map_err(|error| system("make an eventfd")(error.into()))?;
    let notify: OwnedFd = done.as_fd().try_clone_to_owned().map_err(system("duplicate a descriptor"))?;
    let agent = sandbox.agent.clone();
    let id = id.to_owned();
    let waiter = move || {
        let result = agent.wait_process(&id);
        let _ = nix::unistd::write(&notify, &1u64.to_ne_bytes());
        result
    };
    let waiter =
        std::thread::Builder::new().name("wait".into()).spawn(waiter).map_err(system("start a thread"))?;
    loop {
        let mut fds = [done.as_fd(), sandbox.vm.pidfd(), sandbox.fsd.pidfd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(system("wait for the container")(error.into())),
            Ok(_) => {}
        }
        let [done, died @ ..] = fds.map(|fd| fd.any() == Some(true));
        if done {
            break;
        }
        if died.contains(&true) {
            return Err(sandbox.cause_of_death().into());
        }
    }
    match waiter.join().unwrap_or_else(|_| unreachable!("panics abort")) {
        // A lost connection is most often the first sign of a dead VM, whose own last words say more.
        Err(crate::agent::Error::Transport { .. }) if sandbox.dies_soon() => {
            Err(sandbox.cause_of_death().into())
        }
        other => Ok(other?),
    }
}
