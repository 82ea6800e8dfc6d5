//! One creation of a container, in a process of its own: forked from PID 1, single-threaded, gone when it is done.
//!
//! libcontainer does the work; this prepares its input, gives it the stdio, and words its failures. Whatever fails, nothing
//! of the container is left: no process, cgroup or state.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::socket::MsgFlags;
use nix::unistd::Uid;
use oci_spec::runtime::Spec;

use crate::executor::GuestExecutor;
use crate::hooks::StartHooks;
use crate::link::{self, Create, Outcome};
use crate::report::{self, Reader, Report};
use crate::spec::{self, Aside};
use crate::supervisor::chain;
use crate::{cgroup, devices, kmsg, rootfs, seccomp, stdio, sys};

/// Where libcontainer keeps its state, among it the socket that lets a created container run.
pub const STATE_DIR: &str = "/run/rt/state";
/// The spec as the host sent it.
pub const SPEC_FILE: &str = "spec.json";

/// The container's bundle directory: the spec as the host sent it and as libcontainer gets it.
pub fn bundle_dir(container: &str) -> PathBuf {
    Path::new(rt_proto::CONTAINERS_DIR).join(container)
}

/// Makes the container and tells `socket` how that went.
pub fn run(create: &Create, mut fds: Vec<OwnedFd>, socket: BorrowedFd<'_>) {
    let started = if create.startable { fds.pop() } else { None };
    let preserved = fds.split_off(if create.terminal.is_some() { 0 } else { fds.len().min(3) });
    let stdio = fds;
    let (reader, report) = match report::pair(started) {
        Ok(pair) => pair,
        Err(error) => return tell(socket, &failed(format!("cannot make a socket pair: {error}")), None),
    };
    report.subscribe();
    match make(create, stdio, preserved, &reader, report) {
        Ok(made) => {
            let outcome = Outcome::Created { pid: made.pid, own_pid_namespace: made.own_pid_namespace };
            tell(socket, &outcome, made.master);
        }
        Err(message) => {
            let _ = cgroup::remove(&create.container);
            let _ = fs::remove_dir_all(Path::new(STATE_DIR).join(&create.container));
            tell(socket, &failed(message), None);
        }
    }
}

fn failed(message: String) -> Outcome {
    Outcome::Failed { message: link::shorten(spec::without_number(&message).to_owned()) }
}

fn tell(socket: BorrowedFd<'_>, outcome: &Outcome, master: Option<OwnedFd>) {
    let fds: Vec<_> = master.iter().map(AsRawFd::as_raw_fd).collect();
    if let Err(error) = link::transmit(socket, outcome, &fds) {
        kmsg::error!("cannot tell PID 1 of {outcome:?}: {error}");
    }
}

struct Made {
    pid: i32,
    own_pid_namespace: bool,
    master: Option<OwnedFd>,
}

fn make(
    create: &Create,
    stdio: Vec<OwnedFd>,
    preserved: Vec<OwnedFd>,
    reader: &Reader,
    report: Report,
) -> Result<Made, String> {
    let bundle = bundle_dir(&create.container);
    let path = bundle.join(SPEC_FILE);
    let bytes = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut spec = spec::parse(&bytes)?;
    let mut aside = spec::adapt(&mut spec, &create.container, sys::processors());
    check(&spec, &aside, create)?;
    let filter = aside.seccomp.as_ref().map(seccomp::translate).transpose()?;
    let hooks = StartHooks::new(std::mem::take(&mut aside.hooks), &create.container, &spec);
    let rest = rootfs::prepare(&mut spec, &bundle)?;
    let path = bundle.join("config.json");
    let bytes = serde_json::to_vec(&spec).map_err(|error| format!("cannot write config.json: {error}"))?;
    fs::write(&path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    kmsg::debug!("{}: spec and root file system prepared", create.container);
    set_network_sysctls(&aside)?;
    cgroup::create(&create.container)
        .map_err(|error| format!("cannot make the cgroup of {}: {error}", create.container))?;
    stdio::own(&stdio, aside.user);

    // Not in the bundle: a socket's path holds no more than 107 bytes, an ID up to 255.
    let console = PathBuf::from(format!("/run/rt/console-{}", create.sequence));
    let listener = match create.terminal {
        Some(_) => Some(
            UnixListener::bind(&console)
                .map_err(|error| format!("cannot make {}: {error}", console.display()))?,
        ),
        None => None,
    };
    let executor = GuestExecutor::new(report, aside.homeless, preserved, hooks, filter, aside.capabilities);
    let built = build(create, stdio, executor, &bundle, listener.is_some().then_some(console.as_path()));
    let _ = fs::remove_file(&console);
    let pid = built
        .map_err(|error| reader.best().unwrap_or_else(|| chain(&error)))
        .map_err(|message| spec::reword(&message, &spec))?;
    let master = match (listener, create.terminal) {
        (Some(listener), Some(size)) => Some(terminal(&listener, size, aside.user)?),
        _ => None,
    };
    kmsg::debug!("{}: made by libcontainer", create.container);
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    devices::confine(&create.container, rules)?;
    kmsg::debug!("{}: devices confined", create.container);
    if !rest.is_empty() {
        rootfs::finish(pid, &rest)?;
    }
    Ok(Made { pid, own_pid_namespace: aside.own_pid_namespace, master })
}

/// What libcontainer would panic on or word unclearly.
fn check(spec: &Spec, aside: &Aside, create: &Create) -> Result<(), String> {
    let process = spec.process().as_ref().ok_or("process must be set in config.json")?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("process.args must not be empty".to_owned());
    }
    if aside.terminal != create.terminal.is_some() {
        return Err("process.terminal and the streams that the host offers do not agree".to_owned());
    }
    let root = spec.root().as_ref().ok_or("root must be set in config.json")?;
    match fs::metadata(root.path()) {
        Ok(root) if root.is_dir() => Ok(()),
        Ok(_) => Err(format!("root file system {} is not a directory", root.path().display())),
        Err(error) => Err(format!("cannot use root file system {}: {error}", root.path().display())),
    }
}

fn build(
    create: &Create,
    stdio: Vec<OwnedFd>,
    executor: GuestExecutor,
    bundle: &Path,
    console: Option<&Path>,
) -> Result<i32, LibcontainerError> {
    let mut builder = ContainerBuilder::new(create.container.clone(), SyscallType::default())
        .with_root_path(STATE_DIR)?
        .with_executor(executor)
        .with_console_socket(console);
    let mut stdio = stdio.into_iter();
    if let (Some(stdin), Some(stdout), Some(stderr)) = (stdio.next(), stdio.next(), stdio.next()) {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build()?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| LibcontainerError::Other("no process was made".to_owned()))
}

/// The new terminal's master, its size set and its slave owned by the process's user.
fn terminal(listener: &UnixListener, (rows, columns): (u32, u32), user: u32) -> Result<OwnedFd, String> {
    let master = receive_master(listener).map_err(|error| format!("cannot get the terminal: {error}"))?;
    if rows > 0 && columns > 0 {
        sys::set_window_size(master.as_fd(), rows, columns)
            .map_err(|error| format!("cannot set the terminal's size: {error}"))?;
    }
    let owned = sys::terminal_peer(master.as_fd())
        .and_then(|slave| nix::unistd::fchown(&slave, Some(Uid::from_raw(user)), None));
    if let Err(error) = owned {
        kmsg::warning!("cannot give the terminal to user {user}: {error}");
    }
    Ok(master)
}

/// libcontainer has sent it before it reported the container as made, so nothing waits here.
fn receive_master(listener: &UnixListener) -> std::io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    let (_, fds) = sys::receive(stream.as_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT)?;
    fds.into_iter().next().ok_or_else(|| std::io::Error::other("no descriptor came"))
}

fn set_network_sysctls(aside: &Aside) -> Result<(), String> {
    for (name, value) in &aside.network_sysctls {
        // Below net/ and nowhere else, whatever the name.
        let relative = name.replace('.', "/");
        if relative.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(format!("sysctl {name} is not a valid name"));
        }
        fs::write(Path::new("/proc/sys").join(relative), value)
            .map_err(|error| format!("cannot set sysctl {name} to {value}: {error}"))?;
    }
    Ok(())
}
