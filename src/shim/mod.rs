//! containerd's shim v2: the process that stands between containerd and the containers of one pod, as runtime
//! `io.containerd.rt.v2`.
//!
//! containerd executes `containerd-shim-rt-v2 … start` in a container's bundle; that prints the address of a shim, a new
//! one or the pod's ([`bootstrap`]). The shim serves the Task service on it ([`service`]) until its last container is
//! deleted. When a shim has died, containerd executes `… delete` for each of its containers ([`cleanup`]).
//!
//! The shim does what the command line does, by the same calls, but has a thread where that has a monitor in a process of its
//! own: for each container and each exec ([`process`]), with containerd's FIFOs as its streams. Root file systems are mounted in a mount namespace of the
//! shim's own, so that no mount outlives its processes.

mod bootstrap;
mod cleanup;
mod events;
mod flags;
mod metrics;
mod options;
mod process;
mod rootfs;
mod server;
mod service;
mod streams;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use containerd_shim_protos::protobuf::Message;

use crate::container::Store;
use crate::{config, container, log};
use flags::{Action, Flags};

/// The names that this program answers to: of `io.containerd.rt.v2`, and of what people had before.
pub const NAMES: [&str; 2] = ["containerd-shim-rt-v2", "containerd-shim-kata-v2"];
/// What containerd calls the runtime whose shim has the first of these names.
pub const TYPE: &str = "io.containerd.rt.v2";
/// Where containerd's shims have their sockets.
const SOCKETS: &str = "/run/containerd/s";
/// Where the state of a namespace's containers lies: `rt --root` of it shows them.
pub const STATES: &str = "/run/containerd/rt";
/// In each bundle: the address of the shim that serves it. containerd reads it when it restarts.
const ADDRESS_FILE: &str = "address";
/// In each bundle: a FIFO whose lines go to containerd's log.
const LOG_FILE: &str = "log";

/// Why the shim did not start, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}; containerd starts this program, see docs/engines/containerd.md")]
    Usage(String),
    #[error("cannot {what} {path}")]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Container(#[from] container::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("cannot serve the shim's socket: {0}")]
    Serve(String),
    #[error("{path} is not a runtime specification")]
    Spec {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0}")]
    Options(String),
}

fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::System { what, path, source }
}

/// Whether this program was called by one of the shim's names.
pub fn is_called() -> bool {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name);
    name.is_some_and(|name| NAMES.iter().any(|own| name == *own))
}

/// The shim's command line, as containerd writes it.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match Flags::parse(&arguments).and_then(|flags| run(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", log::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Error> {
    let answer = match flags.action {
        Action::Version => format!("{}:\n  Version:  {}\n", NAMES[0], env!("CARGO_PKG_VERSION")).into_bytes(),
        Action::Start => bootstrap::start(flags)?.into_bytes(),
        Action::Delete => {
            cleanup::delete(flags)?.write_to_bytes().map_err(|error| Error::Serve(error.to_string()))?
        }
        Action::Serve => return server::serve(flags),
    };
    // Exactly this and no newline: containerd reads it.
    std::io::stdout().write_all(&answer).map_err(failed("write", "standard output"))
}

/// The containers of a namespace.
fn store(namespace: &str) -> Store {
    Store::new(states(namespace))
}

fn states(namespace: &str) -> PathBuf {
    Path::new(STATES).join(namespace)
}
