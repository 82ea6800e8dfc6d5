//! `rt fsd`: lock in, then serve virtio-fs until the VMM is gone.
//!
//! Three threads: this one, which waits; one for vhost-user messages; one for the queues, which does all file
//! operations. A pool would serve one guest's requests in parallel, at the price of memory and of an `unshare` per
//! thread; the host's page cache answers most of them without waiting.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use caps::Capability;
use nix::fcntl::{OFlag, openat};
use nix::sys::resource::Resource;
use nix::sys::stat::Mode;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as BackendError, VhostUserDaemon};
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackend;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::FsdSpec;
use crate::config::{self, Cache};
use crate::jail::{self, Bind, Jail, Limits, Root, User};
use crate::sys::mountinfo::{self, Mount};
use crate::sys::{credentials, fd, memory, mount};

/// The descriptors that `launch` passes.
const SPEC_FD: i32 = 3;
const SOCKET_FD: i32 = 4;

/// With fewer on a host, files are remembered by handle instead, see [`Descriptors`].
const ENOUGH_FILES: u64 = 200_000;
/// Not for the guest: standard streams, sockets, eventfds, and a descriptor per region of guest memory.
const RESERVED_FILES: u64 = 128;

/// How long the guest may use what it knows of a file without asking again.
const VALIDITY: Duration = Duration::from_secs(1);

/// Extended attributes, first match counts. trusted.* takes CAP_SYS_ADMIN on the host, but is the guest's root's own affair, so it
/// is kept under another name. Of security.* only file capabilities are the guest's; labels are the host's.
const XATTR_RULES: &str = "
    :ok:all:security.capability:security.capability:
    :bad:all:security.:security.:
    :map:trusted.:user.virtiofs.:";

/// What acting for any user of the guest takes: owners, modes and set-ID bits, special files, file capabilities.
const CAPABILITIES: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
];

/// What this process may fail with; its starter reads it from standard error.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Jail(#[from] jail::Error),
    #[error("cannot speak vhost-user with the VMM: {0}")]
    Vhost(String),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System { what, source: source.into() }
}

/// As text: the library's errors cannot cross threads.
fn vhost(error: BackendError) -> Error {
    Error::Vhost(error.to_string())
}

/// The hidden verb. The argument, the sandbox's ID, is for those who read ps(1).
pub fn main(_args: &[OsString]) -> ExitCode {
    memory::stay_small();
    start_log();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

/// The library's warnings and errors, to standard error; where that is full, they are dropped.
fn start_log() {
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN);
    let _ = log.without_time().with_target(false).with_ansi(false).log_internal_errors(false).try_init();
    // Half a server would keep its guest waiting for ever.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn run() -> Result<(), Error> {
    let spec = read_spec().map_err(step("read what to serve"))?;
    let socket = fd::inherited(SOCKET_FD).map_err(step("use the VMM's socket"))?;
    let descriptors = Descriptors::plan(spec.limits).map_err(step("set the limit of open files"))?;
    let proc = Proc::open().map_err(step("open /proc/self"))?;

    let binds = spec.entries.into_iter().map(Bind::from);
    jail::enter(&Jail {
        root: Root::Share(binds.collect()),
        user: User::Root,
        capabilities: &descriptors.capabilities(),
        limits: Limits { open_files: descriptors.limit, threads: 16, file_size: None },
    })?;

    let config =
        config(&descriptors, proc, spec.cache, spec.grows).map_err(step("open /proc/self/mountinfo"))?;
    serve(config, socket)
}

fn read_spec() -> io::Result<FsdSpec> {
    let mut json = Vec::new();
    File::from(fd::inherited(SPEC_FD)?).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// How to remember the files that the guest knows of, which may be as many as its memory holds: 100,000 in 128 MiB.
///
/// By a descriptor each where the limit is high, which it is for root on a host. A file handle costs none, but opening by handle
/// needs CAP_DAC_READ_SEARCH, and whoever has that and has taken over this process can open any file of a
/// file system that the share is on. So that is for hosts which cap the limit only.
struct Descriptors {
    limit: u64,
    handles: bool,
}

impl Descriptors {
    fn plan(wanted: config::Jail) -> io::Result<Self> {
        // What the operator wants less of than the host would give is no reason for handles.
        let allowed = credentials::limit(Resource::RLIMIT_NOFILE, config::Jail::default().open_files)?;
        let handles = wanted.file_handles && allowed < ENOUGH_FILES;
        let limit = allowed.min(wanted.open_files);
        Ok(Self { limit, handles })
    }

    fn capabilities(&self) -> Vec<Capability> {
        let handles = self.handles.then_some(Capability::CAP_DAC_READ_SEARCH);
        CAPABILITIES.into_iter().chain(handles).collect()
    }
}

/// What stays of /proc where there is none. Of the first, `..` leads nowhere: it is the root of a mount of its own.
struct Proc {
    descriptors: OwnedFd,
    own: OwnedFd,
}

impl Proc {
    fn open() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            descriptors: mount::clone_tree("/proc/self/fd".as_ref(), false)?,
            own: openat(nix::fcntl::AT_FDCWD, "/proc/self", flags, Mode::empty())?,
        })
    }
}

/// After entering the jail: mountinfo shows the mounts below the root that its opener has.
fn config(descriptors: &Descriptors, proc: Proc, cache: Cache, grows: bool) -> io::Result<Config> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut mountinfo = File::from(openat(&proc.own, "mountinfo", flags, Mode::empty())?);
    let mut mounts = Vec::new();
    mountinfo.read_to_end(&mut mounts)?;
    let (cache_policy, validity) = match cache {
        // What the guest has cached stays valid when a file is opened again, so starting a program does not fetch it and its
        // libraries anew; once VALIDITY is over, the next use asks for size and time of change, and a change
        // drops the cache (FUSE_AUTO_INVAL_DATA). So the guest sees what the host writes within a second.
        Cache::Always => (CachePolicy::Always, VALIDITY),
        Cache::Auto => (CachePolicy::Auto, VALIDITY),
        Cache::Never => (CachePolicy::Never, Duration::ZERO),
    };
    Ok(Config {
        cache_policy,
        entry_timeout: validity,
        attr_timeout: validity,
        // Written data is in the host's page cache when write(2) returns: the host sees it, and a guest that dies loses none.
        writeback: false,
        announce_submounts: grows || several_devices(&mountinfo::parse(&mounts)),
        readdirplus: true,
        xattr: true,
        xattrmap: Some(XattrMap::try_from(XATTR_RULES).map_err(io::Error::other)?),
        posix_acl: NegotiationMode::Auto,
        // The host clears set-ID bits and file capabilities on write; else the guest would ask before each write.
        killpriv_v2: true,
        inode_file_handles: match descriptors.handles {
            true => InodeFileHandlesMode::Prefer,
            false => InodeFileHandlesMode::Never,
        },
        guest_fd_limit: descriptors.limit.saturating_sub(RESERVED_FILES),
        proc_sfd_rawfd: Some(proc.descriptors.into()),
        proc_mountinfo_rawfd: Some(mountinfo),
        ..Config::default()
    })
}

/// Whether directories of the share lie on more than one file system, so that inode numbers may meet; the
/// share's own root, `/`, aside. If so, the guest is told to give each a device number of its own (FUSE submounts), else a
/// tar(1) in it might take two files for one. The price is why this is not always done: on a submount, Linux (6.12, fuse_fill_super_submount)
/// forgets that there are ACLs and that it need not ask for file capabilities before each write.
fn several_devices(mounts: &[Mount]) -> bool {
    let is_directory = |mount: &&Mount| fs::symlink_metadata(&mount.point).is_ok_and(|file| file.is_dir());
    // Subvolumes are devices that no mount tells of.
    let has_subvolumes = |mount: &Mount| ["btrfs", "bcachefs"].contains(&mount.kind.as_str());
    let below_root = mounts.iter().filter(|mount| mount.point != Path::new("/"));
    let mut directories = below_root.filter(is_directory);
    let Some(first) = directories.next() else { return false };
    has_subvolumes(first) || directories.any(|mount| has_subvolumes(mount) || mount.device != first.device)
}

fn serve(config: Config, socket: OwnedFd) -> Result<(), Error> {
    let fs = PassthroughFs::new(config).map_err(step("open the share"))?;
    let backend = VhostUserFsBackend::new(fs).map_err(step("make a virtio-fs device"))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("fsd".to_owned(), Arc::new(backend), memory).map_err(vhost)?;
    let mut listener = Listener::from(UnixListener::from(socket));
    daemon.start(&mut listener).map_err(vhost)?;
    drop(listener);
    nix::unistd::write(io::stdout(), b"+").map_err(step("say that it serves"))?;
    match daemon.wait() {
        // The VMM closed the connection, or died in the middle of a message.
        Ok(()) | Err(BackendError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
            Ok(())
        }
        Err(error) => Err(vhost(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mounts: &[(&str, &str, &str)]) -> String {
        let line = |(device, point, kind): &(&str, &str, &str)| {
            format!("90 80 {device} /x {point} rw,nosuid - {kind} /dev/x rw\n")
        };
        mounts.iter().map(line).collect()
    }

    #[test]
    fn submounts_are_announced_where_inode_numbers_may_meet() {
        let several = |mounts: &[_]| several_devices(&mountinfo::parse(text(mounts).as_bytes()));
        let root = ("0:60", "/", "tmpfs");
        assert!(!several(&[root]));
        assert!(!several(&[root, ("8:1", "/usr", "ext4")]));
        assert!(!several(&[("8:1", "/usr", "ext4"), root, ("8:1", "/etc", "ext4")]));
        assert!(several(&[root, ("0:61", "/usr", "overlay"), ("8:1", "/etc", "ext4")]));
        assert!(several(&[root, ("0:62", "/usr", "btrfs")]));
        // A file is no place where numbers meet in.
        assert!(!several(&[root, ("0:61", "/usr", "overlay"), ("8:1", "/etc/passwd", "ext4")]));
    }

    #[test]
    fn the_rules_for_extended_attributes_are_well_formed() {
        use virtiofsd::passthrough::xattrmap::AppliedRule;
        let map = XattrMap::try_from(XATTR_RULES).unwrap();
        let pass = |name: &std::ffi::CStr| match map.map_client_xattr(name).unwrap() {
            AppliedRule::Pass(name) => Some(name.into_owned()),
            _ => None,
        };
        assert_eq!(pass(c"user.a").as_deref(), Some(c"user.a"));
        assert_eq!(pass(c"system.posix_acl_access").as_deref(), Some(c"system.posix_acl_access"));
        assert_eq!(pass(c"security.capability").as_deref(), Some(c"security.capability"));
        assert_eq!(pass(c"trusted.a").as_deref(), Some(c"user.virtiofs.trusted.a"));
        assert_eq!(pass(c"security.selinux"), None);
        assert_eq!(pass(c"user.virtiofs.trusted.a"), None);
        let host = b"user.a\0user.virtiofs.trusted.b\0security.selinux\0security.capability\0".to_vec();
        let seen = map.map_server_xattrlist(host).unwrap();
        assert_eq!(seen, b"user.a\0trusted.b\0security.capability\0");
    }
}
