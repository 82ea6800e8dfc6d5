//! `rt logs`: what the guest's kernel and agent say, and how the guest ended.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use super::{Global, write_out};
use crate::agent::LogRecord;
use crate::config::Config;
use crate::container;

/// Time between two looks with --follow.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Records of this level and worse only
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "debug")]
    log_level: Level,
    /// Wait for more, until the container ends
    #[arg(short = 'F', long)]
    follow: bool,
    /// Form of the log; json: an object a line
    #[arg(short, long, value_enum, default_value = "text")]
    format: Format,
    /// The guest's console instead: all that is left once the guest has ended
    #[arg(long, conflicts_with_all = ["follow", "log_level"])]
    console: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// The kernel's levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Level {
    Emergency,
    Alert,
    Critical,
    Error,
    Warning,
    Notice,
    Info,
    Debug,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let store = global.store();
        if self.console || !container::is_live(&store, &self.id)? {
            let text = container::console(&store, &self.id)?;
            write_out(&text.lines().map(|line| self.console_line(line)).collect::<String>())?;
            return Ok(0);
        }
        let mut next = 0;
        loop {
            let records = match container::log(&store, config, &self.id, next) {
                // The end of the guest is the end of its log, once some of it has been shown.
                Err(_) if next > 0 && !container::is_live(&store, &self.id).unwrap_or(false) => return Ok(0),
                other => other?,
            };
            let (Some(last), text) = (records.last().map(|record| record.sequence), self.text(&records))
            else {
                if !self.follow {
                    return Ok(0);
                }
                std::thread::sleep(INTERVAL);
                continue;
            };
            write_out(&text)?;
            // A guest that counts backwards would never come to an end.
            if last < next || last == u64::MAX {
                return Ok(0);
            }
            next = last + 1;
        }
    }

    fn text(&self, records: &[LogRecord]) -> String {
        let wanted = records.iter().filter(|record| record.level <= self.log_level as u32);
        wanted.map(|record| self.line(record)).collect()
    }

    fn line(&self, record: &LogRecord) -> String {
        let (source, text) = match record.text.strip_prefix("rt-agent: ") {
            Some(text) => ("agent", text),
            None => ("kernel", &*record.text),
        };
        let level = Level::value_variants()[record.level.min(7) as usize].to_possible_value();
        let level = level.as_ref().map_or("", |level| level.get_name());
        let seconds = record.time_us as f64 / 1e6;
        match self.format {
            Format::Text => format!("[{seconds:12.6}] {source} {level}: {text}\n"),
            Format::Json => {
                json!({"guest_s": seconds, "source": source, "level": level, "msg": text}).to_string() + "\n"
            }
        }
    }

    fn console_line(&self, line: &str) -> String {
        match self.format {
            Format::Text => format!("{line}\n"),
            Format::Json => json!({"source": "console", "msg": line}).to_string() + "\n",
        }
    }
}
