//! The last steps inside a container: is there something to run, then run it.
//!
//! libcontainer's own executor looks at "others may execute" alone, needs a PATH even for absolute paths, and hands the
//! environment over by way of a map that loses its order. This one does as runc does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};

use crate::credentials::Capabilities;
use crate::hooks::StartHooks;
use crate::report::Report;
use crate::seccomp::Filter;
use crate::{environment, lookup, sys};

/// The search path of a process whose environment has none: libc's.
pub const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Runs the container's process.
#[derive(Clone)]
pub struct GuestExecutor {
    report: Report,
    /// The user whose home is to be found: the spec's last variable is a HOME in its place.
    homeless: Option<u32>,
    /// Where that is.
    home: RefCell<Option<String>>,
    /// Become the descriptors from 3 on.
    preserved: Arc<Vec<OwnedFd>>,
    hooks: StartHooks,
    /// Loaded last but for the hooks, so that the profile need not allow what libcontainer would do after it, such as waiting for the start.
    filter: Option<Filter>,
    /// Taken on then: without no_new_privs it takes a privilege to load a filter.
    capabilities: Option<Capabilities>,
}

impl GuestExecutor {
    pub fn new(
        report: Report,
        homeless: Option<u32>,
        preserved: Vec<OwnedFd>,
        hooks: StartHooks,
        filter: Option<Filter>,
        capabilities: Option<Capabilities>,
    ) -> Self {
        let (home, preserved) = (RefCell::new(None), Arc::new(preserved));
        Self { report, homeless, home, preserved, hooks, filter, capabilities }
    }

    fn confine(&self) -> Result<(), String> {
        if let Some(filter) = &self.filter {
            filter.load()?;
        }
        self.capabilities.as_ref().map_or(Ok(()), Capabilities::apply)
    }
}

impl Executor for GuestExecutor {
    /// Before the container is reported as created: nothing to run is an error of the creation.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(|message| {
            self.report.message(&message);
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        *self.home.borrow_mut() = self.homeless.and_then(environment::home);
        Ok(())
    }

    /// After the start. Nobody waits for an error any more: it goes where runc's goes, to the process's own stderr.
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let fail = |message: String| -> ! {
            let _ = nix::unistd::write(std::io::stderr(), format!("{message}\n").as_bytes());
            crate::sys::exit_now(255)
        };
        let path = match find(spec) {
            Ok(path) => path,
            Err(message) => fail(message),
        };
        let process = spec.process().as_ref();
        let arguments = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
        let variables = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        let given = variables.len() - usize::from(self.homeless.is_some());
        let environment = environment::complete(&variables[..given], || self.home.borrow().clone());
        let (Some(file), Some(arguments), Some(variables)) =
            (c_string(path.as_os_str().as_bytes()), c_strings(arguments), c_strings(&environment))
        else {
            fail(format!("exec {}: an argument or variable contains a zero byte", path.display()))
        };
        if let Err(message) = self.confine() {
            fail(message)
        }
        if let Err(message) = self.hooks.run(&environment) {
            self.report.fails(&message);
            crate::sys::exit_now(1)
        }
        self.report.runs();
        if let Err(message) = place(&self.preserved) {
            fail(message)
        }
        let error = crate::sys::execute(&file, &arguments, &variables);
        fail(exec_message(&path, error))
    }
}

/// Makes `fds` the descriptors from 3 on. The last thing before execve: nothing of this process's has such a number then.
///
/// # Errors
/// For the user.
pub fn place(fds: &[OwnedFd]) -> Result<(), String> {
    let failed = |error| format!("cannot place the preserved descriptors: {}", lookup::words(error));
    // First all of them above all their places, so that none is overwritten.
    let above = |fd: &OwnedFd| sys::duplicate_above(fd.as_fd(), 3 + fds.len() as RawFd);
    let sources = fds.iter().map(above).collect::<nix::Result<Vec<_>>>().map_err(failed)?;
    for (source, number) in sources.iter().zip(3..) {
        sys::place(source.as_fd(), number).map_err(failed)?;
    }
    // execve closes them.
    sources.into_iter().for_each(std::mem::forget);
    Ok(())
}

pub fn exec_message(path: &Path, error: Errno) -> String {
    format!("exec {}: {}", path.display(), lookup::words(error))
}

/// The file that the process is to run.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    program(spec.process().as_ref().ok_or("process must be set")?)
}

/// The file that a process is to run, as its user sees it.
///
/// # Errors
/// In runc's words.
pub fn program(process: &Process) -> Result<PathBuf, String> {
    let command = process.args().as_ref().and_then(|arguments| arguments.first());
    let command = command.ok_or("args must not be empty")?;
    let variables = process.env().as_deref().unwrap_or_default();
    let path = variables.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    lookup::find(command, path.unwrap_or(DEFAULT_PATH)).map_err(|error| error.to_string())
}

pub fn c_string(bytes: &[u8]) -> Option<CString> {
    CString::new(bytes).ok()
}

pub fn c_strings(strings: &[String]) -> Option<Vec<CString>> {
    strings.iter().map(|string| c_string(string.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_execve_are_worded_as_runcs() {
        assert_eq!(exec_message(Path::new("/x"), Errno::ENOEXEC), "exec /x: exec format error");
    }
}
