//! `rt install`: tells an engine of rt, and takes that back.

use std::path::PathBuf;

use super::write_out;
use crate::wiring::Engine;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show the change only
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Take it back
    #[arg(long)]
    undo: bool,
    /// The host's root directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    into: PathBuf,
    /// Path of rt, as the engine sees it [default: this one's]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Whom to tell
    #[arg(value_enum)]
    engine: Engine,
}

impl Arguments {
    pub fn run(&self) -> anyhow::Result<u8> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe()?,
        };
        let plan = self.engine.plan(&self.into, &binary, self.undo)?;
        if plan.changes.is_empty() {
            let why = plan.left.as_deref().unwrap_or("it is so already");
            write_out(&format!("nothing to do: {why}\n"))?;
            return Ok(0);
        }
        for change in &plan.changes {
            write_out(&change.difference())?;
            if !self.dry_run {
                change.apply()?;
            }
        }
        if let Some(left) = &plan.left {
            write_out(&format!("{left}; do this again when they are gone\n"))?;
        }
        if !self.dry_run {
            write_out(&format!("{}\n", self.engine.next_step()))?;
        }
        Ok(0)
    }
}
