//! `rt run`: creates and starts a container, and in the foreground waits for it.

use std::path::PathBuf;

use super::Global;
use super::create::Creation;

use crate::config::Config;
use crate::container::{self, Error, MonitorProcess};
use crate::sandbox::Timeline;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    creation: Creation,
    /// Return once the container runs
    #[arg(short, long)]
    detach: bool,
    /// Keep the container's state when it has ended
    #[arg(long)]
    keep: bool,
    /// Accepted for runc's sake: rt reaps only what it starts
    #[arg(long)]
    no_subreaper: bool,
    /// Write the timeline of start and end to this file: a picture if its name ends in .svg or .html, else
    /// JSON for chrome://tracing and ui.perfetto.dev
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
        let mut request = self.creation.request(global, &id)?;
        request.start = true;
        request.trace = self.trace.clone();
        if self.detach {
            self.creation.detach(global, config, request)?;
            return Ok(0);
        }
        request.keep = self.keep;
        self.creation.check_terminal(&request, false)?;
        let own = MonitorProcess::own()?;
        match container::carry(&request, config, timeline, &mut || self.creation.tell(&own)) {
            // The caller's own wish: no error, but the exit code of a process that a signal ended.
            Err(Error::Interrupted(signal)) => Ok(128 + signal as u8),
            other => Ok(other?),
        }
    }
}
