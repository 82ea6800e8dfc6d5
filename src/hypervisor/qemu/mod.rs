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

mod block;
mod command_line;
mod find;
mod memory;
mod plug;
pub mod process;
mod qmp;
pub mod vsockd;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, pipe2};

pub use block::plug as plug_block;
pub use command_line::Accelerator;
pub use find::{MINIMUM_VERSION, accelerators, find, version};
pub use memory::plugged as plugged_memory;
pub use plug::plug;

use super::process::VmmProcess;
use super::{Ending, Error, Hypervisor, Kind, Vm, VmFds, VmRecord, VmSpec, vsock};
use crate::jail::{self, Spawn};

/// Name of the CONNECT socket in a VM's state directory.
const VSOCK_SOCKET: &str = "vsock.sock";
/// Name of QMP's socket, on which QEMU listens.
const MONITOR_SOCKET: &str = "qmp.sock";
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
    vsockd: Option<Vsockd>,
    uplink: UnixStream,
    socket: PathBuf,
    monitor: PathBuf,
    binary: PathBuf,
}

impl Hypervisor for Qemu {
    fn launch(&self, spec: &VmSpec, fds: VmFds) -> Result<Box<dyn Vm>, Error> {
        check_file("kernel", &spec.kernel, Some(b"\x7fELF"))?;
        check_file("initramfs", &spec.initramfs, None)?;
        let (console, console_writer) = pipe()?;
        let (log, log_writer) = pipe()?;
        let socket = spec.state_dir.join(VSOCK_SOCKET);
        let (vsockd, link, uplink) =
            start_vsockd(spec, &socket, log_writer.try_clone().map_err(launch_error("duplicate a pipe"))?)?;
        let monitor = spec.state_dir.join(MONITOR_SOCKET);
        let listener = vsock::listen_unix(&monitor).map_err(launch_error("make a socket for QMP"))?;

        let child = Spawn {
            verb: "qemu",
            args: process::arguments(&self.binary, self.accelerator, spec),
            // In the order of command_line's descriptors.
            fds: vec![fds.share, link.into(), listener.into()],
            stdout: Some(console_writer),
            stderr: Some(log_writer),
        };
        let started = child.spawn().map_err(Error::from);
        let started =
            started.and_then(|child| VmmProcess::new(child, console, log, &spec.state_dir, process::explain));
        let qemu = started.inspect_err(|_| drop(fs::remove_file(&monitor)))?;
        Ok(Box::new(QemuVm {
            qemu,
            vsockd: Some(vsockd),
            uplink,
            socket,
            monitor,
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
            vsock: self.socket.clone(),
            control: self.monitor.clone(),
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
            Ok(()) => vsock::receive_connection(&self.uplink).map_err(|_| self.explain_lost_uplink()),
        }
    }

    fn kill(&mut self) {
        self.qemu.kill();
    }

    fn end(&mut self) -> Ending {
        let ending = self.qemu.end();
        let _ = fs::remove_file(&self.monitor);
        self.vsockd = None;
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

    /// vsockd is gone: with QEMU, whose end it notices sooner than others do, or alone.
    fn explain_lost_uplink(&mut self) -> Error {
        let mut qemu = [PollFd::new(self.qemu.pidfd(), PollFlags::POLLIN)];
        let ended = matches!(poll(&mut qemu, PollTimeout::from(1000_u16)), Ok(1..));
        let mut ending = self.end();
        if !ended {
            ending.status = "its vsock server ended".into();
        }
        self.explain_end(ending)
    }

    fn explain_silence(&mut self, mut ending: Ending) -> Error {
        let state = qmp::Monitor::connect(&self.monitor).and_then(qmp::Monitor::run_state).ok();
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

/// `rt vsockd`, whose end nobody asks about, and its socket in the state directory. Dropped, it is killed and
/// reaped, and the socket is gone.
#[derive(Debug)]
struct Vsockd {
    child: jail::Child,
    socket: PathBuf,
}

impl Drop for Vsockd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.pid), Signal::SIGKILL);
        let _ = waitid(Id::PIDFd(self.child.pidfd.as_fd()), WaitPidFlag::WEXITED);
        let _ = fs::remove_file(&self.socket);
    }
}

/// Starts vsockd; gives also QEMU's connection to it and rt's end of the uplink.
fn start_vsockd(
    spec: &VmSpec,
    socket: &Path,
    log: OwnedFd,
) -> Result<(Vsockd, UnixStream, UnixStream), Error> {
    let failed = launch_error("make sockets in its state directory");
    let (server, link) = connected_listener(&spec.state_dir.join(LINK_SOCKET)).map_err(failed)?;
    let (uplink, below) = UnixStream::pair().map_err(launch_error("make a socket"))?;
    let listener = vsock::listen_unix(socket).map_err(launch_error("make its vsock socket"))?;
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
    Ok((Vsockd { child, socket: socket.to_owned() }, link, uplink))
}

/// A listener in whose backlog a connection waits, and that connection: vhost-user-backend serves none that it has
/// not accepted itself. Nobody else can connect afterwards.
fn connected_listener(path: &Path) -> io::Result<(UnixListener, UnixStream)> {
    let listener = vsock::listen_unix(path)?;
    let connection = vsock::connect_plain(path, Duration::from_secs(1));
    fs::remove_file(path)?;
    Ok((listener, connection?))
}

/// What would otherwise be QEMU's words about a path in its jail.
fn check_file(what: &'static str, path: &Path, magic: Option<&[u8; 4]>) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::File { what, path: path.to_owned(), reason });
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
