//! The hooks that run on the host: prestart, createRuntime, poststart and poststop (runtime-spec config.md#posix-platform-hooks).
//! createContainer and startContainer run in the guest; `share` serves the former's programs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Hook, Hooks};

use crate::sys::{pidfd, text::printable};

/// What a hook may say in an error message.
const MAX_OUTPUT: usize = 4096;

/// The moments at which hooks run on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Prestart,
    CreateRuntime,
    Poststart,
    Poststop,
}

/// A hook that failed; the wording is runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("error running {moment} hook #{index}: {path}")]
    Start {
        moment: Moment,
        index: usize,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "error running {moment} hook #{index}: error running hook: {status}, stdout: {stdout}, stderr: {stderr}"
    )]
    Status { moment: Moment, index: usize, status: ExitStatus, stdout: String, stderr: String },
    #[error("error running {moment} hook #{index}: hook ran past specified timeout of {seconds}s")]
    Timeout { moment: Moment, index: usize, seconds: i64 },
}

impl std::fmt::Display for Moment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

impl Moment {
    // Callers such as docker still use prestart.
    #[allow(deprecated)]
    fn of(self, hooks: &Hooks) -> &[Hook] {
        let hooks = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }
}

/// Whether the guest runs hooks when the container is started.
pub fn has_start_hooks(hooks: &Option<Hooks>) -> bool {
    hooks.as_ref().and_then(|hooks| hooks.start_container().as_ref()).is_some_and(|hooks| !hooks.is_empty())
}

/// Runs the hooks of one moment in their order; `state` is the container's state as JSON.
///
/// # Errors
/// [`Error`] of the first hook that fails; the later ones do not run then.
pub fn run(moment: Moment, hooks: &Option<Hooks>, state: &str) -> Result<(), Error> {
    let Some(hooks) = hooks else { return Ok(()) };
    moment.of(hooks).iter().enumerate().try_for_each(|(index, hook)| run_one(moment, index, hook, state))
}

fn run_one(moment: Moment, index: usize, hook: &Hook, state: &str) -> Result<(), Error> {
    let failed = |source| Error::Start { moment, index, path: hook.path().clone(), source };
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    command.envs(hook.env().iter().flatten().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its state.
        let _ = stdin.write_all(state.as_bytes());
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = match hook.timeout() {
        Some(seconds) if !ends_within(&child, seconds).map_err(failed)? => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Timeout { moment, index, seconds });
        }
        _ => child.wait().map_err(failed)?,
    };
    if status.success() {
        return Ok(());
    }
    let [stdout, stderr] = [stdout, stderr].map(|thread| thread.join().unwrap_or_default());
    Err(Error::Status { moment, index, status, stdout, stderr })
}

/// Reads all that a hook says, so that it never blocks on a full pipe, and keeps the beginning.
fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let Some(mut pipe) = pipe else { return String::new() };
        let mut kept = Vec::new();
        let _ = pipe.by_ref().take(MAX_OUTPUT as u64).read_to_end(&mut kept);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        printable(&String::from_utf8_lossy(&kept), MAX_OUTPUT)
    })
}

fn ends_within(child: &Child, seconds: i64) -> std::io::Result<bool> {
    let pidfd = pidfd::open(child.id() as i32)?;
    let timeout = Duration::from_secs(seconds.max(0) as u64);
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout)? > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hooks(script: &str, timeout: Option<i64>) -> Option<Hooks> {
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]});
        if let Some(seconds) = timeout {
            hook["timeout"] = seconds.into();
        }
        serde_json::from_value(json!({"poststop": [hook]})).unwrap()
    }

    #[test]
    fn a_hook_gets_state_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("read state; echo \"$A $state\" > {}", out.display());
        run(Moment::Poststop, &hooks(&script, None), "{}\n").unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "b {}\n");
    }

    #[test]
    fn a_failing_hook_is_told_with_its_words() {
        let error = run(Moment::Poststop, &hooks("echo no >&2; exit 3", None), "{}").unwrap_err();
        let words =
            "error running poststop hook #0: error running hook: exit status: 3, stdout: , stderr: no";
        assert_eq!(error.to_string(), words);
    }

    #[test]
    fn a_slow_hook_is_ended() {
        let error = run(Moment::Poststop, &hooks("exec sleep 60", Some(1)), "{}").unwrap_err();
        assert!(matches!(error, Error::Timeout { seconds: 1, .. }));
    }

    #[test]
    fn other_moments_do_not_run_it() {
        run(Moment::Poststart, &hooks("exit 1", None), "{}").unwrap();
    }
}
