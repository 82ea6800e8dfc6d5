//! One container, from request to exit code.
//!
//! A container on the host is its monitor: the process that owns the sandbox, pumps the standard streams, forwards
//! signals, and ends with the workload's exit code. A foreground `rt run` is its own monitor.

mod console;
mod hooks;
mod id;
mod monitor;
mod record;
mod signals;
mod state;
mod stdio;

use std::path::PathBuf;

pub use id::{InvalidId, generate, validate};
pub use record::{Record, Status, Store};
pub use state::StateView;

use crate::bundle::{self, Bundle};
use crate::config::{self, Config};
use crate::hypervisor::{self, Kind};
use crate::sandbox::{self, Timeline};
use crate::sys::pidfd::ProcessId;
use monitor::Monitor;
use signals::Signals;

/// Why a container did not run. Each message is complete with its source chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    State(#[from] record::Error),
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Agent(#[from] crate::agent::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A signal asked rt to end before the container's process ran.
    #[error("interrupted by signal {0} before the container started")]
    Interrupted(i32),
}

/// What `rt run` is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: String,
    pub bundle: PathBuf,
    /// The directory of all state directories.
    pub root: PathBuf,
    /// From a flag; overrides the configuration.
    pub hypervisor: Option<Kind>,
    /// Where to write the timeline as JSON.
    pub trace: Option<PathBuf>,
}

/// Runs a container in the foreground and gives its exit code. Nothing of it is left afterwards, also after an error.
///
/// # Errors
/// [`Error`]
pub fn run(request: &Request, config: &Config, timeline: Timeline) -> Result<u8, Error> {
    validate(&request.id)?;
    let bundle = Bundle::load(&request.bundle)?;
    // Before any thread starts and before anything is acquired: from here on a signal is an event, not an end.
    let signals = Signals::block().map_err(system("block signals"))?;
    let store = Store::new(request.root.clone());
    let mut record = Record::new(&request.id, &bundle);
    record.monitor = ProcessId::of(std::process::id() as i32);
    store.create(&record)?;
    let mut monitor = Monitor { request, config, bundle: &bundle, store: &store, record, timeline };
    let result = monitor.carry(signals);
    let removed = store.lock(&request.id).and_then(record::State::remove);
    monitor.poststop();
    monitor.timeline.mark("rt.cleaned-up");
    let code = result?;
    removed?;
    if let Some(trace) = &request.trace {
        std::fs::write(trace, monitor.timeline.to_json()).map_err(system("write the trace file"))?;
    }
    tracing::debug!(timeline = monitor.timeline.to_json(), "done");
    Ok(code)
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System { what, source }
}
