//! System calls that nix has no safe form of. The only unsafe code of the agent.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most descriptors that travel beside one message.
pub const MAX_DESCRIPTORS: usize = 48;

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(time) => time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64,
        Err(_) => 0,
    }
}

/// Whether the other end of a connection has been closed, both ways.
pub fn is_hung_up(connection: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(connection, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Loads a kernel module from an open file.
pub fn load_module(file: &impl AsRawFd) -> nix::Result<()> {
    let parameters = c"";
    // SAFETY: the descriptor is open for the whole call and `parameters` is a NUL-terminated string; the kernel copies both.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    Errno::result(result).map(drop)
}

/// Makes the mount at `mount_point`, which is private, one of those among which mounts pass: `peer` is the root of another, in any mount
/// namespace, of the same file system or of what holds it (move_mount(2), MOVE_MOUNT_SET_GROUP, Linux 5.15).
pub fn join_peers(peer: BorrowedFd<'_>, mount_point: &std::path::Path) -> io::Result<()> {
    const FROM_EMPTY_PATH: libc::c_uint = 0x4;
    const SET_GROUP: libc::c_uint = 0x100;
    let mount_point = CString::new(mount_point.as_os_str().as_encoded_bytes())?;
    // SAFETY: the descriptor is open for the whole call and both paths are NUL-terminated strings; the kernel copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            peer.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            mount_point.as_ptr(),
            FROM_EMPTY_PATH | SET_GROUP,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

/// Credits `seed` to the kernel's random pool, and has the generator begin anew with it: one that is ready, as in a machine that
/// starts from a template, would go on from the template's state until its time is up.
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    // struct rand_pool_info of linux/random.h: two ints, then the bytes.
    let mut request = Vec::with_capacity(8 + seed.len());
    request.extend_from_slice(&(seed.len() as i32 * 8).to_ne_bytes());
    request.extend_from_slice(&(seed.len() as i32).to_ne_bytes());
    request.extend_from_slice(seed);
    let random = std::fs::File::options().write(true).open("/dev/urandom")?;
    // RNDADDENTROPY is _IOW('R', 0x03, int [2]).
    let command = nix::request_code_write!(b'R', 0x03, 8);
    // SAFETY: `request` holds the header with the length of the bytes after it; the kernel reads no more than that.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), command, request.as_ptr()) })?;
    // RNDRESEEDCRNG is _IO('R', 0x07).
    let command = nix::request_code_none!(b'R', 0x07);
    // SAFETY: it takes no argument.
    match Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), command, 0) }) {
        // One that is not ready begins with the seed.
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets the wall clock, in nanoseconds since the epoch.
pub fn set_realtime(realtime_ns: i64) -> nix::Result<()> {
    let time = nix::sys::time::TimeSpec::new(
        realtime_ns.div_euclid(1_000_000_000),
        realtime_ns.rem_euclid(1_000_000_000),
    );
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)
}

/// Sets a terminal's size through its master.
pub fn set_window_size(master: BorrowedFd<'_>, rows: u32, columns: u32) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: rows.min(u16::MAX.into()) as u16,
        ws_col: columns.min(u16::MAX.into()) as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one struct winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

/// Opens the slave of a terminal by its master, whatever mount namespace its devpts is in.
pub fn terminal_peer(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value and returns a new descriptor, which is owned here and nowhere else.
    unsafe {
        let fd = Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Lets the slave of a new terminal be opened.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> nix::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &locked) }).map(drop)
}

/// Makes a terminal the controlling one of this session, whose leader the process is.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer by value.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Brings the loopback interface up.
pub fn loopback_up() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, whose name is NUL-terminated and whose flags are set.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

/// Reads mapped memory in and keeps it there.
pub fn lock(mapping: std::ops::Range<usize>) -> nix::Result<()> {
    // SAFETY: the kernel looks at its own tables only, and refuses what is not mapped.
    Errno::result(unsafe { libc::mlock(mapping.start as *const libc::c_void, mapping.len()) }).map(drop)
}

/// Bytes that wait in a pipe.
pub fn bytes_waiting(pipe: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut count) })?;
    Ok(count.max(0) as usize)
}

/// A descriptor that stands for a process.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes two integers by value and returns a new descriptor, which is owned here and nowhere else.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Signals the process behind a pidfd: never another one that got its number.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    Errno::result(result).map(drop)
}

/// execveat-less execve: returns only when it failed.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Whether the caller's effective user may execute the file.
pub fn may_execute(path: &std::path::Path) -> nix::Result<()> {
    nix::unistd::faccessat(
        nix::fcntl::AT_FDCWD,
        path,
        nix::unistd::AccessFlags::X_OK,
        nix::fcntl::AtFlags::AT_EACCESS,
    )
}

/// Forks. The child gets `Ok(None)`.
///
/// Only for a process with one thread: then the child may use everything that the parent may.
pub fn fork() -> nix::Result<Option<nix::unistd::Pid>> {
    // SAFETY: PID 1, the only caller, never starts a thread (crate::supervisor), so no lock can be held by another one.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Forks into a cgroup, given by its directory. The child gets `Ok(None)`.
///
/// Only for a process with one thread, as [`fork`].
pub fn fork_into(group: BorrowedFd<'_>) -> nix::Result<Option<nix::unistd::Pid>> {
    // linux/sched.h; libc's constant is too narrow.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: all-zero bytes are a valid clone_args: no flags, no addresses.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.as_raw_fd() as u64;
    let size = std::mem::size_of::<libc::clone_args>();
    // SAFETY: no memory is shared with the child and no address given, so it is a fork; PID 1, the only caller, has no
    // thread that could hold a lock.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size) };
    Ok(match Errno::result(result)? {
        0 => None,
        pid => Some(nix::unistd::Pid::from_raw(pid as i32)),
    })
}

/// Lets this process have as many descriptors as it may.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// prctl(2) of an option that takes numbers.
pub fn control(option: i32, first: u64, second: u64) -> nix::Result<()> {
    // SAFETY: numbers by value; an option that takes an address refuses one that is not this process's.
    Errno::result(unsafe { libc::prctl(option, first, second, 0u64, 0u64) }).map(drop)
}

/// setrlimit(2), with values as the runtime-spec has them.
pub fn set_limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> nix::Result<()> {
    let value = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit reads one struct rlimit, which outlives the call.
    Errno::result(unsafe { libc::setrlimit(resource, &value) }).map(drop)
}

/// capset(2) on this thread, by bit masks.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    // struct __user_cap_header_struct of version 3, and struct __user_cap_data_struct twice: low and high halves.
    let header = [0x2008_0522u32, 0];
    let halves = |shift: u32| [effective, permitted, inheritable].map(|mask| (mask >> shift) as u32);
    let data = [halves(0), halves(32)];
    // SAFETY: capset reads the header's two words and, in this version, two structures of three words each.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Applies a seccomp filter, of eight bytes an instruction, to this thread.
pub fn load_filter(program: &[u64], flags: u32) -> nix::Result<()> {
    const SET_MODE_FILTER: u32 = 1;
    let length = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let filter = program.as_ptr().cast_mut().cast::<libc::sock_filter>();
    let program = libc::sock_fprog { len: length, filter };
    // SAFETY: `program` names as many instructions as the slice holds, each of eight bytes; the kernel copies them.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &program) }).map(drop)
}

/// Closes descriptors `first` to `last`, which nobody may use any more.
pub fn close_range(first: u32, last: u32) {
    // SAFETY: takes three integers; only a process that is about to call execve, and uses none of them, calls this.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Accepts a connection.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = nix::sys::socket::accept4(listener.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives one message and the descriptors beside it, four at most.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: nix::sys::socket::MsgFlags,
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut data = [io::IoSliceMut::new(bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these descriptors for this process; nobody else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, fds))
}

/// A duplicate whose number is at least `lowest`, closed by execve.
pub fn duplicate_above(fd: BorrowedFd<'_>, lowest: RawFd) -> nix::Result<OwnedFd> {
    let number = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes descriptor `number` one of what `fd` is, which execve leaves open.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: dup2 on numbers. What it closes at `number` is somebody's, but the callers are about to execve or exit and use
    // none of their own descriptors of such numbers any more.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// sched_setattr(2) for this thread.
pub fn set_scheduler(attributes: &libc::sched_attr) -> nix::Result<()> {
    // SAFETY: the structure says its own size and outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes, 0) }).map(drop)
}

/// ioprio_set(2) for this thread.
pub fn set_io_priority(class: i32, priority: i32) -> nix::Result<()> {
    const WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: i32 = 13;
    let value = class << CLASS_SHIFT | priority;
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// bpf(2); `attributes` is union bpf_attr, and what it points to outlives the call.
pub fn bpf(command: i32, attributes: &[u32]) -> nix::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told of; what it makes of addresses among them it checks itself, and
    // for the commands in use it only reads there.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), std::mem::size_of_val(attributes))
    };
    Errno::result(result).map(|value| value as i32)
}

/// A command of bpf(2) that makes a descriptor.
pub fn bpf_object(command: i32, attributes: &[u32]) -> nix::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Processors that the guest has.
pub fn processors() -> usize {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN) {
        Ok(Some(count @ 1..)) => count as usize,
        _ => 1,
    }
}

/// Reaps one ended child, without waiting: its pid and what a shell would make of its end. `None` when none has ended.
///
/// Not nix's waitpid: it fails, after the reaping, on a process that a real-time signal has ended.
pub fn reap() -> nix::Result<Option<(i32, u32)>> {
    let mut status = 0;
    // SAFETY: waitpid writes one int, which outlives the call.
    match Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }) {
        Ok(0) | Err(Errno::ECHILD) => Ok(None),
        Ok(pid) => Ok(Some((pid, exit_code(status)))),
        Err(error) => Err(error),
    }
}

fn exit_code(status: i32) -> u32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status) as u32
    } else {
        libc::WEXITSTATUS(status) as u32
    }
}

/// A signal as C's library has it, in lower case.
pub fn signal_words(signal: i32) -> String {
    // SAFETY: strsignal takes any number; its text ends in a zero and stays until the next call of this thread.
    let words = unsafe { std::ffi::CStr::from_ptr(libc::strsignal(signal)) };
    words.to_string_lossy().to_lowercase()
}

/// Ends the process at once, without what `exit` runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of the process.
    unsafe { libc::_exit(code) }
}

/// Ends the machine, by power-off or by reset. Only PID 1 calls it; returns when the kernel refuses.
pub fn end_machine(by_reset: bool) {
    let mode = if by_reset {
        nix::sys::reboot::RebootMode::RB_AUTOBOOT
    } else {
        nix::sys::reboot::RebootMode::RB_POWER_OFF
    };
    let _ = nix::sys::reboot::reboot(mode);
}

/// Ignores SIGPIPE: writers look at EPIPE.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN installs no handler that could run.
    let _ = unsafe {
        nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(libc::SIGKILL), 137);
        assert_eq!(exit_code(libc::SIGSEGV | 0x80), 139);
        assert_eq!(exit_code(40), 168);
    }
}
