//! `rt ps`: the processes of a container, as the guest tells them.
//!
//! A guest has no ps(1), and the host's does not see into it: what of ps(1)'s options chooses the form is understood here, in
//! both its syntaxes; what chooses among the host's processes has nothing to choose from.

mod column;
mod options;

use super::list::Format;
use super::{Global, write_out};
use crate::config::Config;
use crate::container;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Form of the list
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
    /// Options of ps(1) that choose the form, such as -ef (the default), aux, -o pid,args
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let columns = options::parse(&self.options)?;
        let processes = container::processes(&global.store(), config, &self.id)?;
        let text = match self.format {
            Format::Json => {
                let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
                serde_json::to_string(&pids)? + "\n"
            }
            Format::Table => column::table(&columns, &processes),
        };
        write_out(&text)?;
        Ok(0)
    }
}
