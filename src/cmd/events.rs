//! `rt events`: what a container uses, from time to time, and that the guest's kernel ran out of memory for it.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;

use super::{Global, write_out};
use crate::config::Config;
use crate::container::{self, Stats, Status, Store};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Time between two statistics
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// Show the statistics once and end
    #[arg(long)]
    stats: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

/// Between two questions for the guest's news.
const BETWEEN_NEWS: Duration = Duration::from_millis(100);

/// runc's, field by field.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

enum News {
    Oom,
    Ended,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let store = global.store();
        if store.read(&self.id)?.status() == Status::Stopped {
            bail!("container with id {} is not running", self.id);
        }
        if self.stats {
            self.tell("stats", Some(container::stats(&store, config, &self.id)?))?;
            return Ok(0);
        }
        let (sender, news) = mpsc::channel();
        let (watched, id, settings) = (store.clone(), self.id.clone(), config.clone());
        std::thread::Builder::new()
            .name("oom".into())
            .spawn(move || watch(&watched, &settings, &id, &sender))?;
        let mut next = Instant::now() + self.interval;
        loop {
            match news.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(News::Oom) => self.tell("oom", None)?,
                Ok(News::Ended) | Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {
                    next += self.interval;
                    match container::stats(&store, config, &self.id) {
                        Ok(stats) => self.tell("stats", Some(stats))?,
                        // It ended in between; the watcher says so in a moment.
                        Err(error) => tracing::debug!("no statistics: {error}"),
                    }
                }
            }
        }
    }

    fn tell(&self, kind: &'static str, data: Option<Stats>) -> anyhow::Result<()> {
        let event = Event { kind, id: &self.id, data };
        Ok(write_out(&(serde_json::to_string(&event)? + "\n"))?)
    }
}

/// Sends the guest's news until the container has ended, or nobody listens.
fn watch(store: &Store, config: &Config, id: &str, sender: &Sender<News>) {
    let mut seen = 0;
    while let Ok(watch) = container::watch_oom(store, config, id, seen) {
        if watch.kills > seen && sender.send(News::Oom).is_err() {
            return;
        }
        // A guest that counts backwards is not to be asked again and again, nor one that counts as fast as it is asked.
        if watch.ended || watch.kills <= seen {
            break;
        }
        seen = watch.kills;
        std::thread::sleep(BETWEEN_NEWS);
    }
    // Nobody listens: then all is said.
    let _ = sender.send(News::Ended);
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("duration interval must be greater than 0".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 5s, 100ms or 1m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_gos() {
        assert_eq!(interval("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(interval("1m30s"), Ok(Duration::from_secs(90)));
        for bad in ["0s", "", "5", "-1s", "x"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
