//! rt's own VMM on KVM.
//!
//! In two processes. Here is the parent's side: [`Kvm`] opens what only the host has, and starts `rt vmm`, which gets everything as
//! descriptors and opens nothing itself. That process's side is [`vmm`], and what it is made of: `memory` and `image` lay the
//! guest out, `acpi` and `cpuid` tell it what it is, `vcpu` and `machine` run it.
//!
//! A guest is booted once for each kind of machine; what it then is, is kept as a `template`, from which the others start:
//! `snapshot` takes and restores it, with `pause` and `registers`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use self::template::Template;
use self::working_set::Observer;
use super::process::VmmProcess;
use super::{Ending, Error as VmError, Hypervisor, Kind, Vm, VmFds, VmRecord, VmSpec, vsock};
use crate::{config, devices, jail, sys};

mod acpi;
mod cpuid;
mod image;
mod lines;
mod machine;
mod memmap;
mod memory;
mod pause;
mod plug;
mod probe;
mod program;
mod registers;
mod snapshot;
mod template;
mod vcpu;
mod vmm;
mod working_set;

pub use plug::{memory as plugged_memory, plug, plug_block};
pub use probe::{DEVICE, Step, Unusable, address_bits, examine, probe};
pub use template::{
    is_any_of_use as has_carried_guests, remove as remove_template, stale as stale_templates,
};

/// In the sandbox's state directory.
const VSOCK: &str = "vsock.sock";
const CONTROL: &str = "control.sock";

/// The built-in hypervisor.
#[derive(Debug, Clone)]
pub struct Kvm {
    pub snapshot: config::Snapshot,
}

/// A VM of the built-in hypervisor.
#[derive(Debug)]
struct KvmVm {
    process: VmmProcess,
    uplink: UnixStream,
    vsock: PathBuf,
    control: PathBuf,
    /// What becomes of a template when the guest is up, and the VMM's ear for that.
    template: Option<(Template, UnixStream)>,
    /// Of a machine that made one.
    observer: Option<Observer>,
}

/// What `rt vmm` is told.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Order {
    spec: VmSpec,
    template: Option<TemplateUse>,
}

/// What it does with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum TemplateUse {
    Start,
    Make,
}

impl Hypervisor for Kvm {
    fn launch(&self, spec: &VmSpec, fds: VmFds) -> Result<Box<dyn Vm>, VmError> {
        let launch = |what| move |source| VmError::Launch { what, source };
        let kvm = probe::open()
            .map_err(|unusable| VmError::Unusable { backend: "kvm", reason: unusable.reason })?;
        let kernel = open("kernel", &spec.kernel)?;
        let initramfs = open("initramfs", &spec.initramfs)?;
        let template = Template::find(spec, &self.snapshot);
        let order = Order { spec: spec.clone(), template: template.as_ref().map(Template::to_do) };
        let json = serde_json::to_vec(&order).map_err(|error| launch("its description")(error.into()))?;
        let spec_file = sys::fd::memory_file(c"spec", &json).map_err(launch("its description"))?;
        let (uplink, vmm_uplink) = UnixStream::pair().map_err(launch("its uplink"))?;
        let (console, stdout) = pipe().map_err(launch("its console"))?;
        let (log, stderr) = pipe().map_err(launch("its log"))?;
        let path = spec.state_dir.join(VSOCK);
        let listener = vsock::listen_unix(&path).map_err(launch("its vsock socket"))?;
        let control = spec.state_dir.join(CONTROL);
        let undo = || [&path, &control].map(std::fs::remove_file);
        let plugs = vsock::listen_unix(&control)
            .map_err(launch("its control socket"))
            .inspect_err(|_| drop(undo()))?;
        let mut fds = vec![
            spec_file,
            kvm,
            kernel,
            initramfs,
            fds.share,
            listener.into(),
            vmm_uplink.into(),
            plugs.into(),
        ];
        let template = match template {
            None => None,
            Some(template) => {
                let (ours, theirs) = UnixStream::pair().map_err(launch("its template"))?;
                fds.push(template.file().try_clone().map_err(launch("its template"))?.into());
                fds.push(theirs.into());
                Some((template, ours))
            }
        };
        let child = jail::Spawn {
            verb: "vmm",
            args: vec![OsString::from(&spec.id)],
            fds,
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        let started = child.spawn().map_err(VmError::from);
        let process =
            started.and_then(|child| VmmProcess::new(child, console, log, &spec.state_dir, explain));
        match process {
            Err(error) => {
                let _ = undo();
                Err(error)
            }
            Ok(process) => {
                Ok(Box::new(KvmVm { process, uplink, vsock: path, control, template, observer: None }))
            }
        }
    }
}

impl Vm for KvmVm {
    fn record(&self) -> VmRecord {
        VmRecord {
            kind: Kind::Kvm,
            pid: self.process.pid(),
            start_time: self.process.start_time(),
            vsock: self.vsock.clone(),
            control: self.control.clone(),
        }
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    fn makes_template(&self) -> bool {
        matches!(self.template, Some((Template::Make(_), _)))
    }

    fn accept(&mut self, deadline: Instant) -> Result<OwnedFd, VmError> {
        let uplink = std::os::fd::AsFd::as_fd(&self.uplink);
        self.process.wait_readable_or_end(uplink, deadline)?;
        match vsock::receive_connection(&self.uplink) {
            Ok(connection) => {
                if let Some((template, vmm)) = self.template.take() {
                    self.observer = template.finish(&vmm, deadline);
                }
                Ok(connection)
            }
            // The VMM closes the uplink by ending only; a moment later it has ended.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(VmError::Ended(Box::new(self.process.end_by_itself(deadline))))
            }
            Err(source) => Err(VmError::Launch { what: "its uplink", source }),
        }
    }

    fn kill(&mut self) {
        if let Some(observer) = self.observer.take() {
            observer.end();
        }
        self.process.kill();
    }

    fn end(&mut self) -> Ending {
        let ending = self.process.end();
        let _ = [&self.vsock, &self.control].map(std::fs::remove_file);
        ending
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.end();
    }
}

fn open(what: &'static str, path: &Path) -> Result<OwnedFd, VmError> {
    let refuse = |reason| VmError::File { what, path: path.to_owned(), reason };
    let failed = |error: io::Error| refuse(error.to_string());
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(refuse("it is not a regular file".to_owned()));
    }
    Ok(file.into())
}

/// Reading end, writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    PowerOff,
    /// It rebooted, or panicked (`panic=-1`).
    Reset,
    TripleFault,
    /// KVM cannot go on, and why.
    Kvm(String),
    /// A device cannot go on, and why.
    Device(String),
}

/// Exit codes of `rt vmm`, in words for [`Ending::status`].
fn explain(code: i32) -> &'static str {
    match code {
        0 => "the guest switched itself off",
        1 => "the VM could not be started",
        3 => "the guest reset itself: it panicked or rebooted",
        4 => "the guest crashed (triple fault)",
        5 => "KVM cannot run this guest",
        6 => "a device failed",
        _ => "",
    }
}

impl End {
    fn exit_code(&self) -> u8 {
        match self {
            End::PowerOff => 0,
            End::Reset => 3,
            End::TripleFault => 4,
            End::Kvm(_) => 5,
            End::Device(_) => 6,
        }
    }
}

impl From<devices::Error> for End {
    fn from(error: devices::Error) -> Self {
        End::Device(one_line(&error))
    }
}

/// The verb `rt vmm`. `args` is the sandbox's ID, for ps(1). Marks of the timeline and at most one other line go to standard
/// error, the guest's console to standard output.
pub fn vmm_main(_args: &[OsString]) -> ExitCode {
    match vmm::run() {
        Ok(end) => {
            if let End::Kvm(reason) | End::Device(reason) = &end {
                tell(reason);
            }
            ExitCode::from(end.exit_code())
        }
        Err(error) => {
            tell(&one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// In one write: half a reason is none.
fn tell(reason: &str) {
    let line = format!("vmm: {reason}\n");
    eprint!("{line}");
}

/// What `rt vmm` may fail with before the guest runs.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {what}")]
    Host {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}")]
    Kvm {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("the VM's description is damaged")]
    Spec(#[source] serde_json::Error),
    #[error(
        "a VM has 1 to 32 vCPUs and 32 to 65,536 MiB, not {vcpus} (later {max_vcpus}) and {memory_mib} (later \
             {max_memory_mib})"
    )]
    Shape { vcpus: u8, max_vcpus: u8, memory_mib: u32, max_memory_mib: u32 },
    #[error("cannot load {path}: {reason}")]
    Image { path: PathBuf, reason: String },
    #[error("{memory_mib} MiB of memory are too few for kernel and initramfs")]
    NoRoom { memory_mib: u32 },
    #[error("cannot use the kernel's command line: {reason}")]
    CommandLine { reason: &'static str },
    #[error("cannot write what the guest boots from to its memory")]
    Memory,
    #[error(transparent)]
    Device(#[from] devices::Error),
    #[error(transparent)]
    Jail(#[from] jail::Error),
}

impl Error {
    /// For `map_err`, as the next two.
    fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    /// Boot structures lie in memory that every guest has.
    fn memory<T>(_: T) -> Self {
        Self::Memory
    }
}

/// An error and its sources.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(&format!(": {source}"));
        next = source.source();
    }
    line
}
