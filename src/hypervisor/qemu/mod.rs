//! QEMU as the VMM: with KVM, or with its software emulation (TCG) where the host has no KVM that carries a stock guest.
//!
//! Two processes per VM, both jailed and both dying with rt: QEMU, which `rt qemu` becomes ([`process`]), and `rt vsockd`
//! ([`vsockd`]), which serves rt's own vsock device to it. QEMU opens nothing but the kernel and the initramfs: the
//! file server, vsock and QMP reach it as connected sockets.
//!
//! ```text
//!   rt ──CONNECT socket, uplink── vsockd ──vhost-user──┐
//!   rt ──QMP, console, log─────────────────────────── QEMU
//!   fsd ──vhost-user───────────────────────────────────┘
//! ```

mod command_line;
mod find;
pub mod process;
mod qmp;
pub mod vsockd;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, pipe2};

pub use command_line::Accelerator;
pub use find::{MINIMUM_VERSION, find};

use super::process::VmmProcess;
use super::{Ending, Error, Hypervisor, Kind, Vm, VmFds, VmRecord, VmSpec, VsockAddress, vsock};
use crate::jail::{self, Spawn};

/// Name of the CONNECT socket in a VM's state directory.
const VSOCK_SOCKET: &str = "vsock.sock";
/// Name of the socket by which QEMU and vsockd meet; it is gone again before the guest runs.
const LINK_SOCKET: &str = "vhost.sock";
/// The backend: one QEMU binary and one accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    pub binary: PathBuf,
    pub accelerator: Accelerator,
}

/// A VM that QEMU carries.
#[derive(Debug)]
struct QemuVm {
    /// First: QEMU goes before what it is connected to.
    qemu: VmmProcess,
    vsockd: Option<Helper>,
    uplink: UnixStream,
    socket: PathBuf,
    /// Until it was asked.
    monitor: Option<qmp::Monitor>,
    binary: PathBuf,
}

impl Hypervisor for Qemu {
    fn launch(&self, spec: &VmSpec, fds: VmFds) -> Result<Box<dyn Vm>, Error> {
        check_file(&spec.kernel, Some(b"\x7fELF"))?;
        check_file(&spec.initramfs, None)?;
        let (console, console_writer) = pipe()?;
        let (log, log_writer) = pipe()?;
        let socket = spec.state_dir.join(VSOCK_SOCKET);
        let vsock =
            start_vsockd(spec, &socket, log_writer.try_clone().map_err(launch_error("duplicate a pipe"))?)?;
        let (monitor, qemu_monitor) = UnixStream::pair().map_err(launch_error("make a socket for QMP"))?;

        let child = Spawn {
            verb: "qemu",
            args: process::arguments(&self.binary, self.accelerator, spec),
            // In the order of command_line's descriptors.
            fds: vec![fds.share, vsock.link.into(), qemu_monitor.into()],
            stdout: Some(console_writer),
            stderr: Some(log_writer),
        };
        let child = child.spawn()?;
        let qemu = VmmProcess::new(child, console, log, process::explain)?;
        Ok(Box::new(QemuVm {
            qemu,
            vsockd: Some(vsock.helper),
            uplink: vsock.uplink,
            socket,
            monitor: Some(qmp::Monitor::new(monitor)),
            binary: self.binary.clone(),
        }))
    }

    fn emulates(&self) -> bool {
        self.accelerator == Accelerator::Tcg
    }
}

impl Vm for QemuVm {
    fn record(&self) -> VmRecord {
        VmRecord {
            kind: Kind::Qemu,
            pid: self.qemu.pid(),
            start_time: self.qemu.start_time(),
            vsock: VsockAddress::Unix(self.socket.clone()),
        }
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.qemu.pidfd()
    }

    fn accept(&mut self, deadline: Instant) -> Result<OwnedFd, Error> {
        match self.qemu.wait_readable_or_end(self.uplink.as_fd(), deadline) {
            Err(Error::Ended(ending)) => Err(self.explain_end(*ending)),
            Err(Error::Deadline(ending)) => Err(self.explain_silence(*ending)),
            Err(other) => Err(other),
            Ok(()) => vsock::receive_connection(&self.uplink).map_err(launch_error("its vsock server ended")),
        }
    }

    fn end(&mut self) -> Ending {
        let ending = self.qemu.end();
        self.vsockd = None;
        let _ = fs::remove_file(&self.socket);
        ending
    }
}

impl QemuVm {
    /// An old QEMU refuses options that it does not know. Its version is asked only then: that takes longer than
    /// all else that rt does before QEMU runs.
    fn explain_end(&self, ending: Ending) -> Error {
        match find::version(&self.binary) {
            Ok(version) if version < MINIMUM_VERSION => find::too_old(&self.binary, version),
            _ => Error::Ended(Box::new(ending)),
        }
    }

    fn explain_silence(&mut self, mut ending: Ending) -> Error {
        let state = self.monitor.take().and_then(|monitor| monitor.run_state().ok());
        if let Some(words) = state.as_ref().and_then(qmp::trouble) {
            ending.log.push_str(words);
        }
        Error::Deadline(Box::new(ending))
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.end();
    }
}

/// A helper process whose end nobody asks about: killed and reaped when dropped.
#[derive(Debug)]
struct Helper(jail::Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.pid), Signal::SIGKILL);
        let _ = waitid(Id::PIDFd(self.0.pidfd.as_fd()), WaitPidFlag::WEXITED);
    }
}

/// A started vsockd, and the ends of its sockets that are not its own.
struct Vsockd {
    helper: Helper,
    /// For QEMU.
    link: UnixStream,
    uplink: UnixStream,
}

fn start_vsockd(spec: &VmSpec, socket: &Path, log: OwnedFd) -> Result<Vsockd, Error> {
    let sockets = || -> io::Result<(UnixListener, UnixStream, UnixListener, UnixStream, UnixStream)> {
        // vhost-user-backend only serves a connection that it accepts itself: QEMU's waits in the backlog.
        let meeting = spec.state_dir.join(LINK_SOCKET);
        let server = vsock::listen_unix(&meeting)?;
        let link = vsock::connect_plain(&meeting);
        fs::remove_file(&meeting)?;
        let listener = vsock::listen_unix(socket)?;
        let (uplink, below) = UnixStream::pair()?;
        Ok((server, link?, listener, uplink, below))
    };
    let (server, link, listener, uplink, below) =
        sockets().map_err(launch_error("make sockets in its state directory"))?;
    let spawn = Spawn {
        verb: "vsockd",
        args: vec![(&spec.id).into()],
        // In the order of vsockd's descriptors.
        fds: vec![server.into(), listener.into(), below.into()],
        stdout: None,
        stderr: Some(log),
    };
    let child = spawn.spawn().inspect_err(|_| {
        let _ = fs::remove_file(socket);
    })?;
    Ok(Vsockd { helper: Helper(child), link, uplink })
}

/// What would otherwise be QEMU's words about a path in its jail.
fn check_file(path: &Path, magic: Option<&[u8; 4]>) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::File { path: path.to_owned(), reason });
    let mut start = [0; 4];
    let mut open = || -> io::Result<fs::Metadata> {
        let mut file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        file.read_exact(&mut start)?;
        Ok(metadata)
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => refuse("it is empty".into()),
        Err(error) => refuse(error.to_string()),
        Ok(metadata) if !metadata.is_file() => refuse("it is not a file".into()),
        Ok(_) if magic.is_some_and(|magic| *magic != start) => {
            refuse("it is not an uncompressed ELF kernel (vmlinux)".into())
        }
        Ok(metadata) if metadata.mode() & 0o004 == 0 => {
            refuse("QEMU runs as a user of its own, which may not read it; run chmod a+r on it".into())
        }
        Ok(_) => Ok(()),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| launch_error("make a pipe")(errno.into()))
}

fn launch_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Launch { what, source }
}
