//! `rt ps`: the processes of a container, as the guest tells them.

use std::fmt::Write;

use nix::unistd::{Uid, User};

use super::list::Format;
use super::{Global, write_out};
use crate::agent::ProcessInfo;
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
    /// Options of ps(1); only -ef, the default, can be had of a guest
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        if self.format == Format::Table && !matches!(self.options.as_slice(), []) && self.options != ["-ef"] {
            anyhow::bail!(
                "cannot show processes with the options {:?}: the guest has no ps(1); use -ef or --format json",
                self.options.join(" ")
            );
        }
        let processes = container::processes(&global.store(), config, &self.id)?;
        let text = match self.format {
            Format::Json => {
                let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
                serde_json::to_string(&pids)? + "\n"
            }
            Format::Table => table(&processes),
        };
        write_out(&text)?;
        Ok(0)
    }
}

/// As ps(1) on the host shows it: the name that the host has for this number, or the number.
fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map(|user| user.name).filter(|name| name.len() <= 8).unwrap_or_else(|| uid.to_string())
}

fn table(processes: &[ProcessInfo]) -> String {
    let mut text = String::from("UID          PID    PPID  C STIME TTY          TIME CMD\n");
    for process in processes {
        let cpu = process.cpu_ns / 1_000_000_000;
        let user = user(process.uid);
        let started = u64::try_from(process.started_ns).unwrap_or(0) / 1_000_000_000 % 86_400;
        let _ = writeln!(
            text,
            "{:<8} {:>7} {:>7}  0 {:02}:{:02} {:<8} {:02}:{:02}:{:02} {}",
            user,
            process.pid,
            process.parent_pid,
            started / 3600,
            started / 60 % 60,
            process.terminal,
            cpu / 3600,
            cpu / 60 % 60,
            cpu % 60,
            process.command
        );
    }
    text
}
