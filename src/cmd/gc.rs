//! `rt gc`: removes what crashed sandboxes and older versions left.

use std::fmt::Write;
use std::io::IsTerminal;

use clap::ValueEnum;
use serde::Serialize;

use super::{Global, write_out};
use crate::config::Config;
use crate::container::gc::{self, Leftover};
use crate::log;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show it only
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What became of a leftover.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    leftover: Leftover,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Arguments {
    /// 0 also where there is nothing to remove; 1 when something could not be removed.
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let store = global.store();
        let outcomes: Vec<Outcome> = gc::leftovers(&store)?
            .into_iter()
            .map(|leftover| {
                let result = (!self.dry_run).then(|| gc::remove(&store, config, &leftover));
                let removed = matches!(result, Some(Ok(())));
                let error = result.and_then(Result::err).map(|error| log::chain(&error));
                Outcome { leftover, removed, error }
            })
            .collect();
        write_out(&match self.format {
            Format::Json => serde_json::to_string_pretty(&outcomes)? + "\n",
            // Programs read emptiness; people wonder whether anything was done.
            Format::Text if outcomes.is_empty() && std::io::stdout().is_terminal() => {
                "nothing is left\n".into()
            }
            Format::Text => outcomes.iter().map(line).collect(),
        })?;
        Ok(outcomes.iter().any(|outcome| outcome.error.is_some()).into())
    }
}

fn line(outcome: &Outcome) -> String {
    let Outcome { leftover, removed, error } = outcome;
    let verb = match (removed, error) {
        (true, _) => "removed",
        (false, Some(_)) => "cannot remove",
        (false, None) => "would remove",
    };
    let mut line =
        format!("{verb} {} {}: {}", leftover.kind.word(), leftover.path.display(), leftover.reason);
    for process in &leftover.processes {
        let _ = write!(line, "; process {process}");
    }
    for group in &leftover.cgroups {
        let _ = write!(line, "; cgroup {}", group.display());
    }
    if let Some(error) = error {
        let _ = write!(line, ": {error}");
    }
    line + "\n"
}
