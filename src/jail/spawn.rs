//! The parent's half: start `rt VERB` with given descriptors and nothing else.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::Error;

/// One helper process to be started.
#[derive(Debug)]
pub struct Spawn {
    /// The hidden verb: `vmm`, `fsd`, `vsockd`, `qemu`.
    pub verb: &'static str,
    /// Arguments after the verb; the first is the sandbox's ID, so that ps(1) tells whose it is.
    pub args: Vec<OsString>,
    /// Become the child's descriptors 3, 4, … in this order.
    pub fds: Vec<OwnedFd>,
    /// The child's standard output: the guest's console. `None` is /dev/null.
    pub stdout: Option<OwnedFd>,
    /// The child's standard error: its log, and marks of the timeline. `None` is /dev/null.
    pub stderr: Option<OwnedFd>,
}

/// A started helper. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    /// In this process's PID namespace.
    pub pid: i32,
    /// Readable once the process has ended.
    pub pidfd: OwnedFd,
}

impl Spawn {
    /// Starts the process. It is killed when the calling thread ends (PR_SET_PDEATHSIG, set by the child).
    ///
    /// # Errors
    /// [`Error::Spawn`] when clone or exec fail.
    pub fn spawn(self) -> Result<Child, Error> {
        let verb = self.verb;
        self.start().map_err(|source| Error::Spawn { verb, source })
    }

    fn start(self) -> io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("rt").arg(self.verb).args(&self.args).stdin(Stdio::null());
        command.stdout(self.stdout.map_or_else(Stdio::null, Stdio::from));
        command.stderr(self.stderr.map_or_else(Stdio::null, Stdio::from));
        // First above every target number, so that moving one into place cannot overwrite another.
        let above = 3 + self.fds.len() as i32;
        let fds = self
            .fds
            .into_iter()
            .map(|fd| {
                let high = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(above))?;
                // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
                Ok(unsafe { OwnedFd::from_raw_fd(high) })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let moves: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: the closure only calls dup2, which is async-signal-safe, on descriptors that outlive it.
        unsafe {
            command.pre_exec(move || {
                for (index, fd) in moves.iter().enumerate() {
                    if libc::dup2(*fd, 3 + index as i32) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let pid = child.id() as i32;
        // SAFETY: pidfd_open takes numbers only; the child is not reaped yet, so the pid is its own.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: pidfd_open returned a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        Ok(Child { pid, pidfd })
    }
}
