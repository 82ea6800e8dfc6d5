//! A process that is executed in a running container, or beside the agent: from PID 1's fork to its execve.
//!
//! PID 1 forks it once, into the container's PID namespace and cgroup; everything else it does to itself, in the order of
//! [`become_it`]. libcontainer's way is not used: it forks three times and leaves the seccomp profile out.
//!
//! Until execve the process is ours in the container's sight, so it holds as little as it can: every descriptor that it
//! does not need is closed before it joins, it is not dumpable, and no path of the container is trusted to be what its name says.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::Uid;
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::credentials::{self, Capabilities};
use crate::link::{self, Exec, Outcome, Place};
use crate::lookup::words;
use crate::seccomp::Filter;
use crate::{environment, executor, kmsg, schedule, sys};

/// umask(2) of a process whose configuration names none.
const UMASK: u32 = 0o022;

/// What a process is to become: the part that can be long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Complete.
    pub process: Process,
    /// The container's personality(2).
    pub personality: Option<u32>,
}

impl Order {
    /// Puts it into a memory file, with the container's filter behind it.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn write(&self, filter: Option<&Filter>) -> std::io::Result<OwnedFd> {
        let order = serde_json::to_vec(self)?;
        let mut file = File::from(memfd_create(c"order", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&(order.len() as u64).to_ne_bytes())?;
        file.write_all(&order)?;
        file.write_all(&filter.map(Filter::to_bytes).unwrap_or_default())?;
        Ok(file.into())
    }

    fn read(file: OwnedFd) -> std::io::Result<(Self, Option<Filter>)> {
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let (order, filter) =
            rest.split_at_checked(u64::from_ne_bytes(*length) as usize).ok_or_else(short)?;
        Ok((serde_json::from_slice(order)?, Filter::from_bytes(filter)))
    }
}

/// The life of the forked process until execve, or until it has told `socket` why not. `init` is a pidfd of the container's
/// first process, none beside the agent; `fds` are those of [`link::Request::Exec`].
pub fn run(exec: &Exec, fds: Vec<OwnedFd>, init: Option<OwnedFd>, socket: BorrowedFd<'_>) -> ! {
    let _ = SigSet::empty().thread_set_mask();
    // Out of the way of the descriptors that the process is to have.
    let Ok(socket) = sys::duplicate_above(socket, 3 + sys::MAX_DESCRIPTORS as RawFd) else {
        sys::exit_now(255)
    };
    let socket = socket.as_fd();
    let Err(message) = become_it(exec, fds, init, socket);
    let _ = link::transmit(socket, &Outcome::Failed { message: link::shorten(message) }, &[]);
    sys::exit_now(255)
}

fn become_it(
    exec: &Exec,
    fds: Vec<OwnedFd>,
    init: Option<OwnedFd>,
    socket: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, String> {
    let mut kept: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    kept.extend(init.iter().map(AsRawFd::as_raw_fd));
    kept.push(socket.as_raw_fd());
    close_all_but(kept);
    // execve makes it so again.
    let _ = sys::control(libc::PR_SET_DUMPABLE, 0, 0);
    let mut fds = fds.into_iter();
    let order = fds.next().ok_or("no order came with the request")?;
    let (order, filter) = Order::read(order).map_err(|error| format!("cannot read the order: {error}"))?;
    let process = &order.process;
    let (namespaces, program) = match exec.place {
        Place::Container { namespaces, .. } => (CloneFlags::from_bits_retain(namespaces), None),
        Place::Guest => (CloneFlags::empty(), Some(fds.next().ok_or("no program came with the request")?)),
    };
    let mut stdio: Vec<OwnedFd> = fds.collect();
    let preserved = stdio.split_off(if exec.terminal.is_some() { 0 } else { stdio.len().min(3) });

    schedule::apply(process)?;
    // The guest's /proc is in sight here, and the right to ignore limits not yet lost.
    let score = process.oom_score_adj().unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| format!("cannot set oom_score_adj to {score}: {error}"))?;
    let limits = process.rlimits().as_deref().unwrap_or_default();
    let joins_user = namespaces.contains(CloneFlags::CLONE_NEWUSER);
    if joins_user {
        credentials::set_limits(limits)?;
    }
    if let Some(init) = init {
        join(&init, namespaces)?;
    }
    nix::unistd::setsid().map_err(|error| format!("setsid: {}", words(error)))?;
    let user = process.user();
    let master = match exec.terminal {
        Some(size) => Some(open_terminal(size, user.uid())?),
        None => {
            attach(&stdio)?;
            None
        }
    };
    drop(stdio);
    nix::sys::stat::umask(Mode::from_bits_truncate(user.umask().unwrap_or(UMASK)));
    if let Some(personality) = order.personality {
        nix::sys::personality::set(nix::sys::personality::Persona::from_bits_retain(personality as i32))
            .map_err(|error| format!("cannot set the personality: {}", words(error)))?;
    }
    if !joins_user {
        credentials::set_limits(limits)?;
    }

    // Without no_new_privs a filter asks for a privilege that is about to be dropped; with it, the later the better.
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        credentials::set_no_new_privileges().map_err(|error| format!("no_new_privs: {}", words(error)))?;
    }
    let mut filter = filter;
    if !no_new_privileges && let Some(filter) = filter.take() {
        filter.load()?;
    }
    // Root may lack the right where its user has it (a network file system), and the other way round.
    let entered = match change_directory(process) {
        Err((Errno::EACCES | Errno::EPERM, _)) => false,
        Err((_, message)) => return Err(message),
        Ok(()) => true,
    };
    let path = match &program {
        // Closed by execve, which needs it by then no more.
        Some(program) => format!("/proc/self/fd/{}", program.as_raw_fd()).into(),
        None => {
            let capabilities = Capabilities::from(process.capabilities().as_ref());
            credentials::assume(user, &capabilities, || match entered {
                true => Ok(()),
                false => change_directory(process).map_err(|(_, message)| message),
            })?;
            executor::program(process)?
        }
    };
    let variables = process.env().as_deref().unwrap_or_default();
    let environment = environment::complete(variables, || environment::home(user.uid()));
    let arguments = process.args().as_deref().unwrap_or_default();
    let (Some(file), Some(arguments), Some(environment)) = (
        executor::c_string(path.as_os_str().as_encoded_bytes()),
        executor::c_strings(arguments),
        executor::c_strings(&environment),
    ) else {
        return Err(format!("exec {}: an argument or variable contains a zero byte", path.display()));
    };
    let masters: Vec<RawFd> = master.iter().map(AsRawFd::as_raw_fd).collect();
    link::transmit(socket, &Outcome::Ready, &masters)
        .map_err(|error| format!("cannot tell PID 1: {}", words(error)))?;
    executor::place(&preserved)?;
    if let Some(filter) = filter {
        filter.load()?;
    }
    let error = sys::execute(&file, &arguments, &environment);
    Err(executor::exec_message(&path, error))
}

/// Closes every descriptor beyond the standard ones that is not in `kept`.
fn close_all_but(mut kept: Vec<RawFd>) {
    kmsg::close();
    kept.sort_unstable();
    let mut first = 3u32;
    for fd in kept.into_iter().filter_map(|fd| u32::try_from(fd).ok()) {
        if fd > first {
            sys::close_range(first, fd - 1);
        }
        first = first.max(fd + 1);
    }
    sys::close_range(first, u32::MAX);
}

/// Joins the container's namespaces, but for that of PIDs, which PID 1 has seen to. Root and working directory are the
/// container's afterwards.
fn join(init: &OwnedFd, namespaces: CloneFlags) -> Result<(), String> {
    let flags = namespaces - CloneFlags::CLONE_NEWPID;
    setns(init, flags).map_err(|error| match error {
        Errno::ESRCH => NOT_RUNNING.to_owned(),
        error => format!("cannot join the container's namespaces: {}", words(error)),
    })
}

/// What is said of a container without a process.
pub const NOT_RUNNING: &str = "container not running";

/// Makes descriptors 0 to 2 of `stdio`.
fn attach(stdio: &[OwnedFd]) -> Result<(), String> {
    let [stdin, stdout, stderr] = stdio else {
        return Err("the standard streams did not come with the request".to_owned());
    };
    nix::unistd::dup2_stdin(stdin)
        .and_then(|()| nix::unistd::dup2_stdout(stdout))
        .and_then(|()| nix::unistd::dup2_stderr(stderr))
        .map_err(|error| format!("cannot attach the standard streams: {}", words(error)))
}

/// Makes a terminal of the container's devpts the controlling one and descriptors 0 to 2, and gives its master.
fn open_terminal((rows, columns): (u32, u32), user: u32) -> Result<OwnedFd, String> {
    let failed = |what: &'static str| move |error: Errno| format!("cannot {what}: {}", words(error));
    // Not blocking: the container may have put a pipe there, or anything else.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = open("/dev/ptmx", flags, Mode::empty()).map_err(failed("open /dev/ptmx"))?;
    let status = fstat(&master).map_err(failed("look at /dev/ptmx"))?;
    let is_device = status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !is_device || status.st_rdev != libc::makedev(5, 2) {
        return Err("/dev/ptmx of the container is not what makes terminals".to_owned());
    }
    fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR)).map_err(failed("set up the terminal"))?;
    sys::unlock_terminal(master.as_fd()).map_err(failed("unlock the terminal"))?;
    if rows > 0 && columns > 0 {
        sys::set_window_size(master.as_fd(), rows, columns).map_err(failed("set the terminal's size"))?;
    }
    let slave = sys::terminal_peer(master.as_fd()).map_err(failed("open the terminal"))?;
    nix::unistd::fchown(&slave, Some(Uid::from_raw(user)), None).map_err(failed("own the terminal"))?;
    sys::set_controlling_terminal(slave.as_fd()).map_err(failed("control the terminal"))?;
    let three = [slave.try_clone(), slave.try_clone(), Ok(slave)];
    let [Ok(stdin), Ok(stdout), Ok(stderr)] = three else {
        return Err("cannot attach the terminal: too many open files".to_owned());
    };
    attach(&[stdin, stdout, stderr])?;
    Ok(master)
}

/// Enters the working directory, which must be one of the container's.
fn change_directory(process: &Process) -> Result<(), (Errno, String)> {
    let directory = process.cwd();
    let directory = if directory.as_os_str().is_empty() { std::path::Path::new("/") } else { directory };
    let message = |reason: &str| format!("chdir to cwd ({directory:?}) set in config.json failed: {reason}");
    nix::unistd::chdir(directory).map_err(|error| (error, message(&words(error))))?;
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err((Errno::ENOENT, message("it is outside of the container's root"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_travels_in_a_file() {
        let process: Process =
            serde_json::from_str(r#"{"user":{"uid":7,"gid":0},"cwd":"/x","args":["a"]}"#).expect("a process");
        let order = Order { process: process.clone(), personality: Some(8) };
        let (read, filter) = Order::read(order.write(None).expect("written")).expect("read");
        assert_eq!((read.process, read.personality, filter), (process, Some(8), None));
        let filter = Filter::from_bytes(&[1; 24]).expect("a filter");
        let (_, read) = Order::read(order.write(Some(&filter)).expect("written")).expect("read");
        assert_eq!(read, Some(filter));
    }
}
