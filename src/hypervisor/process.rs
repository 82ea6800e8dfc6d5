//! A VMM process as its parent sees it, the same for both backends: what it prints is kept, its end is noticed, it is
//! killed and reaped.
//!
//! One thread drains the two pipes, so that a chatty guest never blocks its VMM; it ends with the process. Everything
//! read is an enemy's word: bounded, and made printable before anyone sees it. The console is kept in the state
//! directory, too ([`console`]), for other processes and for those who come when this one is dead.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::console::Console;
use super::{Ending, Error};
use crate::jail::Child;
use crate::sys::process;

/// So much is kept of each stream: its end.
const RING_BYTES: usize = 64 * 1024;

/// A running, or ended, VMM process. Dropping it kills and reaps.
#[derive(Debug)]
pub struct VmmProcess {
    pid: i32,
    start_time: u64,
    pidfd: OwnedFd,
    output: Arc<Mutex<[VecDeque<u8>; 2]>>,
    drain: Option<JoinHandle<()>>,
    explain: fn(i32) -> &'static str,
    /// How it ended, once it is reaped.
    status: Option<String>,
}

// Indexes of the rings.
const CONSOLE: usize = 0;
const LOG: usize = 1;

impl VmmProcess {
    /// Watches `child`. `console` and `log` are the reading ends of its standard output and error; the console is
    /// kept in `state_dir`, too; `explain` gives the words for its exit codes.
    ///
    /// # Errors
    /// [`Error::Launch`]; the process is killed and reaped then.
    pub fn new(
        child: Child,
        console: OwnedFd,
        log: OwnedFd,
        state_dir: &Path,
        explain: fn(i32) -> &'static str,
    ) -> Result<Self, Error> {
        let Child { pid, pidfd } = child;
        let output = Arc::default();
        let mut process = Self { pid, start_time: 0, pidfd, output, drain: None, explain, status: None };
        let launch = |what| move |source| Error::Launch { what, source };
        process.start_time = start_time(pid).map_err(launch("its process cannot be identified"))?;
        process.drain = Some(
            process
                .start_drain(console, log, Console::new(state_dir))
                .map_err(launch("its output cannot be watched"))?,
        );
        Ok(process)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Field 22 of /proc/PID/stat.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns when `fd` is readable (or hung up).
    ///
    /// # Errors
    /// [`Error::Ended`] when the process ends first, [`Error::Deadline`] when `deadline` passes first.
    pub fn wait_readable_or_end(&mut self, fd: BorrowedFd<'_>, deadline: Instant) -> Result<(), Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last millisecond is waited for and not spun through.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(self.pidfd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_zero() => return Err(Error::Deadline(Box::new(self.so_far("running")))),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Error::Launch { what: "waiting for it failed", source: errno.into() });
                }
            }
            if fds[0].any() == Some(true) {
                return Ok(());
            }
            if fds[1].any() == Some(true) {
                return Err(Error::Ended(Box::new(self.end())));
            }
        }
    }

    /// [`Self::end`], after the process had until `deadline` to end by itself.
    pub fn end_by_itself(&mut self, deadline: Instant) -> Ending {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.pidfd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                _ => return self.end(),
            }
        }
    }

    /// Kills the process if it still runs, reaps it, and tells how it ended. Idempotent.
    pub fn end(&mut self) -> Ending {
        if self.status.is_none() {
            self.status = Some(self.reap());
            if let Some(drain) = self.drain.take() {
                // The thread sees the pidfd, reads what is left, and ends; a panic in it would lose output only.
                let _ = drain.join();
            }
        }
        self.so_far(self.status.as_deref().unwrap_or_default())
    }

    /// SIGKILL, which a process that has ended already is not touched by: how it ended by itself is what is told.
    pub fn kill(&self) {
        process::kill(self.pidfd());
    }

    fn reap(&self) -> String {
        self.kill();
        loop {
            return match waitid(Id::PIDFd(self.pidfd()), WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, code)) => match (self.explain)(code) {
                    "" => format!("exit code {code}"),
                    words => format!("exit code {code}: {words}"),
                },
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => format!("unknown end: {errno}"),
            };
        }
    }

    fn so_far(&self, status: &str) -> Ending {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let (timeline, log) = split_marks(&printable(&output[LOG]));
        Ending { status: status.to_owned(), log, console: printable(&output[CONSOLE]), timeline }
    }

    fn start_drain(&self, console: OwnedFd, log: OwnedFd, kept: Console) -> io::Result<JoinHandle<()>> {
        for pipe in [&console, &log] {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let pidfd = self.pidfd.try_clone()?;
        let output = Arc::clone(&self.output);
        let pipes = vec![(CONSOLE, File::from(console)), (LOG, File::from(log))];
        let thread = thread::Builder::new().name("vmm output".to_owned()).stack_size(64 * 1024);
        thread.spawn(move || drain(&pidfd, pipes, &output, kept))
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the pipes into their rings until the process has ended and they are empty.
fn drain(
    pidfd: &OwnedFd,
    mut pipes: Vec<(usize, File)>,
    output: &Mutex<[VecDeque<u8>; 2]>,
    mut kept: Console,
) {
    let mut ended = false;
    while !ended {
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(pipes.iter().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => ended = fds[0].any() == Some(true),
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        pipes.retain_mut(|(stream, pipe)| {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            keep_what_is_there(pipe, &mut output[*stream], (*stream == CONSOLE).then_some(&mut kept))
        });
    }
}

/// Moves what a pipe holds, at most a ring's worth at a time, to the end of its ring. False at its end of file.
fn keep_what_is_there(pipe: &mut File, ring: &mut VecDeque<u8>, mut kept: Option<&mut Console>) -> bool {
    let mut buffer = [0; 4096];
    for _ in 0..RING_BYTES / buffer.len() {
        match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                if let Some(kept) = &mut kept {
                    kept.write(&buffer[..count]);
                }
                ring.extend(&buffer[..count]);
                ring.drain(..ring.len().saturating_sub(RING_BYTES));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// Text for a terminal: nothing of it can move a cursor or ring a bell.
fn printable(bytes: &VecDeque<u8>) -> String {
    let bytes: Vec<u8> = bytes.iter().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    text.chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect::<String>()
        .lines()
        .filter(|line| !line.trim().is_empty())
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Takes the lines `@NAME NANOSECONDS`, marks of the timeline, out of a log.
fn split_marks(log: &str) -> (Vec<(String, u64)>, String) {
    let mut marks = Vec::new();
    let mut rest = String::new();
    for line in log.lines() {
        let mark = line.strip_prefix('@').and_then(|mark| mark.split_once(' '));
        match mark.and_then(|(name, ns)| Some((name.to_owned(), ns.parse().ok()?))) {
            Some(mark) => marks.push(mark),
            None => rest.extend([line, "\n"]),
        }
    }
    (marks, rest)
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.map(|stat| stat.starttime).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[allow(clippy::zombie_processes, reason = "VmmProcess reaps")]
    fn start(script: &str) -> VmmProcess {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("sh starts");
        let (console, log) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let pid = child.id() as i32;
        // SAFETY: pidfd_open takes numbers only.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(raw >= 0);
        // SAFETY: pidfd_open returned a new descriptor.
        let pidfd = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw as i32) };
        let explain = |code| if code == 3 { "three" } else { "" };
        let nowhere = Path::new("/nowhere");
        VmmProcess::new(Child { pid, pidfd }, console.into(), log.into(), nowhere, explain)
            .expect("it is watched")
    }

    fn wait(process: &mut VmmProcess, timeout: Duration) -> Error {
        let (never, _open) = nix::unistd::pipe().expect("a pipe");
        process.wait_readable_or_end(never.as_fd(), Instant::now() + timeout).expect_err("nothing is written")
    }

    #[test]
    fn the_end_is_told_with_console_log_and_marks() {
        let script = r"printf 'one\033[2J\r\n\ntwo'; echo '@vmm.run 12' >&2; echo '@what' >&2; exit 3";
        let Error::Ended(ending) = wait(&mut start(script), Duration::from_secs(60)) else {
            panic!("it ended by itself");
        };
        let expected = Ending {
            status: "exit code 3: three".into(),
            log: "@what\n".into(),
            console: "one[2J\ntwo\n".into(),
            timeline: vec![("vmm.run".into(), 12)],
        };
        assert_eq!(*ending, expected);
    }

    #[test]
    fn a_flood_blocks_nobody_and_its_end_is_kept() {
        let mut process = start("yes | head -c 1000000; echo last");
        assert!(matches!(wait(&mut process, Duration::from_secs(60)), Error::Ended(_)));
        let console = process.end().console;
        assert!(console.len() <= RING_BYTES && console.ends_with("y\nlast\n"), "{}", console.len());
    }

    #[test]
    fn a_deadline_leaves_it_running_and_end_kills() {
        let mut process = start("echo up; exec sleep 1000");
        let Error::Deadline(ending) = wait(&mut process, Duration::from_millis(300)) else {
            panic!("it runs on");
        };
        assert_eq!(ending.status, "running");
        assert_eq!(process.end().status, "killed by SIGKILL");
        assert_eq!(process.end().status, "killed by SIGKILL");
    }
}
