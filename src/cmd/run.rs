//! `rt run`: creates, starts and waits for a container in the foreground.

use std::path::PathBuf;

use super::Global;
use crate::config::Config;
use crate::container::{self, Request};
use crate::sandbox::Timeline;

/// Create and run a container
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the timeline of the start and end to this file, as JSON
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The container's ID [default: a new one]
    #[arg(value_name = "ID")]
    id: Option<String>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config, timeline: Timeline) -> anyhow::Result<u8> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => container::generate()?,
        };
        let request = Request {
            id,
            bundle: self.bundle.clone(),
            root: global.root(),
            hypervisor: global.hypervisor(),
            trace: self.trace.clone(),
        };
        match container::run(&request, config, timeline) {
            // The caller's own wish: no error, but the exit code of a process that a signal ended.
            Err(container::Error::Interrupted(signal)) => Ok(128 + signal as u8),
            other => Ok(other?),
        }
    }
}
