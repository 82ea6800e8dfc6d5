//! The hooks that run on the host: prestart, createRuntime, poststart and poststop (runtime-spec config.md#posix-platform-hooks).
//! createContainer and startContainer run in the guest; `share` serves the former's programs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Hook, Hooks};

use super::record::{Record, Status};
use super::state::StateView;
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

/// Runs the hooks of a moment before the container runs, in their order, in the bundle.
///
/// # Errors
/// [`Error`] of the first hook that fails; the later ones do not run then.
pub fn run(moment: Moment, record: &Record) -> Result<(), Error> {
    each(moment, record, Status::Creating).collect()
}

/// Runs the hooks of a moment from which on nothing can be taken back. Failures are logged, as the runtime-spec has it, and
/// keep none of the others from running.
pub fn run_all(moment: Moment, record: &Record, status: Status) {
    for error in each(moment, record, status).filter_map(Result::err) {
        match std::error::Error::source(&error) {
            Some(cause) => tracing::warn!("{error}: {cause}"),
            None => tracing::warn!("{error}"),
        }
    }
}

fn each(moment: Moment, record: &Record, status: Status) -> impl Iterator<Item = Result<(), Error>> {
    let state = StateView::for_hook(record, status);
    let hooks = record.hooks.iter().flat_map(move |hooks| moment.of(hooks)).enumerate();
    hooks.map(move |(index, hook)| run_one(moment, index, hook, &state, &record.bundle))
}

fn run_one(moment: Moment, index: usize, hook: &Hook, state: &str, bundle: &Path) -> Result<(), Error> {
    let failed = |source| Error::Start { moment, index, path: hook.path().clone(), source };
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    // As with runc: without one of its own it has rt's environment, PATH among it.
    if let Some(env) = hook.env() {
        command.env_clear().envs(env.iter().filter_map(|pair| pair.split_once('=')));
    }
    // Which the last hooks may outlive.
    if bundle.is_dir() {
        command.current_dir(bundle);
    }
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

    /// A record with one hook for each script.
    fn record(moment: &str, bundle: &Path, scripts: &[&str], more: serde_json::Value) -> Record {
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let hook = |script: &&str| {
            let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
            hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            hook
        };
        let config = json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "hooks": {moment: scripts.iter().map(hook).collect::<Vec<_>>()},
        });
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        Record::new("c", &crate::bundle::Bundle::load(bundle).unwrap())
    }

    #[test]
    fn a_hook_gets_state_environment_and_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let script = "read state; echo \"$A $PATH $state\" >out";
        let record = record("createRuntime", dir.path(), &[script], json!({"env": ["A=b", "PATH=c"]}));
        run(Moment::CreateRuntime, &record).unwrap();
        let out = std::fs::read_to_string(dir.path().join("out")).unwrap();
        assert!(out.starts_with("b c {") && out.contains("\"status\":\"creating\""), "{out}");
    }

    #[test]
    fn without_an_environment_it_has_ours() {
        let dir = tempfile::tempdir().unwrap();
        let record = record("prestart", dir.path(), &["echo \"$PATH\" >out"], json!({}));
        run(Moment::Prestart, &record).unwrap();
        let out = std::fs::read_to_string(dir.path().join("out")).unwrap();
        assert_eq!(out.trim_end(), std::env::var("PATH").unwrap());
    }

    #[test]
    fn a_failing_hook_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let record = record("prestart", dir.path(), &["echo no >&2; exit 3", "touch out"], json!({}));
        let error = run(Moment::Prestart, &record).unwrap_err();
        let words =
            "error running prestart hook #0: error running hook: exit status: 3, stdout: , stderr: no";
        assert_eq!(error.to_string(), words);
        assert!(!dir.path().join("out").exists());
    }

    #[test]
    fn a_slow_hook_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let record = record("prestart", dir.path(), &["exec sleep 60"], json!({"timeout": 1}));
        let error = run(Moment::Prestart, &record).unwrap_err();
        assert!(matches!(error, Error::Timeout { seconds: 1, .. }));
    }

    #[test]
    fn other_moments_do_not_run_it() {
        let dir = tempfile::tempdir().unwrap();
        let record = record("prestart", dir.path(), &["exit 1"], json!({}));
        run(Moment::CreateRuntime, &record).unwrap();
    }

    #[test]
    fn the_last_hooks_run_all_and_without_a_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, out) = (dir.path().join("bundle"), dir.path().join("out"));
        let touch = format!("echo x >{}", out.display());
        let record = record("poststop", &bundle, &["exit 1", &touch], json!({}));
        std::fs::remove_dir_all(&bundle).unwrap();
        run_all(Moment::Poststop, &record, Status::Stopped);
        assert!(out.exists());
    }
}
