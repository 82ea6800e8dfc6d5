//! From the kernel's hand-over to a guest that can hold containers. Run once, by PID 1.
//!
//! In order of need: what the way to the host takes (devices, modules, vsock), then the beacon, and everything else while
//! the host answers it. No /run or /tmp is mounted: the root is the initramfs, in memory already, and only the agent's few
//! small files go there. Nothing here reads a file of the host.

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, getsockopt, listen, send, socket,
    sockopt,
};

use crate::cmdline::Parameters;
use crate::kmsg;
use crate::sys;

/// Where modules lie that the kernel lacks, with their order of loading.
const MODULES_DIR: &str = "/modules";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {object}")]
    Step {
        what: &'static str,
        object: String,
        #[source]
        source: Errno,
    },
    #[error("cannot read {path}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

fn step(what: &'static str, object: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Step { what, object: object.into(), source }
}

/// The guest's two listening sockets.
pub struct Listeners {
    pub agent: OwnedFd,
    pub streams: OwnedFd,
}

/// A beacon under way: the connection is made without waiting.
pub struct Beacon(Option<OwnedFd>);

/// Devices, /proc, the log, modules: what is needed to talk to the host.
pub fn first() -> Result<Parameters, Error> {
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755")?;
    open_standard_descriptors();
    kmsg::open();
    mount_at("proc", "/proc", "proc", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV, "")?;
    let text = fs::read_to_string("/proc/cmdline")
        .map_err(|source| Error::File { path: "/proc/cmdline".into(), source })?;
    let parameters = Parameters::parse(&text);
    kmsg::set_debug(parameters.debug);
    load_modules()?;
    Ok(parameters)
}

/// Listens for the host.
pub fn open_listeners() -> Result<Listeners, Error> {
    Ok(Listeners {
        agent: listen_on(rt_proto::AGENT_PORT, SockFlag::SOCK_NONBLOCK)?,
        streams: listen_on(rt_proto::STREAM_PORT, SockFlag::SOCK_NONBLOCK)?,
    })
}

fn listen_on(port: u32, flags: SockFlag) -> Result<OwnedFd, Error> {
    let name = || format!("vsock port {port}");
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)
        .map_err(step("open a socket for", name()))?;
    bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)).map_err(step("bind", name()))?;
    listen(&fd, Backlog::new(1024).unwrap_or(Backlog::MAXCONN)).map_err(step("listen on", name()))?;
    Ok(fd)
}

impl Beacon {
    /// Starts to connect to the host.
    pub fn start(port: u32) -> Result<Self, Error> {
        let name = || format!("host port {port}");
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)
            .map_err(step("open a socket for", name()))?;
        match connect(fd.as_raw_fd(), &VsockAddr::new(rt_proto::HOST_CID, port)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(Self(Some(fd))),
            Err(source) => Err(step("connect to", name())(source)),
        }
    }

    /// Sends the beacon as soon as the connection stands; called between the steps of [`rest`].
    fn advance(&mut self, timeout: PollTimeout) -> Result<(), Error> {
        let Some(fd) = &self.0 else { return Ok(()) };
        let mut wait = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut wait, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(source) => return Err(step("wait for", "the host's answer to the beacon")(source)),
        }
        let outcome = getsockopt(fd, sockopt::SocketError).map_err(step("ask for", "the beacon's state"))?;
        if outcome != 0 {
            return Err(step("connect to", "the host's beacon port")(Errno::from_raw(outcome)));
        }
        fcntl(fd, FcntlArg::F_SETFL(OFlag::empty())).map_err(step("set up", "the beacon's socket"))?;
        let beacon = rt_proto::Beacon { version: rt_proto::PROTOCOL_VERSION }.to_bytes();
        send(fd.as_raw_fd(), &beacon, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)
            .map_err(step("send", "the beacon"))?;
        self.0 = None;
        kmsg::debug!("beacon sent");
        Ok(())
    }

    /// Waits until the beacon is sent.
    pub fn finish(mut self) -> Result<(), Error> {
        while self.0.is_some() {
            self.advance(PollTimeout::NONE)?;
        }
        Ok(())
    }
}

/// What containers need, done while the host's answer to the beacon travels.
pub fn rest(beacon: &mut Beacon) -> Result<(), Error> {
    let inert = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    beacon.advance(PollTimeout::ZERO)?;
    mount_at("sysfs", "/sys", "sysfs", inert, "")?;
    // Each change of cgroups, mounts and namespaces waits for a grace period: three clock ticks, 12 ms, when not hurried.
    if let Err(error) = fs::write("/sys/kernel/rcu_expedited", "1") {
        kmsg::debug!("cannot hurry grace periods: {error}");
    }
    beacon.advance(PollTimeout::ZERO)?;
    mount_at("cgroup2", crate::cgroup::ROOT, "cgroup2", inert, "")?;
    crate::cgroup::prepare().map_err(|source| Error::File { path: crate::cgroup::ROOT.into(), source })?;
    beacon.advance(PollTimeout::ZERO)?;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "mode=0620,ptmxmode=0666",
    )?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    beacon.advance(PollTimeout::ZERO)?;
    leave_the_absolute_root()?;
    if let Err(error) = sys::loopback_up() {
        kmsg::warning!("cannot bring the loopback interface up: {error}");
    }
    set_limits();
    if let Err(error) = hold_the_program() {
        kmsg::warning!("cannot hold the agent's program in one place: {error}");
    }
    // The agent outlives its containers when memory runs out; runners set it back for theirs.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        kmsg::warning!("cannot protect the agent when memory runs out: {error}");
    }
    beacon.advance(PollTimeout::ZERO)
}

/// Mounts `kind` at `target`, which is made where it is missing.
fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), Error> {
    let attempt = || mount(Some(source), target, Some(kind), flags, Some(options));
    match attempt() {
        Err(Errno::ENOENT) => {
            fs::create_dir_all(target)
                .map_err(|error| step("make", target)(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
            attempt()
        }
        // The kernel may have mounted devtmpfs itself.
        Err(Errno::EBUSY) => Ok(()),
        other => other,
    }
    .map_err(step("mount", target))
}

/// Keeps the agent's code and constants where they are in the machine's memory: there, machines that start from one template share
/// them. The kernel moves what it compacts, but what is locked only where it is allowed to.
fn hold_the_program() -> std::io::Result<()> {
    match fs::write("/proc/sys/vm/compact_unevictable_allowed", "0") {
        // It does not compact.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => other?,
    }
    for mapping in fs::read_to_string("/proc/self/maps")?.lines().filter_map(constant_mapping) {
        sys::lock(mapping)?;
    }
    Ok(())
}

/// The addresses of a mapping of a file that nobody writes to (proc_pid_maps(5)): `START-END PERMISSIONS OFFSET DEVICE INODE PATH`.
fn constant_mapping(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_constant = fields.next()?.starts_with("r-") && fields.nth(3)?.starts_with('/');
    let number = |text| usize::from_str_radix(text, 16).ok();
    is_constant.then_some(number(start)?..number(end)?)
}

/// The kernel's initial root refuses pivot_root(2): a bind mount of it, moved on top, is as good and does not.
fn leave_the_absolute_root() -> Result<(), Error> {
    const STAGE: &str = "/root";
    let _ = fs::create_dir(STAGE);
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/"), STAGE, none, flags, none).map_err(step("bind", "/"))?;
    nix::unistd::chdir(STAGE).map_err(step("enter", "the new root"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(step("move", "the new root"))?;
    nix::unistd::chroot(".").map_err(step("change to", "the new root"))?;
    nix::unistd::chdir("/").map_err(step("enter", "/"))
}

/// Descriptors 0 to 2 are /dev/null: a guest without console starts `/init` with none, with one they would write to it.
fn open_standard_descriptors() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
        if null.as_raw_fd() <= 2 {
            // It became one of the three itself.
            std::mem::forget(null);
        }
    }
}

/// Loads what `/modules/order` lists, when there is one. A module that fails is said and passed over: whether the
/// guest can do without it shows at its use.
fn load_modules() -> Result<(), Error> {
    let list = Path::new(MODULES_DIR).join("order");
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::File { path: list.display().to_string(), source }),
    };
    for name in text.split_ascii_whitespace() {
        let path = module_path(name);
        let loaded = match File::open(&path) {
            Ok(file) => sys::load_module(&file).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(()) => {
                // Its file is of no more use, and the initramfs is memory.
                let _ = fs::remove_file(&path);
            }
            Err(error) if error.starts_with("EEXIST") => {}
            Err(error) => kmsg::warning!("cannot load module {name}: {error}"),
        }
    }
    Ok(())
}

/// `name` as the list has it: with or without its ending.
fn module_path(name: &str) -> std::path::PathBuf {
    let file = if name.ends_with(".ko") { name.to_owned() } else { format!("{name}.ko") };
    Path::new(MODULES_DIR).join(file)
}

/// Limits that containers inherit when their configuration says nothing: what a distribution's service manager gives.
/// The kernel's own count of processes shrinks with memory and of files is 4096.
fn set_limits() {
    for (resource, soft, hard) in [
        (Resource::RLIMIT_NOFILE, 1024, 1 << 20),
        (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_SIGPENDING, RLIM_INFINITY, RLIM_INFINITY),
    ] {
        if let Err(error) = setrlimit(resource, soft, hard) {
            kmsg::warning!("cannot set {resource:?}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_mappings_are_those_of_files_that_are_only_read() {
        let mapping = |permissions: &str, file: &str| {
            constant_mapping(&format!("7f0000001000-7f0000003000 {permissions} 00001000 00:02 5 {file}"))
        };
        for constant in ["r--p", "r-xp"] {
            assert_eq!(mapping(constant, "  /init"), Some(0x7f00_0000_1000..0x7f00_0000_3000));
        }
        assert_eq!(mapping("rw-p", "/init"), None);
        assert_eq!(mapping("r--p", "[vvar]"), None);
        assert_eq!(mapping("r--p", ""), None);
        assert_eq!(constant_mapping("x"), None);
    }

    #[test]
    fn modules_are_listed_with_or_without_ending() {
        assert_eq!(module_path("vsock"), Path::new("/modules/vsock.ko"));
        assert_eq!(module_path("virtio-rng.ko"), Path::new("/modules/virtio-rng.ko"));
    }
}
