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
        let Some(change) = self.engine.plan(&self.into, &binary, self.undo)? else {
            write_out("nothing to do: it is so already\n")?;
            return Ok(0);
        };
        write_out(&change.difference())?;
        if !self.dry_run {
            change.apply()?;
            write_out(&format!("{}\n", self.engine.next_step()))?;
        }
        Ok(0)
    }
}
