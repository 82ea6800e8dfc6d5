//! `rt trace`: how a container's start went, and where the time was.

use std::io::IsTerminal;

use anyhow::Context;

use super::{Global, write_out};
use crate::sandbox::{Timeline, TraceForm};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Form of the timeline [default: text on a terminal, else svg]
    #[arg(short, long, value_enum)]
    format: Option<TraceForm>,
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
        let usual = if std::io::stdout().is_terminal() { TraceForm::Text } else { TraceForm::Svg };
        let mut text = timeline.show(self.format.unwrap_or(usual), &self.id);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        write_out(&text)?;
        Ok(0)
    }
}
