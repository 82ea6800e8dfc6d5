//! `rt kill`: sends a signal to a container's process.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::Global;
use crate::config::Config;
use crate::container;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// To all processes of the container
    #[arg(short, long)]
    all: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
    /// Name with or without SIG, or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM", allow_negative_numbers = true)]
    signal: String,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let store = global.store();
        // First, as runc: callers ask for what does not exist rather than for what cannot be sent.
        store.read(&self.id)?;
        let signal = parse(&self.signal).map_err(anyhow::Error::msg)?;
        container::kill(&store, config, &self.id, signal, self.all)?;
        Ok(0)
    }
}

/// Real-time signals by number only, as runc.
fn parse(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(format!("unknown signal {text:?}")) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&name).map(|signal| signal as i32).map_err(|_| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "KILL", "SIGKILL", "kill", "sigkill"] {
            assert_eq!(parse(text), Ok(9), "{text}");
        }
        assert_eq!(parse("37"), Ok(37));
        for text in ["", "NO", "65", "-1", "SIGSIGKILL"] {
            assert_eq!(parse(text), Err(format!("unknown signal {text:?}")), "{text}");
        }
    }
}
