//! `rt debug`: a shell in the guest itself. Also `kata-runtime exec ID`, as with Kata Containers 2 and later.

use std::io::IsTerminal;

use super::Global;
use crate::config::Config;
use crate::container::{self, debug};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The container's ID
    #[arg(value_name = "ID")]
    pub id: String,
    /// A command and its arguments, instead of an interactive shell
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let request = debug::request(&self.id, global.root(), &self.command, terminal, config)?;
        Ok(container::exec(&request, config, &mut || Ok(()))?)
    }
}
