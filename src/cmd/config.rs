//! `rt config`: what is in force and where it comes from, and other runtimes' configurations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Subcommand, ValueEnum};

use super::write_out;
use crate::bundle::Bundle;
use crate::config::{self, Config, Entry};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every setting's value, as a configuration file
    Show {
        /// Also where each value comes from
        #[arg(long)]
        origin: bool,
        /// As it is for this bundle, whose annotations may change it
        #[arg(short, long, value_name = "DIR")]
        bundle: Option<PathBuf>,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "toml")]
        format: Format,
    },
    /// Print what Kata Containers' configuration.toml means to rt, as a configuration file
    Import {
        /// Kata's file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the reference of all settings, in Markdown
    Reference {
        /// That of Kata's annotations instead
        #[arg(long)]
        annotations: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Toml,
    Json,
}

impl Arguments {
    /// `config` fails only what shows it.
    pub fn run(&self, config: Result<Config, config::Error>) -> anyhow::Result<u8> {
        let text = match &self.action {
            Action::Show { origin, bundle, format } => {
                let mut config = config?;
                if let Some(dir) = bundle {
                    config = config.annotated(Bundle::load(dir)?.spec.annotations().as_ref())?;
                }
                match format {
                    Format::Toml => toml(&config.entries(), *origin),
                    Format::Json => json(config.entries(), *origin),
                }
            }
            Action::Import { file } => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                config::import(file, &text)?
            }
            Action::Reference { annotations: false } => config::reference(),
            Action::Reference { annotations: true } => config::annotations_page(),
        };
        write_out(&text)?;
        Ok(0)
    }
}

fn toml(entries: &[Entry], origin: bool) -> String {
    let mut text = String::new();
    let mut last = "";
    for entry in entries {
        let (section, key) = entry.key.split_once('.').expect("keys have a section");
        if section != last {
            text.push_str(&format!("{}[{section}]\n", if last.is_empty() { "" } else { "\n" }));
            last = section;
        }
        let line = format!("{key} = {}", entry.value);
        match origin {
            true => text.push_str(&format!("{line:<48} # {}\n", entry.origin)),
            false => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

fn json(entries: Vec<Entry>, origin: bool) -> String {
    let text = match origin {
        true => serde_json::to_string_pretty(&entries),
        false => {
            let values: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
            serde_json::to_string_pretty(&values)
        }
    };
    text.expect("settings have only string keys") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_a_configuration() {
        for origin in [true, false] {
            let text = toml(&Config::default().entries(), origin);
            let table: ::toml::Table = text.parse().unwrap();
            assert_eq!(table["hypervisor"]["vcpus"].as_integer(), Some(1));
            assert_eq!(text.contains("# default"), origin);
        }
    }
}
