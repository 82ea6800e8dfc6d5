//! `rt kata-check` and `rt kata-env`: what can this host do, and what is rt made of.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;

use super::{COMMIT, SPEC_VERSION, usage, write_out};
use crate::check::environment::{Build, Environment};
use crate::check::{self, Colours, Host, Live, Voice};
use crate::config::{Config, Error};

#[derive(Debug, clap::Args)]
pub struct Check {
    /// Form of the output: as Kata Containers logs it, for people, for programs
    #[arg(short, long, value_enum, default_value = "log")]
    format: Format,
    /// Log what is fine beyond Kata's own checks, too
    #[arg(short, long)]
    verbose: bool,
    /// Take warnings for errors
    #[arg(short, long)]
    strict: bool,
    /// Accepted for Kata's sake: rt never checks over the network
    #[arg(short, long, hide = true)]
    no_network_checks: bool,
}

#[derive(Debug, clap::Args)]
pub struct Environ {
    /// As JSON instead of TOML
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Log,
    Table,
    Json,
}

impl Check {
    pub fn run(&self, config: &Result<Config, Error>) -> anyhow::Result<u8> {
        let voice = voice();
        let host = Host::this();
        let live = Live::look(config, host.is_root);
        let report = check::check(&host, &live, voice, self.strict);
        match self.format {
            Format::Log => {
                let mut stderr = std::io::stderr().lock();
                let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let terminal =
                    stderr.is_terminal().then_some(if no_colour { Colours::No } else { Colours::Yes });
                stderr.write_all(check::lines(&report, terminal, self.verbose).as_bytes())?;
            }
            Format::Table => write_out(&check::table(&report, voice))?,
            Format::Json => write_out(&check::json(&report))?,
        }
        if report.capable {
            return Ok(0);
        }
        // Plainly, as Kata does.
        writeln!(std::io::stderr(), "{}", voice.failure())?;
        Ok(1)
    }
}

impl Environ {
    pub fn run(&self, config: Result<Config, Error>) -> anyhow::Result<u8> {
        let host = Host::this();
        let live = Live::look(&config, host.is_root);
        let capable = check::check(&host, &live, voice(), false).capable;
        let build = Build { version: env!("CARGO_PKG_VERSION"), commit: COMMIT, oci: SPEC_VERSION };
        let environment = Environment::new(build, &config?, &host, &live, capable);
        write_out(&if self.json { environment.json() } else { environment.toml() })?;
        Ok(0)
    }
}

fn voice() -> Voice {
    match usage::is_kata(std::env::args_os().next().as_ref()) {
        true => Voice::Kata,
        false => Voice::Rt,
    }
}
