//! `rt delete`: removes what is left of a container.

use super::Global;
use crate::config::Config;
use crate::container;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// End the container first if it runs; a missing one is no error
    #[arg(short, long)]
    force: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        container::delete(&global.store(), config, &self.id, self.force)?;
        Ok(0)
    }
}
