//! How the words of a failure get from a container's half-made first process to the host.
//!
//! libcontainer's errors cross its processes as one line without their cause; the cause is in its log only. So a runner
//! has a socket that all processes of the creation inherit: the executor writes finished messages to it, and a subscriber
//! writes libcontainer's error records. After a failure the runner takes the best line.

use std::fmt::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::kmsg;

/// First byte of a line: a message meant for the user, or a record of libcontainer's log.
const MESSAGE: char = '!';
const RECORD: char = '-';
/// All that is in order.
const RUNS: [u8; 1] = *b"+";
/// Bytes of a line that are kept.
const LONGEST: usize = 4096;

/// The writing end. Never blocks: what does not fit is lost.
#[derive(Clone)]
pub struct Report {
    socket: Arc<OwnedFd>,
    /// After the creation: to [`Started`].
    started: Option<Arc<OwnedFd>>,
}

/// The reading end.
pub struct Reader(OwnedFd);

/// The two ends for one creation. Packets, since a pipe without reader would kill its writer.
/// What the second one writes after the creation goes to `started`, else to the process's own stderr.
pub fn pair(started: Option<OwnedFd>) -> nix::Result<(Reader, Report)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (read, write) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Reader(read), Report { socket: Arc::new(write), started: started.map(Arc::new) }))
}

/// Learns whether a container that was told to start has come to its own program: its startContainer hooks are run before.
pub struct Started(OwnedFd);

impl Started {
    /// With the end that the container's process gets.
    ///
    /// # Errors
    /// socketpair(2)'s.
    pub fn pair() -> nix::Result<(Self, OwnedFd)> {
        let (read, write) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(read), write))
    }

    /// Waits.
    ///
    /// # Errors
    /// Why not.
    pub fn wait(self) -> Result<(), String> {
        let mut lines = String::new();
        let mut chunk = [0; LONGEST];
        loop {
            match nix::unistd::read(self.0.as_fd(), &mut chunk) {
                Ok(length @ 1..) if chunk[..length] == RUNS => return Ok(()),
                Ok(length @ 1..) => lines.push_str(&String::from_utf8_lossy(&chunk[..length])),
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Err(choose(&lines).unwrap_or_else(|| {
            "a startContainer hook failed, or its process was killed before its own program ran".to_owned()
        }))
    }
}

impl Report {
    /// A finished message for the user; of several the first counts.
    pub fn message(&self, text: &str) {
        self.line(MESSAGE, text);
    }

    fn line(&self, kind: char, text: &str) {
        let line = format!("{kind}{}\n", text.replace('\n', " "));
        let bytes = &line.as_bytes()[..line.len().min(LONGEST)];
        let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
        // The second where it has left something unread.
        if matches!(sent, Err(Errno::EPIPE | Errno::ECONNRESET)) {
            // The runner has gone: the container was started, and its stderr is where runc would say it.
            let _ = match &self.started {
                Some(started) => send(started.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL),
                None => nix::unistd::write(std::io::stderr(), &bytes[1..]),
            };
        }
    }

    /// After the creation: the container's own program comes next.
    pub fn runs(&self) {
        self.tell_start(&RUNS);
    }

    /// After the creation: why it does not.
    pub fn fails(&self, text: &str) {
        let line = format!("{MESSAGE}{}", text.replace('\n', " "));
        self.tell_start(&line.as_bytes()[..line.len().min(LONGEST)]);
    }

    /// By write(2), which the container's seccomp profile allows if it allows anything.
    fn tell_start(&self, bytes: &[u8]) {
        if let Some(started) = &self.started {
            let _ = nix::unistd::write(started, bytes);
        }
    }

    /// Makes this process's, and its children's, libcontainer records go to the report.
    pub fn subscribe(&self) {
        let _ = tracing::subscriber::set_global_default(Records(self.clone()));
    }
}

impl Reader {
    /// The best line so far: the executor's, else the first record (the innermost cause comes first).
    pub fn best(&self) -> Option<String> {
        let mut bytes = Vec::new();
        let mut chunk = [0; LONGEST];
        while let Ok(length @ 1..) = nix::unistd::read(self.0.as_fd(), &mut chunk) {
            bytes.extend_from_slice(&chunk[..length]);
            bytes.push(b'\n');
        }
        choose(&String::from_utf8_lossy(&bytes))
    }
}

fn choose(lines: &str) -> Option<String> {
    let of = |kind: char| lines.lines().find_map(|line| line.strip_prefix(kind)).map(str::to_owned);
    of(MESSAGE).or_else(|| of(RECORD).map(|line| hook_words(&line).unwrap_or(line)))
}

/// The failure of a createContainer hook in the words of the ones that run on the host; `None` when it is none.
fn hook_words(line: &str) -> Option<String> {
    let reason = line.strip_prefix("failed to run create container hooks: ")?;
    let code = reason.strip_prefix("NonZeroExitCode(").and_then(|rest| rest.strip_suffix(')'));
    let reason = match (reason, code) {
        ("Timeout", _) => "it ran past its timeout".to_owned(),
        ("Killed", _) => "it was ended by a signal".to_owned(),
        (_, Some(code)) => format!("exit status: {code}"),
        (other, None) => match not_started(other) {
            Some(reason) => reason,
            None => errno_words(other),
        },
    };
    Some(format!("error running createContainer hook: {reason}"))
}

/// Why a hook's program could not be run at all, which libcontainer shows as a value of Rust's: `CommandExecute(Os { …, message: "…" })`.
fn not_started(debug: &str) -> Option<String> {
    let message = debug.strip_prefix("CommandExecute(")?.split_once("message: \"")?.1.split_once('"')?.0;
    Some(format!(
        "{}: the program runs in the guest and needs there what it is made of, an interpreter or libraries: use a static executable",
        message.to_lowercase()
    ))
}

/// A subscriber that keeps errors, and with `rt.log=debug` shows everything on the console.
struct Records(Report);

impl Subscriber for Records {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR || (kmsg::debugging() && *metadata.level() <= Level::DEBUG)
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = text.line();
        kmsg::debug!("libcontainer: {line}");
        if *event.metadata().level() == Level::ERROR {
            self.0.line(RECORD, &line);
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message and fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
    error: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "err" | "error" | "e" | "ret" => write!(self.error, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Text {
    /// "message field=value: error", with a bare errno in words.
    fn line(&self) -> String {
        let mut line = format!("{}{}", self.message, self.fields);
        if !self.error.is_empty() {
            line.push_str(": ");
            line.push_str(&errno_words(&self.error));
        }
        line
    }
}

/// `Syscall(Nix(ENOENT))` and the like end in the errno's words.
pub fn errno_words(debug: &str) -> String {
    let innermost = debug.trim_end_matches(')').rsplit('(').next().unwrap_or(debug);
    let is_errno =
        innermost.starts_with('E') && innermost.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if !is_errno {
        return debug.to_owned();
    }
    (1..134)
        .map(nix::errno::Errno::from_raw)
        .find(|errno| format!("{errno:?}") == innermost)
        .map_or_else(|| debug.to_owned(), crate::lookup::words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_message_goes_before_records() {
        assert_eq!(choose("-first\n-second\n!said\n"), Some("said".into()));
        assert_eq!(choose("-first\n-second\n"), Some("first".into()));
        assert_eq!(choose(""), None);
    }

    #[test]
    fn lines_cross_the_socket() {
        let (reader, report) = pair(None).expect("a pair");
        report.line(RECORD, "cause");
        report.message("two\nlines");
        assert_eq!(reader.best(), Some("two lines".into()));
        assert_eq!(reader.best(), None);
    }

    #[test]
    fn a_start_fails_with_its_reason() {
        for (text, outcome) in [("no", Err("no".to_owned())), ("", Ok(()))] {
            let (started, end) = Started::pair().expect("a pair");
            let (_, report) = pair(Some(end)).expect("a pair");
            if text.is_empty() {
                report.runs()
            } else {
                report.fails(text)
            }
            drop(report);
            assert_eq!(started.wait(), outcome);
        }
    }

    #[test]
    fn hooks_fail_in_the_words_of_the_hosts() {
        let words = |text: &str| choose(&format!("-failed to run {text}")).expect("a line");
        assert_eq!(
            words("create container hooks: NonZeroExitCode(3)"),
            "error running createContainer hook: exit status: 3"
        );
        assert_eq!(
            words("create container hooks: Timeout"),
            "error running createContainer hook: it ran past its timeout"
        );
        let none = words(
            "create container hooks: CommandExecute(Os { code: 2, kind: NotFound, message: \"No such file or directory\" })",
        );
        assert!(
            none.starts_with("error running createContainer hook: no such file or directory: "),
            "{none}"
        );
    }

    #[test]
    fn an_errno_is_put_in_words() {
        assert_eq!(errno_words("Nix(ENOENT)"), "no such file or directory");
        assert_eq!(errno_words("Syscall(Nix(EPERM))"), "operation not permitted");
        assert_eq!(errno_words("Custom(\"x\")"), "Custom(\"x\")");
    }
}
