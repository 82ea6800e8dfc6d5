//! A bar for work that takes long: on a terminal that understands it only, and only once the work has taken a moment.
//!
//! Engines never see it: their standard error is a pipe or a log. It has no colour.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// What takes no longer than this is over before anybody wonders.
const MOMENT: Duration = Duration::from_millis(300);
/// Between two pictures.
const INTERVAL: Duration = Duration::from_millis(100);
/// Cells of the bar.
const WIDE: u64 = 24;

/// A piece of work of known length. Dropping it clears the bar.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    shows: bool,
    next: Instant,
    drawn: bool,
}

impl Progress {
    /// Work that comes to `total` steps, whatever these are.
    pub fn new(what: &'static str, total: u64) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let shows = !dumb && io::stderr().is_terminal();
        Self { what, total, done: 0, shows, next: Instant::now() + MOMENT, drawn: false }
    }

    /// So many steps more are done.
    pub fn advance(&mut self, steps: u64) {
        self.done = self.done.saturating_add(steps).min(self.total);
        let now = Instant::now();
        if self.shows && now >= self.next {
            self.next = now + INTERVAL;
            self.drawn = true;
            say(&format!("\r{}\x1b[K", self.line()));
        }
    }

    fn line(&self) -> String {
        let of = |parts: u64| u128::from(self.done) * u128::from(parts) / u128::from(self.total.max(1));
        let bar = "#".repeat(of(WIDE) as usize);
        format!("{} [{bar:<wide$}] {:3} %", self.what, of(100), wide = WIDE as usize)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn {
            say("\r\x1b[K");
        }
    }
}

/// Nobody depends on it.
fn say(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        let mut work = Progress::new("unpacking", 200);
        assert_eq!(work.line(), "unpacking [                        ]   0 %");
        work.advance(100);
        assert_eq!(work.line(), "unpacking [############            ]  50 %");
        work.advance(u64::MAX);
        assert_eq!(work.line(), "unpacking [########################] 100 %");
        assert_eq!(Progress::new("nothing", 0).line(), "nothing [                        ]   0 %");
    }
}
