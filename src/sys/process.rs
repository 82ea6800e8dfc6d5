//! Starting a program in new namespaces with named descriptors and nothing else: clone3(2), then execve(2).
//!
//! The caller may have threads, so the child between the two calls is a copy of one thread of a process whose locks
//! may all be held: it allocates nothing, locks nothing and calls nothing but system calls.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

/// linux/sched.h; libc's constant of that name is cut to 32 bits.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// A program to be started.
#[derive(Debug)]
pub struct Program<'a> {
    pub path: &'a CStr,
    /// argv, from argv[0] on. The environment is empty: whatever the caller's holds is not for a jailed process.
    pub arguments: &'a [CString],
    /// Become the descriptors 0, 1, 2, … in this order; every other descriptor is closed.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// CLONE_NEW… flags.
    pub namespaces: CloneFlags,
}

impl Program<'_> {
    /// Starts the program in a session of its own, with no signal blocked and no handler set. Returns when
    /// it has been executed: its PID here, and its pidfd.
    ///
    /// # Errors
    /// What clone3, or in the child dup2, close_range or execve said. No process is left then.
    pub fn start(&self) -> io::Result<(i32, OwnedFd)> {
        let (report, low_reporter) = pipe2(OFlag::O_CLOEXEC)?;
        // Every source first above every target, so that moving one into place cannot overwrite another.
        let above = |fd: BorrowedFd<'_>| -> io::Result<OwnedFd> {
            let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(self.descriptors.len() as RawFd))?;
            // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        };
        let sources = self.descriptors.iter().map(|fd| above(*fd)).collect::<io::Result<Vec<_>>>()?;
        let reporter = above(low_reporter.as_fd())?;

        let mut argv: Vec<*const libc::c_char> = self.arguments.iter().map(|a| a.as_ptr()).collect();
        argv.push(ptr::null());
        let mut pidfd: RawFd = -1;
        let clone = libc::clone_args {
            flags: self.namespaces.bits() as u64 | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
            pidfd: ptr::from_mut(&mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            child_tid: 0,
            parent_tid: 0,
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: 0,
        };
        // SAFETY: like fork(2): no CLONE_VM, so the child runs on its own copy of this stack; `clone` and `pidfd` outlive
        // the call. The child goes only into `execute`, which keeps to what a forked child may do.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &clone, size_of::<libc::clone_args>()) };
        if pid == 0 {
            // SAFETY: this is the child of the clone above; argv is null-terminated and everything it points to was copied.
            unsafe { execute(self.path, &argv, &sources, reporter.as_raw_fd()) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: clone3 with CLONE_PIDFD succeeded, so it stored a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // The child's copy is now the only one: its end is what the read below waits for.
        drop((low_reporter, reporter, sources));

        let mut errno = [0; 4];
        match File::from(report).read_exact(&mut errno) {
            // Closed by a successful execve.
            Err(_) => Ok((pid as i32, pidfd)),
            Ok(()) => {
                let _ = waitpid(Pid::from_raw(pid as i32), None);
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
        }
    }
}

/// The child: moves the descriptors into place, closes the others, executes the program.
///
/// # Safety
/// Only in a process just made by clone3; `argv` ends with a null pointer.
unsafe fn execute(path: &CStr, argv: &[*const libc::c_char], sources: &[OwnedFd], reporter: RawFd) -> ! {
    // SAFETY: system calls on numbers, on memory of this stack frame, and on the arguments, which the caller vouches for.
    unsafe {
        let attempt = || -> Result<(), ()> {
            // A terminal's Ctrl-C goes to the whole process group: it is the starter's affair.
            if libc::setsid() < 0 {
                return Err(());
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) < 0 {
                return Err(());
            }
            for (target, source) in sources.iter().enumerate() {
                if libc::dup2(source.as_raw_fd(), target as RawFd) < 0 {
                    return Err(());
                }
            }
            let rest = sources.len() as libc::c_uint;
            if libc::syscall(libc::SYS_close_range, rest, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
                return Err(());
            }
            let environment = [ptr::null::<libc::c_char>()];
            libc::execve(path.as_ptr(), argv.as_ptr(), environment.as_ptr());
            Err(())
        };
        let _ = attempt();
        let errno = Errno::last_raw().to_ne_bytes();
        libc::write(reporter, errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

/// A process that does nothing, in new namespaces, for as long as this value or its parent lives.
pub struct Idle {
    pid: i32,
    /// Its folder in /proc, which may be another PID namespace's.
    folder: String,
    /// Its end is what the process waits for.
    end: Option<OwnedFd>,
}

impl Idle {
    /// # Errors
    /// What pipe2(2) or clone3(2) say; that it has no folder in /proc.
    pub fn start(namespaces: CloneFlags) -> io::Result<Self> {
        let (wait, end) = pipe2(OFlag::O_CLOEXEC)?;
        let (report, reporter) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: all fields are numbers.
        let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
        clone.flags = namespaces.bits() as u64 | CLONE_CLEAR_SIGHAND;
        // SAFETY: like fork(2): no CLONE_VM. The child goes only into `idle`.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &clone, size_of::<libc::clone_args>()) };
        if pid == 0 {
            // SAFETY: this is the child of the clone above.
            unsafe { idle(wait.as_raw_fd(), end.as_raw_fd(), reporter.as_raw_fd()) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(reporter);
        // From here on dropping it ends the process.
        let mut idle = Self { pid: pid as i32, folder: String::new(), end: Some(end) };
        let mut name = String::new();
        File::from(report).read_to_string(&mut name)?;
        if name.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "/proc is not there"));
        }
        idle.folder = format!("/proc/{name}");
        Ok(idle)
    }

    pub fn folder(&self) -> &str {
        &self.folder
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.end = None;
        reap(self.pid);
    }
}

/// The child: tells what /proc calls it, then waits for its parent's end of `wait` to be closed.
///
/// # Safety
/// Only in a process just made by clone3.
unsafe fn idle(wait: RawFd, end: RawFd, reporter: RawFd) -> ! {
    let mut name = [0u8; 16];
    // SAFETY: system calls on numbers, and on memory of this stack frame.
    unsafe {
        libc::close(end);
        let length = libc::readlink(c"/proc/self".as_ptr(), name.as_mut_ptr().cast(), name.len());
        if length > 0 {
            libc::write(reporter, name.as_ptr().cast(), length as usize);
        }
        libc::close(reporter);
        libc::read(wait, name.as_mut_ptr().cast(), 1);
        libc::_exit(0)
    }
}

/// A pidfd of the calling process.
///
/// # Errors
/// What pidfd_open(2) says: ENOSYS before Linux 5.3.
pub fn own_pidfd() -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// SIGKILL to the process, which cannot be another one that got its PID. No error: it has ended then.
pub fn kill(pidfd: BorrowedFd<'_>) {
    // SAFETY: takes numbers and a null pointer, for which the kernel fills in the signal's origin itself.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            ptr::null::<libc::c_void>(),
            0,
        )
    };
}

/// Reaps a child that has been killed, or has ended: its exit code or signal in words.
pub fn reap(pid: i32) -> String {
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return format!("exit code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => return format!("killed by {signal}"),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return format!("lost: {}", error.desc()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(path: &CStr, arguments: &[&CStr], descriptors: &[BorrowedFd<'_>]) -> io::Result<String> {
        let arguments: Vec<CString> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let program = Program { path, arguments: &arguments, descriptors, namespaces: CloneFlags::empty() };
        let (pid, _pidfd) = program.start()?;
        Ok(reap(pid))
    }

    #[test]
    fn reports_why_the_program_cannot_be_executed() {
        let null = File::open("/dev/null").unwrap();
        let error = run(c"/nowhere/to/be/found", &[c"x"], &[null.as_fd()]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn passes_the_named_descriptors_and_nothing_else() {
        let null = File::open("/dev/null").unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        // A descriptor that is inheritable, as if somebody had forgotten close-on-exec.
        let leak = nix::unistd::dup(&null).unwrap();
        let descriptors = [null.as_fd(), write.as_fd(), write.as_fd(), null.as_fd()];
        let script = c"for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && printf $fd; done; env";
        let ended = run(c"/bin/sh", &[c"sh", c"-c", script], &descriptors).unwrap();
        assert_eq!(ended, "exit code 0");
        drop((leak, write));
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        let numbers = out.lines().next().unwrap();
        assert!(numbers.starts_with("0123"), "{out}");
        assert!(!numbers.contains('4') && !out.contains("HOME="), "{out}");
    }

    #[test]
    fn says_how_a_child_ended() {
        let null = File::open("/dev/null").unwrap();
        let script = |script| run(c"/bin/sh", &[c"sh", c"-c", script], &[null.as_fd(); 3]).unwrap();
        assert_eq!(script(c"exit 7"), "exit code 7");
        assert_eq!(script(c"kill -9 $$"), "killed by SIGKILL");
    }
}
