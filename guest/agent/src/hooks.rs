//! The startContainer hooks: run by a container's first process between its start and its own program, so in the container's
//! namespaces, with its rights and under its seccomp profile (runtime-spec config.md#startcontainer).
//!
//! libcontainer's own way is not used: it runs them before the profile where rt applies that last, and keeps the reason of a failure.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{Hook, Spec};
use serde_json::json;

use crate::lookup::words;
use crate::runner::bundle_dir;
use crate::sys;

/// What of a hook's output a message has.
const MAX_OUTPUT: u64 = 1024;

/// The hooks of one container.
#[derive(Clone)]
pub struct StartHooks {
    hooks: Vec<Hook>,
    /// What they read, but for the process's number.
    state: serde_json::Value,
}

impl StartHooks {
    pub fn new(hooks: Vec<Hook>, container: &str, spec: &Spec) -> Self {
        let state = json!({
            "ociVersion": spec.version(),
            "id": container,
            "status": "created",
            "bundle": bundle_dir(container),
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        Self { hooks, state }
    }

    /// Runs them in their order; one without variables of its own gets `environment`, the process's.
    ///
    /// # Errors
    /// For the user, of the first that fails; the later ones do not run then. The wording is runc's.
    pub fn run(&self, environment: &[String]) -> Result<(), String> {
        // No system call without need: the profile may not allow it.
        if self.hooks.is_empty() {
            return Ok(());
        }
        let mut state = self.state.clone();
        state["pid"] = std::process::id().into();
        let state = state.to_string();
        for (index, hook) in self.hooks.iter().enumerate() {
            run_one(hook, &state, environment)
                .map_err(|reason| format!("error running startContainer hook #{index}: {reason}"))?;
        }
        Ok(())
    }
}

fn run_one(hook: &Hook, state: &str, environment: &[String]) -> Result<(), String> {
    let failed = |error: io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        format!("{}: {}", hook.path().display(), errno.map_or_else(|| error.to_string(), words))
    };
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    let variables = hook.env().as_deref().unwrap_or(environment);
    command.env_clear().envs(variables.iter().filter_map(|pair| pair.split_once('=')));
    // Files, so that nobody has to read while it runs.
    let [stdout, stderr] = [output(), output()];
    command.stdin(Stdio::piped()).stdout(stdio(&stdout)).stderr(stdio(&stderr));
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read its state.
        let _ = stdin.write_all(state.as_bytes());
    }
    let status = match hook.timeout() {
        Some(seconds) if !ends_within(&child, seconds).map_err(failed)? => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("hook ran past specified timeout of {seconds}s"));
        }
        _ => child.wait().map_err(failed)?,
    };
    if status.success() {
        return Ok(());
    }
    let [stdout, stderr] = [stdout, stderr].map(begin);
    Err(format!("error running hook: {}, stdout: {stdout}, stderr: {stderr}", reason(status)))
}

/// `None` where the container's profile does not allow one.
fn output() -> Option<File> {
    Some(File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC).ok()?))
}

fn stdio(output: &Option<File>) -> Stdio {
    let copy = output.as_ref().and_then(|file| file.try_clone().ok());
    copy.map_or_else(Stdio::null, Stdio::from)
}

fn begin(output: Option<File>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        let _ = output.rewind().and_then(|()| output.take(MAX_OUTPUT).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn reason(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal: {}", sys::signal_words(signal)),
        None => status.to_string(),
    }
}

fn ends_within(child: &Child, seconds: i64) -> io::Result<bool> {
    let pidfd = sys::pidfd_open(child.id() as i32)?;
    let timeout = Duration::from_secs(seconds.max(0) as u64);
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: i64) -> Result<(), String> {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout});
        let spec = serde_json::from_value(json!({"ociVersion": "1.0.2", "annotations": {"a": "b"}}));
        let hooks =
            StartHooks::new(vec![serde_json::from_value(hook).expect("a hook")], "c", &spec.expect("a spec"));
        hooks.run(&["WORD=value".to_owned(), "PATH=/bin:/usr/bin".to_owned()])
    }

    #[test]
    fn a_hook_gets_the_state_and_the_processs_environment() {
        let script =
            r#"read state; echo "$WORD $state" | grep -q '^value {.*"annotations":{"a":"b"}.*"id":"c"'"#;
        assert_eq!(run(script, 60), Ok(()));
    }

    #[test]
    fn a_failure_is_told_in_runcs_words() {
        let words = |script: &str, timeout| run(script, timeout).expect_err("a failure");
        assert_eq!(
            words("echo out; echo no >&2; exit 3", 60),
            "error running startContainer hook #0: error running hook: exit status: 3, stdout: out, stderr: no"
        );
        assert!(words("kill -SYS $$", 60).contains("error running hook: signal: bad system call, "));
        assert!(words("exec sleep 60", 1).ends_with("hook ran past specified timeout of 1s"));
    }
}
