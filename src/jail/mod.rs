//! Starts rt's own helper processes (`rt vmm`, `rt fsd`, `rt vsockd`, and QEMU through `rt qemu`) and lets them lock
//! themselves in: own mount, pid, ipc, uts and network namespaces, an empty or share-only root, no capabilities but the
//! named ones, no_new_privs, limits, and only the descriptors they were given.
//!
//! In two halves. The parent calls [`Spawn::spawn`]: clone3 into new namespaces, then exec of /proc/self/exe with a
//! hidden verb; between the two only async-signal-safe calls. The child, still trusted since no guest
//! byte has reached it, opens what only the host has, then calls [`enter`] while it has one thread.
//!
//! A helper is PID 1 of its PID namespace. It has no children, so there is nothing to reap; were there any, they would die with
//! it. Of signals it gets SIGKILL, and those that it installs a handler for; a fault or abort still ends it.
//! SIGTERM or a terminal's Ctrl-C do not: ending it is its starter's affair, by pidfd or by dying.

mod enter;
mod extend;
mod follow;
mod root;
mod spawn;

use std::io;
use std::path::{Path, PathBuf};

pub use enter::enter;
pub use extend::{extend, withdraw};
pub use follow::follow;
pub use root::{Bind, Device, Root, System};
pub use spawn::{Child, Spawn};

/// What a helper process is to be left with.
#[derive(Debug)]
pub struct Jail<'a> {
    pub root: Root,
    pub user: User,
    /// Permitted, effective and bounding; nothing is inheritable.
    pub capabilities: &'a [caps::Capability],
    pub limits: Limits,
}

impl Jail<'_> {
    /// No file system, no privilege: for a process that works on descriptors alone.
    pub fn sealed(limits: Limits) -> Self {
        Jail { root: Root::Empty, user: User::Own, capabilities: &[], limits }
    }
}

/// Who a helper process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// A user and group ID that no other process has: [`FIRST_UID`] plus the process ID on the host, so that neither
    /// another sandbox's helper nor a daemon running as `nobody` can signal or look into it. 65534 where the
    /// user namespace that rt runs in does not have that ID.
    Own,
    /// Stays root: a file server acts for all users of the guest. Its capabilities say what that is worth.
    Root,
}

/// The first of 4,194,304 (the kernel's largest PID) user IDs of helpers; above all that distributions and
/// subordinate ID ranges hand out. "rt" in ASCII.
pub const FIRST_UID: u32 = 0x7274_0000;

/// Resource limits, soft and hard. Beside them: no core file, and no locked memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_NOFILE, as far as the host allows.
    pub open_files: u64,
    /// RLIMIT_NPROC, for [`User::Own`] only: the kernel counts by user ID, and never root's.
    pub threads: u64,
    /// RLIMIT_FSIZE, which binds a memfd that is made or grown afterwards, too.
    pub file_size: Option<u64>,
}

/// What this room may fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start `rt {verb}`")]
    Spawn {
        verb: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("this verb is rt's own: it is started by rt, in namespaces of its own ({0})")]
    NotSpawned(&'static str),
    #[error("the process that started this one has ended")]
    Orphaned,
    #[error("the helper process has ended")]
    Ended,
    #[error("cannot enter the jail: {what}")]
    Enter {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot lay {path} into the jail: {what}")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot lay anything at {target} in the jail: {reason}")]
    Target { target: PathBuf, reason: &'static str },
}

/// For `map_err`: names the step that failed.
fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Enter { what, source: source.into() }
}

fn path_error(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
    Error::Path { what, path: path.to_owned(), source: source.into() }
}
