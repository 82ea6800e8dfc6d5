//! `rt debug`: a shell in the guest itself, beside its agent.
//!
//! The guest has no program but the agent, so the host lends it one: a static shell, busybox where nothing else is named,
//! goes over a stream of its own into the guest's memory and is gone with its last process (docs/decisions/0016).

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::Builder;

use oci_spec::runtime::{Process, ProcessBuilder};

use super::exec::ExecRequest;
use super::preserve;
use crate::agent::{self, Agent};
use crate::config::{Config, DEFAULT_PATH};
use crate::sys::random;

/// Where a busybox may be.
const DIRECTORIES: [&str; 4] = ["/bin", "/usr/bin", "/usr/local/bin", "/usr/lib/busybox"];
/// What the guest has in /, and what a shell that was lent may expect.
const PATH: &str = "PATH=/bin:/sbin:/usr/bin:/usr/sbin";

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the debug console is off: hypervisor.debug_console is false ({origin}). Set it in {DEFAULT_PATH}, or \
         RT_HYPERVISOR_DEBUG_CONSOLE=true for this call; the sandbox need not be started again"
    )]
    Off { origin: String },
    #[error(
        "the guest has no shell, and there is none to lend it: no static busybox in {}. Install one (Debian: busybox-static), \
         or name a static program in hypervisor.debug_shell",
        DIRECTORIES.join(", ")
    )]
    NoShell,
    #[error("cannot lend the guest {path} ({origin}): {reason}")]
    Shell { path: PathBuf, origin: String, reason: String },
}

/// What `rt debug` is asked for: with no command an interactive shell, on a terminal if the caller has one.
///
/// # Errors
/// [`Error`]
pub fn request(
    id: &str,
    root: PathBuf,
    command: &[String],
    terminal: bool,
    config: &Config,
) -> Result<ExecRequest, Error> {
    if !config.hypervisor.debug_console {
        return Err(Error::Off { origin: config.origin("hypervisor.debug_console") });
    }
    Ok(ExecRequest {
        id: id.into(),
        root,
        process: process(id, command, terminal),
        program: Some(shell(config)?),
        console_socket: None,
        cgroup: String::new(),
        ignore_paused: true,
        detached: false,
        preserve: preserve::Range { first: preserve::FIRST, count: 0 },
    })
}

fn process(id: &str, command: &[String], terminal: bool) -> Process {
    // The shell finds the command, which may be one that only it has.
    let before = if command.is_empty() { &["sh"][..] } else { &["sh", "-c", "\"$@\"", "sh"] };
    let arguments = before.iter().map(|&word| word.to_owned()).chain(command.iter().cloned());
    let mut environment = vec![PATH.to_owned(), "HOME=/".into(), format!("PS1=guest of {id}:\\w# ")];
    environment.extend(std::env::var("TERM").map(|term| format!("TERM={term}")));
    let process = ProcessBuilder::default()
        .args(arguments.collect::<Vec<_>>())
        .env(environment)
        .cwd("/")
        .terminal(terminal)
        .build();
    process.expect("all that a process needs is given")
}

fn shell(config: &Config) -> Result<PathBuf, Error> {
    if let Some(path) = &config.hypervisor.debug_shell {
        let origin = config.origin("hypervisor.debug_shell");
        return match static_executable(path) {
            Ok(()) => Ok(path.clone()),
            Err(reason) => Err(Error::Shell { path: path.clone(), origin, reason }),
        };
    }
    let candidates = DIRECTORIES.iter().map(|directory| Path::new(directory).join("busybox"));
    candidates.into_iter().find(|path| static_executable(path).is_ok()).ok_or(Error::NoShell)
}

/// Whether a file is a program that needs no other: ELF, of this machine, without an interpreter.
///
/// # Errors
/// Why not, for a message.
fn static_executable(path: &Path) -> Result<(), String> {
    const INTERPRETER: u32 = 3;
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > rt_proto::MAX_PROGRAM {
        return Err(format!("it is longer than {} MiB", rt_proto::MAX_PROGRAM >> 20));
    }
    let mut header = [0; 64];
    let read = file.read_exact_at(&mut header, 0);
    let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    // ELFCLASS64, ELFDATA2LSB, ET_EXEC or ET_DYN, EM_X86_64: elf(5).
    if read.is_err() || header[..6] != *b"\x7fELF\x02\x01" || !matches!(number(16), 2 | 3) || number(18) != 62
    {
        return Err("it is no program for x86-64".into());
    }
    let table = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
    let (size, count) = (u64::from(number(54)), u64::from(number(56)));
    for index in 0..count {
        let mut kind = [0; 4];
        let at = table.checked_add(index * size).ok_or("its program headers are beyond its end")?;
        file.read_exact_at(&mut kind, at).map_err(|_| "its program headers are beyond its end")?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Err(
                "it is linked dynamically, and the guest has no libraries: name a static program".into()
            );
        }
    }
    Ok(())
}

/// Sends a program into the guest by a stream of its own, from a thread: the agent reads it when it is asked to run it.
/// Gives the stream's name.
///
/// # Errors
/// What the agent's client says.
pub fn lend(path: &Path, agent: &Agent) -> Result<u64, agent::Error> {
    let name = random::non_zero().map_err(agent::Error::Stream)?;
    let mut file = File::open(path).map_err(agent::Error::Stream)?.take(rt_proto::MAX_PROGRAM);
    let mut stream: UnixStream = agent.open_stream(name)?;
    let send = move || {
        // The agent says what it misses.
        let _ = io::copy(&mut file, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    };
    Builder::new().name("program".into()).spawn(send).map_err(agent::Error::Stream)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_off_unless_somebody_turns_it_on() {
        let error = request("c", "/run/rt".into(), &[], false, &Config::default()).unwrap_err().to_string();
        assert!(error.contains("hypervisor.debug_console is false (default)"), "{error}");
    }

    #[test]
    fn a_command_is_the_shells_to_find() {
        let of = |command: &[&str]| {
            let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
            process("c", &command, false).args().clone().unwrap()
        };
        assert_eq!(of(&[]), ["sh"]);
        assert_eq!(of(&["ps", "-o", "a b"]), ["sh", "-c", "\"$@\"", "sh", "ps", "-o", "a b"]);
    }

    #[test]
    fn what_is_no_static_program_is_not_lent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reason = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            static_executable(file.path()).unwrap_err()
        };
        assert_eq!(reason(b""), "it is no program for x86-64");
        assert_eq!(reason(b"#!/bin/sh\n"), "it is no program for x86-64");
        let mut header = [0; 64 + 56];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (header[16], header[18], header[32], header[54], header[56]) = (2, 62, 64, 56, 1);
        header[64] = 3;
        assert!(reason(&header).contains("linked dynamically"));
        assert!(reason(&header[..66]).contains("beyond its end"));
        header[39] = 0xff;
        assert!(reason(&header).contains("beyond its end"));
        (header[39], header[64]) = (0, 1);
        std::fs::write(file.path(), header).unwrap();
        assert_eq!(static_executable(file.path()), Ok(()));
    }
}
