//! `rt doctor`: is this node wired to rt, and rightly.

use std::path::Path;

use clap::ValueEnum;

use super::write_out;
use crate::check::{Level, doctor};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Arguments {
    pub fn run(&self) -> anyhow::Result<u8> {
        let notes = doctor::examine(Path::new("/"), &std::env::current_exe()?);
        write_out(&match self.format {
            Format::Text => doctor::text(&notes),
            Format::Json => serde_json::to_string_pretty(&notes)? + "\n",
        })?;
        Ok(notes.iter().any(|note| note.level == Level::Error).into())
    }
}
