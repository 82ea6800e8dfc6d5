//! The parent's half: start `rt VERB` in new namespaces, with given descriptors and nothing else.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::sched::CloneFlags;

use super::Error;
use crate::sys::process::{Program, own_pidfd};

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
    /// Starts the process, with an empty environment and, as standard input, a pidfd of this process, by which
    /// [`enter`](super::enter) sees whether it is still there. It is killed when the *calling thread* ends (PR_SET_PDEATHSIG,
    /// set by the child): call this on a thread that lasts.
    ///
    /// The network namespace is left to the child: making one takes longer than all the others together, and the child
    /// does it beside the caller.
    ///
    /// # Errors
    /// [`Error::Spawn`] when clone or exec fail.
    pub fn spawn(self) -> Result<Child, Error> {
        let verb = self.verb;
        self.start().map_err(|source| Error::Spawn { verb, source })
    }

    fn start(self) -> io::Result<Child> {
        let mut arguments = vec![c"rt".to_owned(), CString::new(self.verb)?];
        for argument in self.args {
            arguments.push(CString::new(argument.into_vec())?);
        }
        let parent = own_pidfd()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![parent.as_fd()];
        for stream in [&self.stdout, &self.stderr] {
            descriptors.push(stream.as_ref().map_or(null.as_fd(), AsFd::as_fd));
        }
        descriptors.extend(self.fds.iter().map(AsFd::as_fd));

        let program = Program {
            path: c"/proc/self/exe",
            arguments: &arguments,
            descriptors: &descriptors,
            namespaces: CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS,
        };
        let (pid, pidfd) = program.start()?;
        Ok(Child { pid, pidfd })
    }
}
