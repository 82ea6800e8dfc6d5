//! `rt state`: a container's state as JSON.

use super::{Global, write_out};
use crate::container::StateView;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Arguments {
    pub fn run(&self, global: &Global) -> anyhow::Result<u8> {
        let view = StateView::of(&global.store().read(&self.id)?);
        // As runc: two spaces, no newline at the end.
        write_out(&serde_json::to_string_pretty(&view)?)?;
        Ok(0)
    }
}
