//! The monitor: carries one container from its record to its exit code.
//!
//! [`Monitor::carry`] is one straight line. Whatever it acquires is owned by a value whose end releases it, so that an
//! error anywhere undoes all that came before.

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::console::Console;
use super::hooks::{self, Moment};
use super::notify;
use super::preserve::{self, Preserved};
use super::record::{self, Record, Status, Store};
use super::signals::{Signals, Watch};
use super::state::StateView;
use super::stdio::{Pumps, Stdio};
use super::{Error, Request, system, wait};
use crate::agent::{self, Agent, OomWatch};
use crate::bundle::{Bundle, guest_spec};
use crate::cgroup::{self, Limits, Overhead};
use crate::config::{Config, Guest};
use crate::hypervisor::select;
use crate::log;
use crate::sandbox::{self, Booting, Plan, Sandbox, Size, Timeline};
use crate::share;
use crate::sys::pidfd::ProcessId;
use crate::sys::random;

/// Threads of VMM, file server and monitor beyond the container's own limit of processes.
const TASKS_OVERHEAD: u32 = 512;

/// What the host's cgroups of a container get.
pub fn limits<'a>(config: &Config, machine_mib: u32, resources: Option<&'a LinuxResources>) -> Limits<'a> {
    let overhead = Overhead {
        machine_mib,
        memory_mib: config.cgroup.memory_overhead_mib,
        cpu_percent: config.cgroup.cpu_overhead_percent,
        tasks: TASKS_OVERHEAD,
    };
    Limits { resources, overhead }
}

/// One container's monitor.
pub struct Monitor<'a> {
    pub request: &'a Request,
    pub config: &'a Config,
    pub bundle: &'a Bundle,
    pub store: &'a Store,
    /// As this process last wrote it; other verbs may have changed its status since.
    pub record: Record,
    /// The host's cgroups that the bundle asks for.
    pub cgroup: Option<cgroup::Plan>,
    /// This process's way out of them.
    pub member: Option<cgroup::Member>,
    /// The container was created (and started, if so asked), and whoever asked knows.
    pub is_up: bool,
    pub timeline: Timeline,
}

impl Monitor<'_> {
    /// Starts the sandbox, creates the container in it, starts it if so asked, waits for its process, and ends the sandbox.
    ///
    /// # Errors
    /// [`Error`]
    pub fn carry(
        &mut self,
        signals: Signals,
        preserved: Vec<Preserved>,
        up: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<u8, Error> {
        let notify = self.request.notify_socket.as_ref().map(|_| notify::mount(&self.request.id));
        share::lay_mount_points(self.bundle, notify.as_slice());
        let share = share::plan(&self.request.id, self.bundle)?;
        let mut spec = guest_spec(&self.bundle.spec, &share.paths);
        if notify.is_some() {
            notify::prepare(&mut spec, &self.request.id);
        }
        let spec = serde_json::to_vec(&spec).expect("a spec has only string keys");
        let booting = self.launch(share)?;
        let watch = signals.watch_boot(booting.vm().pidfd()).map_err(system("watch signals"))?;
        let sandbox = self.boot(booting, &watch)?;
        let (pumps, console) = self.create(&sandbox, spec, preserved)?;
        watch.forward_to(&sandbox.agent, &self.request.id, console).map_err(Error::Interrupted)?;
        if self.request.start {
            self.start(&sandbox)?;
        }
        up()?;
        self.is_up = true;
        self.finish(sandbox, pumps)
    }

    /// Leaves the record as a stopped container's, or removes it where nobody is to see it.
    ///
    /// # Errors
    /// The record cannot be written or removed.
    pub fn leave(&mut self) -> Result<(), Error> {
        if self.is_up && self.request.keep {
            return match self.store.change(&self.request.id, |record| record.status = Status::Stopped) {
                // Deleted by force meanwhile.
                Err(record::Error::Missing(_)) => Ok(()),
                other => Ok(other.map(drop)?),
            };
        }
        let state = self.store.lock(&self.request.id)?;
        if let Some(member) = self.member.take() {
            member.leave();
        }
        // The record last: as long as it is there, what it names can be removed.
        cgroup::remove(&self.record.cgroups)?;
        state.remove()?;
        let state = StateView::for_hook(&self.record, Status::Stopped);
        if let Err(error) = hooks::run(Moment::Poststop, &self.record.hooks, &state) {
            // As the runtime-spec has it: the container is gone already.
            tracing::warn!("{error}");
        }
        Ok(())
    }

    fn launch(&mut self, share: share::Plan) -> Result<Booting, Error> {
        let guest = Guest::find(&self.config.hypervisor)?;
        let state_dir = self.store.path(&self.request.id);
        let resources = self.bundle.resources();
        let size = Size::new(resources, &self.config.hypervisor);
        self.enter_cgroup(size)?;
        let plan = Plan::new(&self.request.id, &state_dir, self.config, &guest, size, share.entries);
        self.timeline.mark("rt.planned");
        let wanted = self.request.hypervisor.or(self.config.hypervisor.kind);
        let (hypervisor, warning) = select::select(wanted, &self.config.hypervisor)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        self.timeline.mark("rt.backend-selected");
        let booting = sandbox::launch(&plan, &*hypervisor, &mut self.timeline)?;
        self.record = self.store.change(&self.request.id, |record| {
            record.vm = Some(booting.vm().record());
            record.machine_mib = size.memory_mib;
            record.fsd = ProcessId::of(booting.fsd().pid());
        })?;
        Ok(booting)
    }

    /// Moves this process into the bundle's cgroup, so that all that it starts is born there.
    fn enter_cgroup(&mut self, size: Size) -> Result<(), Error> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        match cgroup.enter(&limits(self.config, size.memory_mib, self.bundle.resources())) {
            Ok(member) => self.member = Some(member),
            Err(error) if self.request.rootless && error.is_denied() => {
                tracing::warn!("going on without a cgroup: {}", log::chain(&error));
            }
            Err(error) => return Err(error.into()),
        }
        self.timeline.mark("rt.cgroup-entered");
        Ok(())
    }

    /// Runs the hooks while the guest boots, then waits for its agent.
    fn boot(&mut self, booting: Booting, signals: &Watch) -> Result<Sandbox, Error> {
        let state = StateView::for_hook(&self.record, Status::Creating);
        hooks::run(Moment::Prestart, &self.record.hooks, &state)?;
        hooks::run(Moment::CreateRuntime, &self.record.hooks, &state)?;
        let hostname = self.bundle.spec.hostname().clone().unwrap_or_default();
        booting.ready(&hostname, &mut self.timeline).map_err(|error| match signals.interrupted() {
            Some(signal) => Error::Interrupted(signal),
            None => error.into(),
        })
    }

    fn create(
        &mut self,
        sandbox: &Sandbox,
        spec: Vec<u8>,
        preserved: Vec<Preserved>,
    ) -> Result<(Pumps, Option<Console>), Error> {
        let process = self.bundle.spec.process().as_ref();
        let size = process.and_then(|process| process.console_size());
        let terminal = self.bundle.terminal();
        let console = Console::open(terminal, self.request.console_socket.as_deref(), size)?;
        let vsock = sandbox.vm.record().vsock;
        let (stdio, mut names) = Stdio::open(&vsock, terminal)?;
        let moving = preserve::open(preserved, &vsock, &mut names)?;
        if let Some(socket) = &self.request.notify_socket {
            names.notify = random::non_zero().map_err(system("make a stream's name"))?;
            let stream = agent::open_stream(&vsock, names.notify)?;
            notify::forward(stream, socket).map_err(system("forward notifications"))?;
        }
        let size = console.as_ref().and_then(Console::size);
        sandbox.agent.create_container(&self.request.id, spec, names, size)?;
        self.timeline.mark("container.created");
        self.record = self.store.change(&self.request.id, |record| record.status = Status::Created)?;
        let mut pumps = stdio.start(console.as_ref()).map_err(system("start the standard streams"))?;
        moving.start(&mut pumps).map_err(system("start the preserved descriptors' streams"))?;
        Ok((pumps, console))
    }

    fn start(&mut self, sandbox: &Sandbox) -> Result<(), Error> {
        sandbox.agent.start_container(&self.request.id, hooks::has_start_hooks(&self.record.hooks))?;
        self.timeline.mark("container.started");
        self.record = self.store.change(&self.request.id, |record| record.status = Status::Running)?;
        let state = StateView::for_hook(&self.record, Status::Running);
        if let Err(error) = hooks::run(Moment::Poststart, &self.record.hooks, &state) {
            // As the runtime-spec has it: logged, and the container goes on.
            tracing::warn!("{error}");
        }
        Ok(())
    }

    fn finish(&mut self, mut sandbox: Sandbox, pumps: Pumps) -> Result<u8, Error> {
        self.watch_oom(&sandbox.agent);
        let processes = [sandbox.vm.pidfd(), sandbox.fsd.pidfd()];
        let result = wait::for_exit(&sandbox.agent, &self.request.id, "", &processes);
        match result {
            Ok(exit) => {
                self.timeline.mark("container.exited");
                pumps.finish();
                self.timeline.mark("container.drained");
                if exit.oom_kills > 0 {
                    tell_oom(&self.bundle.dir);
                }
                sandbox.end(&mut self.timeline);
                Ok(exit.code)
            }
            Err(error) => {
                // A lost connection is most often the first sign of a dead VM, whose own last words say more.
                let lost = matches!(error, Error::Agent(agent::Error::Transport { .. }) | Error::NotRunning);
                let error = if lost && sandbox.dies_soon() { sandbox.cause_of_death().into() } else { error };
                // First the end of the guest, which is the end of its streams; then what it had still written.
                drop(sandbox);
                pumps.finish();
                Err(error)
            }
        }
    }

    /// A container may go on after one of its processes was killed: its caller learns of it at once.
    fn watch_oom(&self, agent: &Agent) {
        let (agent, id, bundle) = (agent.clone(), self.request.id.clone(), self.bundle.dir.clone());
        let watch = move || {
            if let Ok(OomWatch { kills: 1.., .. }) = agent.watch_oom(&id, 0) {
                tell_oom(&bundle);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("oom".into()).spawn(watch) {
            tracing::warn!("cannot watch the container's memory: {error}");
        }
    }
}

/// CRI-O looks for this file.
fn tell_oom(bundle: &Path) {
    let file = bundle.join("oom");
    if let Err(error) = std::fs::write(&file, "") {
        tracing::warn!("cannot write {}: {error}", file.display());
    }
}
