//! `rt resume`: thaws a paused container.

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
        container::resume(&global.store(), config, &self.id)?;
        Ok(0)
    }
}
