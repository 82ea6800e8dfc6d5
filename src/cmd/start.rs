//! `rt start`: lets a created container's process run.

use super::Global;
use crate::config::Config;
use crate::container;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        container::start(&global.store(), config, &self.id)?;
        Ok(0)
    }
}
