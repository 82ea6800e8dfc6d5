//! One sandbox: a virtual machine and the file server of its share.
//!
//! One straight line: [`launch`] starts VMM and file server, [`Booting::ready`] waits for the agent, [`Sandbox::end`]. Whatever is
//! acquired ends with the value that owns it, and with the process that started it (PR_SET_PDEATHSIG). The
//! caller has written its state record before.

mod bounds;
mod joined;
pub mod network;
mod size;
mod timeline;
mod trace;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

pub use bounds::Bounds;
pub use joined::{Joined, join};
pub use size::Size;
pub use timeline::Timeline;
pub use trace::Form as TraceForm;

use crate::agent::{self, Agent};
use crate::config::{AgentLog, Config, Guest, NetworkModel};
use crate::fsd::{self, Fsd, FsdSpec};
use crate::hypervisor::{self, Hypervisor, Vm, VmFds, VmSpec};
use crate::sys::pidfd;

/// virtio-fs tag of a sandbox's share.
const SHARE_TAG: &str = "rt";

/// Why a sandbox did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Fsd(#[from] fsd::Error),
    #[error("cannot boot the guest's kernel {kernel} with the initramfs {initramfs}")]
    Boot {
        kernel: PathBuf,
        initramfs: PathBuf,
        #[source]
        source: hypervisor::Error,
    },
    #[error("the virtual machine ended ({}){}", .0.status, .0.tail())]
    VmEnded(Box<hypervisor::Ending>),
    #[error("the virtual machine has ended")]
    Gone,
    #[error("cannot connect to the virtual machine")]
    Process(#[source] std::io::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error("cannot watch the file server")]
    Watch(#[source] io::Error),
}

/// What a sandbox is to be. Plain data.
#[derive(Debug, Clone)]
pub struct Plan {
    pub vm: VmSpec,
    pub share: FsdSpec,
    /// How long the guest may take to boot and greet.
    pub boot_timeout: Duration,
    /// How long its agent may take to answer a call.
    pub timeout: Duration,
}

impl Plan {
    /// The plan for a sandbox that starts with one container.
    pub fn new(
        id: &str,
        state_dir: &Path,
        config: &Config,
        guest: &Guest,
        bounds: &Bounds,
        disks: usize,
        share: FsdSpec,
    ) -> Self {
        let settings = &config.hypervisor;
        Self {
            vm: VmSpec {
                id: id.into(),
                vcpus: bounds.start.vcpus,
                max_vcpus: bounds.most.vcpus,
                memory_mib: bounds.start.memory_mib,
                max_memory_mib: bounds.most.memory_mib,
                kernel: guest.kernel.clone(),
                initramfs: guest.initramfs.clone(),
                kernel_parameters: kernel_parameters(config),
                entropy: settings.entropy,
                page_reporting: settings.page_reporting,
                // The agent's records go there.
                console: settings.console || config.agent.log_level == AgentLog::Debug,
                state_dir: state_dir.into(),
                network: config.network.model != NetworkModel::None,
                block_slots: disks.min(hypervisor::BLOCK_SLOTS),
                share_tag: SHARE_TAG.into(),
            },
            share,
            boot_timeout: Duration::from_millis(config.agent.boot_timeout_ms),
            timeout: Duration::from_millis(config.agent.timeout_ms),
        }
    }
}

/// What the guest's kernel and its agent are told beside what the machine needs.
fn kernel_parameters(config: &Config) -> String {
    let own = &config.hypervisor.kernel_parameters;
    match config.agent.log_level {
        AgentLog::Warning => own.clone(),
        AgentLog::Debug => format!("{own} rt.log=debug").trim_start().into(),
    }
}

/// A started sandbox whose agent has answered. Dropping it kills its processes.
pub struct Sandbox {
    pub agent: Agent,
    // Before the VM: its death would otherwise be seen as that of the VM.
    pub vm: Box<dyn Vm>,
    pub fsd: Fsd,
}

/// A sandbox that boots: its processes run, the agent has not answered yet.
pub struct Booting {
    vm: Box<dyn Vm>,
    fsd: Fsd,
    // For the error when they do not boot.
    kernel: PathBuf,
    initramfs: PathBuf,
    deadline: Instant,
    timeout: Duration,
}

/// Starts the processes of a sandbox.
///
/// # Errors
/// [`Error`]; nothing is left running then.
pub fn launch(plan: &Plan, hypervisor: &dyn Hypervisor, timeline: &mut Timeline) -> Result<Booting, Error> {
    let slowness = if hypervisor.emulates() { 4 } else { 1 };
    let timeout = plan.timeout * slowness;
    let deadline = Instant::now() + plan.boot_timeout * slowness;
    let (backend, frontend) = fsd::socket()?;
    let fsd = fsd::launch(&plan.share, backend)?;
    timeline.mark("rt.fsd-started");
    let vm = hypervisor.launch(&plan.vm, VmFds { share: frontend })?;
    timeline.mark("rt.vmm-started");
    end_together(&*vm, &fsd).map_err(Error::Watch)?;
    let VmSpec { kernel, initramfs, .. } = plan.vm.clone();
    Ok(Booting { vm, fsd, kernel, initramfs, deadline, timeout })
}

/// Ends the VM when its file server ends: without its files the guest answers nothing, and whoever waits for an answer, in a
/// boot above all, would wait until the time is up.
fn end_together(vm: &dyn Vm, fsd: &Fsd) -> io::Result<()> {
    let (vm, fsd) = (vm.pidfd().try_clone_to_owned()?, fsd.pidfd().try_clone_to_owned()?);
    let watch = move || {
        while let Err(Errno::EINTR) =
            poll(&mut [PollFd::new(fsd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
        {}
        // In the end that is in order the VM has gone first.
        let _ = pidfd::kill(vm.as_fd(), Signal::SIGKILL);
    };
    std::thread::Builder::new().name("fsd-watch".into()).spawn(watch).map(drop)
}

impl Booting {
    /// The VM, for the record and for whoever may have to stop it.
    pub fn vm(&self) -> &dyn Vm {
        &*self.vm
    }

    /// The file server.
    pub fn fsd(&self) -> &Fsd {
        &self.fsd
    }

    /// Waits for the agent and greets it.
    ///
    /// # Errors
    /// [`Error`]; nothing is left running then.
    pub fn ready(mut self, hostname: &str, timeline: &mut Timeline) -> Result<Sandbox, Error> {
        match self.greet(hostname, timeline) {
            Ok(agent) => Ok(Sandbox { agent, vm: self.vm, fsd: self.fsd }),
            Err(error) => match failure(&mut self.fsd) {
                Some(cause) => {
                    tracing::debug!("{error}");
                    Err(cause)
                }
                None => Err(error),
            },
        }
    }

    fn greet(&mut self, hostname: &str, timeline: &mut Timeline) -> Result<Agent, Error> {
        let beacon = self.vm.accept(self.deadline).map_err(|source| Error::Boot {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            source,
        })?;
        agent::read_beacon(beacon, self.deadline)?;
        timeline.mark("agent.beacon");
        let agent = Agent::connect(&self.vm.record().vsock, self.timeout)?;
        let greeting = agent.hello(SHARE_TAG, hostname)?;
        timeline.mark("agent.hello");
        tracing::debug!(
            kernel = greeting.kernel_release,
            init_ms = greeting.init_ns / 1_000_000,
            ready_ms = greeting.ready_ns / 1_000_000,
            "the agent answered"
        );
        Ok(agent)
    }
}

/// The file server's end, if that is what ended the sandbox. It ends in order when the VMM is gone, and takes the VMM with it when it
/// fails: name the cause, not the consequence.
fn failure(fsd: &mut Fsd) -> Option<Error> {
    let ended =
        matches!(poll(&mut [PollFd::new(fsd.pidfd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1..));
    let ending = ended.then(|| fsd.end())?;
    (!ending.in_order).then(|| fsd::Error::Ended(ending).into())
}

impl Sandbox {
    /// Whether one of the sandbox's processes ends within a moment: a lost connection often comes first.
    pub fn dies_soon(&self) -> bool {
        let mut fds = [self.vm.pidfd(), self.fsd.pidfd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        matches!(poll(&mut fds, PollTimeout::from(1000u16)), Ok(1..))
    }

    /// Which of the sandbox's processes ended, as an error. Called when one of them has.
    pub fn cause_of_death(&mut self) -> Error {
        failure(&mut self.fsd).unwrap_or_else(|| Error::VmEnded(Box::new(self.vm.end())))
    }

    /// Ends the sandbox: dirty data is written back as far as the guest still answers, then its processes are killed.
    pub fn end(mut self, timeline: &mut Timeline) {
        if let Err(error) = self.agent.shutdown() {
            tracing::warn!("the guest did not write its files back: {error}");
        }
        timeline.mark("agent.shutdown");
        // Both at once: the kernel takes its time to undo a VM.
        self.vm.kill();
        self.fsd.kill();
        let ending = self.vm.end();
        self.fsd.end();
        timeline.extend(ending.timeline);
        timeline.mark("rt.vm-ended");
        if !ending.console.is_empty() {
            tracing::debug!(console = ending.console, "the guest's console");
        }
    }
}
