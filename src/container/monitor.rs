//! What stands for a container on the host: from its record to its exit code.
//!
//! A [`Monitor`] is made by [`Monitor::reserve`], which writes the record, and ended by [`Monitor::leave`], whatever happened in
//! between. A process of its own carries one (`rt monitor`, or a foreground `rt run`: [`super::carry`]); a shim has a thread for
//! each. What it acquires is owned by a value whose end releases it.

use std::fs::OpenOptions;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};

use super::block;
use super::console::Console;
use super::flow::Flow;
use super::follow;
use super::hooks::{self, Moment};
use super::network::{Choice, Watched};
use super::notify;
use super::preserve::{self, Preserved};
use super::record::{self, Record, Status, Store};
use super::resolver::Resolver;
use super::signals::{Signals, Watch};
use super::stdio::{Pumps, Stdio, Streams};
use super::watch::Watcher;
use super::{Error, KILLED, Request, lifecycle, pod, system, validate, wait};
use crate::agent::{self, Agent, OomWatch};
use crate::bundle::{Bundle, Role, guest_spec};
use crate::cgroup::{self, Limits, Overhead};
use crate::config::{Config, Guest};
use crate::fsd::{Entry, FsdSpec};
use crate::hypervisor::{BLOCK_SLOTS, select};
use crate::log;
use crate::sandbox::{self, Booting, Bounds, Joined, Plan, Sandbox, Size, Timeline};
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
pub struct Monitor {
    request: Request,
    config: Config,
    bundle: Bundle,
    role: Role,
    store: Store,
    /// As this process last wrote it; other verbs may have changed its status since.
    record: Record,
    /// The network namespace that the bundle asks for.
    wanted_network: Choice,
    network: Option<Watched>,
    /// The host's cgroups that the bundle asks for.
    cgroup: Option<cgroup::Plan>,
    /// This process's way out of them.
    member: Option<cgroup::Member>,
    place: Option<Place>,
    /// Entries of the share, to be kept in step with the host's mounts once the container is made; then what does so.
    followed: Vec<Entry>,
    follower: Option<Watcher>,
    pumps: Option<Pumps>,
    /// The container was created (and started, if so asked), and whoever asked knows.
    is_up: bool,
    pub timeline: Timeline,
}

/// The machine that a container runs in.
enum Place {
    /// This container's: it ends with it.
    Own(Box<Sandbox>),
    /// Another container's.
    Joined(Joined),
}

impl Place {
    fn agent(&self) -> &Agent {
        match self {
            Self::Own(sandbox) => &sandbox.agent,
            Self::Joined(joined) => &joined.agent,
        }
    }

    /// Pidfds: the end of one of them is the container's.
    fn processes(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Own(sandbox) => vec![sandbox.vm.pidfd(), sandbox.fsd.pidfd()],
            Self::Joined(joined) => vec![joined.pidfd()],
        }
    }
}

/// What failed because a signal had ended the attempt, and the machine with it, is told as that.
fn cause(watch: &Option<Watch>, error: Error) -> Error {
    watch.as_ref().and_then(Watch::interrupted).map_or(error, Error::Interrupted)
}

impl Monitor {
    /// Reads the bundle and writes the record. From here on [`Monitor::leave`] has to be called.
    ///
    /// # Errors
    /// [`Error`]; nothing has been acquired then.
    pub fn reserve(request: &Request, config: &Config, timeline: Timeline) -> Result<Self, Error> {
        validate(&request.id)?;
        let bundle = Bundle::load(&request.bundle)?;
        let config = config.annotated(bundle.spec.annotations().as_ref())?;
        let role = bundle.role()?;
        if let Role::Member(sandbox) = &role {
            validate(sandbox)?;
        }
        // What joins a machine has that one's network.
        let wanted_network = match role {
            Role::Member(_) => Choice::New,
            Role::Alone | Role::Sandbox => Choice::of(&bundle.spec, &config.network)?,
        };
        let store = Store::new(request.root.clone());
        let mut record = Record::new(&request.id, &bundle);
        let is_member = matches!(role, Role::Member(_));
        // A process that stands for several containers cannot be in the groups of all: it stays in its machine's.
        let cgroup = match bundle.cgroups_path() {
            Some(path) if !(is_member && request.shared_monitor) => {
                cgroup::Plan::new(path, request.systemd_cgroup)?
            }
            _ => None,
        };
        record.cgroups = cgroup.as_ref().map(cgroup::Plan::paths).unwrap_or_default();
        record.monitor = ProcessId::of(std::process::id() as i32);
        record.shared_monitor = request.shared_monitor;
        if let Role::Member(sandbox) = &role {
            record.sandbox = Some(sandbox.clone());
        }
        store.create(&record)?;
        Ok(Self {
            request: request.clone(),
            config,
            bundle,
            role,
            store,
            record,
            wanted_network,
            network: None,
            cgroup,
            member: None,
            place: None,
            followed: Vec::new(),
            follower: None,
            pumps: None,
            is_up: false,
            timeline,
        })
    }

    /// Starts a machine, or joins one, and creates the container in it. With `signals`, those that come to this process are the container's from now on.
    ///
    /// A machine's helpers die with the *thread* that calls this.
    ///
    /// # Errors
    /// [`Error`]
    pub fn create(&mut self, streams: Streams, signals: Option<Signals>) -> Result<(), Error> {
        let preserved = self.request.preserve.take()?;
        let notify = self.request.notify_socket.as_ref().map(|_| notify::mount(&self.request.id));
        share::lay_mount_points(&self.bundle, notify.as_slice());
        let (spec, watch) = match self.role.clone() {
            Role::Member(sandbox) => self.join(&sandbox, signals)?,
            Role::Alone | Role::Sandbox => self.boot(signals)?,
        };
        let console = self.make(spec, streams, preserved).map_err(|error| cause(&watch, error))?;
        if let Some(watch) = watch {
            let agent = self.agent()?.clone();
            watch.forward_to(&agent, &self.request.id, console).map_err(Error::Interrupted)?;
        }
        Ok(())
    }

    /// Lets the created container's process run.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(&mut self) -> Result<(), Error> {
        let agent = match hooks::has_start_hooks(&self.record.hooks) {
            true => self.agent()?.patient(),
            false => self.agent()?.clone(),
        };
        agent.start_container(&self.request.id)?;
        self.timeline.mark("container.started");
        self.record = self.store.change(&self.request.id, |record| record.status = Status::Running)?;
        hooks::run_all(Moment::Poststart, &self.record, Status::Running);
        Ok(())
    }

    /// Leaves the timeline for `rt trace`: before whoever asked for the container knows of it, and may ask for that.
    pub fn keep_timeline(&self) {
        if let Err(error) = self.timeline.save(&self.store.path(&self.request.id)) {
            tracing::debug!("the timeline is not kept: {error}");
        }
    }

    /// Whoever asked for the container knows of it: its record stays until it is deleted, where the request says so.
    pub fn is_known(&mut self) {
        self.is_up = true;
    }

    /// The agent of the container's machine.
    ///
    /// # Errors
    /// [`Error::NotRunning`] before [`Monitor::create`] and after [`Monitor::wait`].
    pub fn agent(&self) -> Result<&Agent, Error> {
        Ok(self.place.as_ref().ok_or(Error::NotRunning)?.agent())
    }

    /// What its process writes, since [`Monitor::create`].
    ///
    /// # Errors
    /// [`Error::NotRunning`] before.
    pub fn flow(&self) -> Result<Arc<Flow>, Error> {
        Ok(self.pumps.as_ref().ok_or(Error::NotRunning)?.flow())
    }

    /// Waits for the end of the container's process and of its output, and ends the machine if it is this container's: its exit code.
    ///
    /// # Errors
    /// [`Error`]; of a machine that was another container's and has ended the exit code is that of SIGKILL.
    pub fn wait(&mut self) -> Result<u8, Error> {
        let place = self.place.take().ok_or(Error::NotRunning)?;
        let pumps = self.pumps.take();
        self.watch_oom(place.agent());
        let result = wait::for_exit(place.agent(), &self.request.id, "", &place.processes());
        if let Some(pumps) = &pumps {
            pumps.flow().tell();
        }
        self.follower = None;
        if let Some(network) = &mut self.network {
            network.stop();
        }
        let limit =
            self.record.vm.as_ref().map(|vm| lifecycle::end_limit(vm, &self.config)).unwrap_or_default();
        let finish = |pumps: Option<Pumps>| pumps.into_iter().for_each(|pumps| pumps.finish(limit));
        match (result, place) {
            (Ok(exit), place) => {
                self.timeline.mark("container.exited");
                finish(pumps);
                self.timeline.mark("container.drained");
                if exit.oom_kills > 0 {
                    tell_oom(&self.bundle.dir);
                }
                match place {
                    Place::Own(sandbox) => sandbox.end(&mut self.timeline),
                    Place::Joined(joined) => drop(joined),
                }
                Ok(exit.code)
            }
            (Err(error), Place::Own(mut sandbox)) => {
                // A lost connection is most often the first sign of a dead VM, whose own last words say more.
                let error = match is_lost(&error) && sandbox.dies_soon() {
                    true => sandbox.cause_of_death().into(),
                    false => error,
                };
                // First the end of the guest, which is the end of its streams; then what it had still written.
                drop(sandbox);
                finish(pumps);
                Err(error)
            }
            (Err(error), Place::Joined(joined)) => {
                let ended = is_lost(&error) && joined.has_ended();
                drop(joined);
                finish(pumps);
                if !ended {
                    return Err(error);
                }
                tracing::warn!("the virtual machine of the pod has ended, and this container with it");
                Ok(KILLED)
            }
        }
    }

    /// Leaves the record as a stopped container's, or removes it where nobody is to see it.
    ///
    /// # Errors
    /// The record cannot be written or removed.
    pub fn leave(&mut self) -> Result<(), Error> {
        self.follower = None;
        self.pumps = None;
        self.place = None;
        if let Some(Err(error)) =
            self.network.take().map(|network| network.remove(&self.store, &self.request.id))
        {
            tracing::warn!("{}", log::chain(&error));
        }
        let keep = self.is_up && self.request.keep;
        // A process that goes on must not keep the groups of a container that has ended.
        if let Some(member) = self.member.take_if(|_| self.request.shared_monitor) {
            member.leave();
        }
        let left = pod::leave(&self.store, &self.config, &self.request.id);
        if keep {
            match left {
                Ok(()) | Err(Error::State(record::Error::Missing(_))) => {}
                // The deletion will try again; the exit code is worth more than this.
                Err(error) => tracing::warn!("{}", log::chain(&error)),
            }
            return match self.store.change(&self.request.id, |record| record.status = Status::Stopped) {
                // Deleted by force meanwhile.
                Err(record::Error::Missing(_)) => Ok(()),
                other => Ok(other.map(drop)?),
            };
        }
        left?;
        let state = self.store.lock(&self.request.id)?;
        if let Some(member) = self.member.take() {
            member.leave();
        }
        // The record last: as long as it is there, what it names can be removed.
        cgroup::remove(&self.record.cgroups)?;
        state.remove()?;
        hooks::run_all(Moment::Poststop, &self.record, Status::Stopped);
        Ok(())
    }

    /// Starts a machine for the container: its spec as the guest gets it.
    fn boot(&mut self, signals: Option<Signals>) -> Result<(Spec, Option<Watch>), Error> {
        let share = share::plan(&self.request.id, &self.bundle, &[])?;
        let spec = guest_spec(&self.bundle.spec, &share.paths, None);
        self.followed = share.followed.clone();
        let booting = self.launch(share)?;
        let watch = signals.map(|signals| signals.watch_boot(Some(booting.vm().pidfd()))).transpose();
        let watch = watch.map_err(system("watch signals"))?;
        let namespace = self.wanted_network.enter(self.request.shared_monitor)?;
        let network = self.wanted_network.network(&self.config.network, &namespace, self.record.size);
        self.record = self.store.change(&self.request.id, |record| record.network = network)?;
        self.run_hooks()?;
        let network = Watched::new(namespace)?;
        // While the guest boots. A VM that does not boot is a reason why nothing can be plugged, so its error goes first.
        let attached = network.attach(&self.store, &self.request.id);
        self.timeline.mark("network.attached");
        let network = self.network.insert(network);
        let hostname = self.bundle.spec.hostname().clone().unwrap_or_default();
        let is_away = self.member.is_some() && booting.vm().makes_template();
        let ready = booting.ready(&hostname, &mut self.timeline);
        let sandbox = ready.map_err(|error| cause(&watch, error.into()))?;
        if is_away {
            // Before anything of the container's runs in it.
            cgroup::admit(&self.record.cgroups, sandbox.vm.record().pid)?;
        }
        let resolver = Resolver::new(&self.bundle);
        self.record = network
            .configure(&self.store, &self.request.id, attached?, &sandbox.agent, resolver)
            .map_err(|error| cause(&watch, error))?;
        if self.role == Role::Sandbox {
            network.forward_ports(&sandbox.agent)?;
        }
        self.timeline.mark("network.configured");
        self.place = Some(Place::Own(Box::new(sandbox)));
        Ok((spec, watch))
    }

    /// Joins the machine of another container: likewise.
    fn join(&mut self, sandbox: &str, signals: Option<Signals>) -> Result<(Spec, Option<Watch>), Error> {
        let watch = signals.map(|signals| signals.watch_boot(None)).transpose();
        let watch = watch.map_err(system("watch signals"))?;
        self.enter_cgroup(0, self.bundle.resources().cloned().as_ref())?;
        let membership = pod::join(&self.store, &self.config, &self.request.id, &self.bundle, sandbox)?;
        self.record = membership.record;
        self.followed = membership.share.followed;
        if let Some(lack) = membership.size.and_then(|size| size.lacks(self.bundle.resources())) {
            tracing::warn!(
                "container {} may use more than the virtual machine of its pod has, which does not grow further: {lack}; let the \
                 sandbox's annotations tell the pod's limits, or raise hypervisor.grow_vcpus and grow_memory_mib",
                self.request.id
            );
        }
        self.timeline.mark("rt.joined");
        self.run_hooks()?;
        let timeout = Duration::from_millis(self.config.agent.timeout_ms);
        self.place = Some(Place::Joined(sandbox::join(&membership.vm, timeout)?));
        self.timeline.mark("agent.connected");
        let spec = guest_spec(&self.bundle.spec, &membership.share.paths, Some(&membership.namespaces));
        Ok((spec, watch))
    }

    fn launch(&mut self, share: share::Plan) -> Result<Booting, Error> {
        let guest = Guest::find(&self.config)?;
        let state_dir = self.store.path(&self.request.id);
        let (hypervisor, warning) = select::select(&self.config)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        self.timeline.mark("rt.backend-selected");
        let is_sandbox = self.role == Role::Sandbox;
        // A pause container's own limits say nothing of its pod.
        let resources = match is_sandbox {
            true => self.bundle.sandbox_resources(),
            false => self.bundle.resources().cloned(),
        };
        let size = Size::new(resources.as_ref(), &self.config.hypervisor);
        let mut bounds = Bounds::new(size, resources.as_ref(), is_sandbox, &self.config.hypervisor);
        // Emulated processors take turns in one thread: more of them are worth nothing to who has not asked for them.
        if hypervisor.emulates() && self.config.hypervisor.grow_vcpus.is_none() {
            bounds.most.vcpus = size.vcpus;
        }
        if is_sandbox {
            let from = if resources.is_some() { "its annotations" } else { "the configuration" };
            tracing::info!("the pod has {} vCPUs and {} MiB, by {from}", size.vcpus, size.memory_mib);
        }
        self.enter_cgroup(size.memory_mib, resources.as_ref())?;
        let spec = FsdSpec {
            id: self.request.id.clone(),
            entries: share.new,
            cache: self.config.share.cache,
            grows: is_sandbox || !share.followed.is_empty(),
            limits: self.config.jail,
        };
        // Others may bring theirs.
        let disks = if is_sandbox { BLOCK_SLOTS } else { share::block::wanted(&self.bundle.spec).len() };
        let plan = Plan::new(&self.request.id, &state_dir, &self.config, &guest, &bounds, disks, spec);
        self.timeline.mark("rt.planned");
        let booting = sandbox::launch(&plan, &*hypervisor, &mut self.timeline)?;
        if let Some(member) = self.member.as_ref().filter(|_| booting.vm().makes_template()) {
            // The memory of a template, and of the boot that it is made of, is no single container's to pay for.
            member.send_home(booting.vm().record().pid);
        }
        self.record = self.store.change(&self.request.id, |record| {
            record.vm = Some(booting.vm().record());
            record.fsd = ProcessId::of(booting.fsd().pid());
            record.share = share.used;
            record.size = Some(size);
            record.bounds = Some(bounds);
            record.resources = resources.unwrap_or_default();
        })?;
        Ok(booting)
    }

    /// Moves this process into the bundle's cgroup, so that all that it starts is born there.
    fn enter_cgroup(&mut self, machine_mib: u32, resources: Option<&LinuxResources>) -> Result<(), Error> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        match cgroup.enter(&limits(&self.config, machine_mib, resources)) {
            Ok(member) => self.member = Some(member),
            Err(error) if self.request.rootless && error.is_denied() => {
                tracing::warn!("going on without a cgroup: {}", log::chain(&error));
            }
            Err(error) => {
                // It was there before, and somebody keeps it so.
                if matches!(error, cgroup::Error::Frozen(_)) {
                    self.record.cgroups.clear();
                }
                return Err(error.into());
            }
        }
        self.timeline.mark("rt.cgroup-entered");
        Ok(())
    }

    /// Those that run before the container is created; where a guest boots, it does so meanwhile.
    fn run_hooks(&self) -> Result<(), Error> {
        hooks::run(Moment::Prestart, &self.record)?;
        Ok(hooks::run(Moment::CreateRuntime, &self.record)?)
    }

    fn make(
        &mut self,
        mut spec: Spec,
        streams: Streams,
        preserved: Vec<Preserved>,
    ) -> Result<Option<Console>, Error> {
        let process = self.bundle.spec.process().as_ref();
        let size = process.and_then(|process| process.console_size());
        let terminal = self.bundle.terminal();
        let (console, ends) = streams.open(terminal, self.request.console_socket.as_deref(), size)?;
        let place = self.place.as_ref().ok_or(Error::NotRunning)?;
        let (stdio, mut names) = Stdio::open(place.agent(), terminal, ends)?;
        if let Place::Joined(joined) = place {
            names.lifeline = joined.lifeline;
        }
        let moving = preserve::open(preserved, place.agent(), &mut names)?;
        preserve::announce(&mut spec, self.request.listen_fds);
        if let Some(socket) = &self.request.notify_socket {
            notify::prepare(&mut spec, &self.request.id);
            names.notify = random::non_zero().map_err(system("make a stream's name"))?;
            let stream = place.agent().open_stream(names.notify)?;
            notify::forward(stream, socket).map_err(system("forward notifications"))?;
        }
        let size = console.as_ref().and_then(Console::size);
        block::give(&self.store, &self.record, &self.bundle.spec, &mut spec, place.agent())?;
        place.agent().create_container(&self.request.id, to_json(&spec), names, size)?;
        self.timeline.mark("container.created");
        let sandbox = self.record.sandbox.as_ref().unwrap_or(&self.request.id);
        self.follower =
            follow::start(&self.store, sandbox, std::mem::take(&mut self.followed), place.agent())?;
        self.record = self.store.change(&self.request.id, |record| record.status = Status::Created)?;
        let mut pumps = stdio.start().map_err(system("start the standard streams"))?;
        moving.start(&mut pumps).map_err(system("start the preserved descriptors' streams"))?;
        self.pumps = Some(pumps);
        Ok(console)
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

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Agent(agent::Error::Transport { .. }) | Error::NotRunning)
}

fn to_json(spec: &Spec) -> Vec<u8> {
    serde_json::to_vec(spec).expect("a spec has only string keys")
}

/// CRI-O looks for this file.
fn tell_oom(bundle: &Path) {
    let file = bundle.join("oom");
    // Where the bundle has a link of that name, it leads nowhere.
    let made = OpenOptions::new().write(true).create(true).custom_flags(libc::O_NOFOLLOW).open(&file);
    if let Err(error) = made {
        tracing::warn!("cannot write {}: {error}", file.display());
    }
}
