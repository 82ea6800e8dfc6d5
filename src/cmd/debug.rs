//! `rt debug`: a shell in the guest itself. Also `kata-runtime exec ID`, as with Kata Containers 2 and later.

use std::io::IsTerminal;

use super::Global;
use crate::config::Config;
use crate::container::{self, debug};

/// Open a shell in the guest itself, beside its agent
///
/// It is root's, in the guest's own namespaces: it sees all containers of the sandbox, the guest's mounts, devices and kernel log. The
/// guest has no programs: rt lends it the host's static busybox, or what hypervisor.debug_shell names. Needs
/// hypervisor.debug_console.
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
