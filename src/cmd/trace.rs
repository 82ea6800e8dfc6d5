//! `rt trace`: how a container's start went, and where the time was.

use anyhow::Context;

use super::{Global, write_out};
use crate::sandbox::{Timeline, TraceForm};

/// Show the timeline of a container's start
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Form of the timeline
    #[arg(short, long, value_enum, default_value = "svg")]
    format: TraceForm,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Arguments {
    pub fn run(&self, global: &Global) -> anyhow::Result<u8> {
        let store = global.store();
        store.read(&self.id)?;
        let timeline = Timeline::load(&store.path(&self.id))
            .with_context(|| format!("container {} has no timeline: it has not come up", self.id))?;
        let mut text = timeline.show(self.format, &self.id);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        write_out(&text)?;
        Ok(0)
    }
}
