//! `rt stats`: what containers and their sandboxes use, as a live table.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::{Global, write_out};
use crate::config::Config;
use crate::container::{self, Usage};
use crate::sys::terminal;

/// Between two looks: CPU is what was used in between.
const INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left, and all below gone.
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show it once and end
    #[arg(long)]
    no_stream: bool,
    /// Form of the answer; json: an array a line
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// The containers' IDs [default: all that run]
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Use, and the share of one processor since the look before.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    usage: Usage,
    guest_cpu_percent: Option<f64>,
    host_cpu_percent: Option<f64>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let store = global.store();
        let look = || Ok::<_, anyhow::Error>((container::usage(&store, config, &self.ids)?, Instant::now()));
        let mut before = look()?;
        loop {
            std::thread::sleep(INTERVAL);
            let now = look()?;
            let rows = compare(&before, &now);
            let text = match self.format {
                Format::Table => table(&rows),
                Format::Json => serde_json::to_string(&rows)? + "\n",
            };
            let live = !self.no_stream && self.format == Format::Table && std::io::stdout().is_terminal();
            write_out(&if live { format!("{CLEAR}{}", fit(&text)) } else { text })?;
            if self.no_stream {
                return Ok(0);
            }
            before = now;
        }
    }
}

/// Cut to the terminal: a line that breaks, or the first one scrolled away, is no table any more.
fn fit(table: &str) -> String {
    let (rows, columns) = terminal::size(std::io::stdout()).unwrap_or((u16::MAX, u16::MAX));
    let lines = table.lines().take(usize::from(rows.saturating_sub(1)).max(1));
    lines.flat_map(|line| line.chars().take(columns.into()).chain(['\n'])).collect()
}

fn compare(before: &(Vec<Usage>, Instant), now: &(Vec<Usage>, Instant)) -> Vec<Row> {
    let elapsed_ns = now.1.duration_since(before.1).as_nanos().max(1) as f64;
    let old: HashMap<&str, &Usage> = before.0.iter().map(|usage| (usage.id.as_str(), usage)).collect();
    // A guest may count backwards: then it used nothing.
    let percent =
        |old: u64, new: u64| (1000.0 * new.saturating_sub(old) as f64 / elapsed_ns * 100.0).round() / 1000.0;
    let row = |usage: &Usage| {
        let old = old.get(usage.id.as_str());
        let guest = old.and_then(|old| Some(percent(old.guest?.cpu_ns, usage.guest?.cpu_ns)));
        let host = old.map(|old| percent(old.host.cpu_ns, usage.host.cpu_ns));
        Row { usage: usage.clone(), guest_cpu_percent: guest, host_cpu_percent: host }
    };
    now.0.iter().map(row).collect()
}

fn table(rows: &[Row]) -> String {
    let head = [
        "ID",
        "STATUS",
        "CPU %",
        "HOST CPU %",
        "MEM / LIMIT",
        "HOST MEM",
        "PIDS",
        "NET IN / OUT",
        "DISK READ / WRITTEN",
    ];
    let unknown = || "--".to_owned();
    let cells = |row: &Row| {
        let Usage { id, status, guest, host } = &row.usage;
        let percent = |value: Option<f64>| value.map_or_else(unknown, |value| format!("{value:.2}%"));
        let limit = |limit: Option<u64>| limit.map_or_else(unknown, bytes);
        [
            id.clone(),
            status.to_string(),
            percent(row.guest_cpu_percent),
            percent(row.host_cpu_percent),
            guest.map_or_else(unknown, |guest| {
                format!("{} / {}", bytes(guest.memory_bytes), limit(guest.memory_limit_bytes))
            }),
            bytes(host.memory_bytes),
            guest.map_or_else(unknown, |guest| guest.pids.to_string()),
            format!("{} / {}", bytes(host.net_received_bytes), bytes(host.net_sent_bytes)),
            format!("{} / {}", bytes(host.disk_read_bytes), bytes(host.disk_written_bytes)),
        ]
    };
    let rows: Vec<[String; 9]> =
        std::iter::once(head.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0) + 3;
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(line, "{cell:<width$}", width = width(column));
        }
        text.extend([line.trim_end(), "\n"]);
    }
    text
}

/// Three digits and a binary unit.
fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = if unit == "B" || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{GuestUsage, HostUsage, Status};

    fn usage(id: &str, cpu_ns: u64) -> Usage {
        let guest = GuestUsage { cpu_ns, memory_bytes: 5 << 20, memory_limit_bytes: None, pids: 3 };
        let host = HostUsage { cpu_ns: 2 * cpu_ns, memory_bytes: 1536 << 20, ..HostUsage::default() };
        Usage { id: id.into(), status: Status::Running, guest: Some(guest), host }
    }

    #[test]
    fn cpu_is_what_was_used_since() {
        let begin = Instant::now();
        let before = (vec![usage("a", 1_000_000_000)], begin);
        let after = (vec![usage("a", 1_500_000_000), usage("new", 7)], begin + Duration::from_secs(2));
        let rows = compare(&before, &after);
        assert_eq!((rows[0].guest_cpu_percent, rows[0].host_cpu_percent), (Some(25.0), Some(50.0)));
        assert_eq!(rows[1].guest_cpu_percent, None);
        let backwards = compare(&after, &(vec![usage("a", 0)], begin + Duration::from_secs(3)));
        assert_eq!(backwards[0].guest_cpu_percent, Some(0.0));
        let text = table(&rows);
        assert!(text.starts_with("ID    STATUS    CPU %    HOST CPU %   MEM / LIMIT"), "{text}");
        assert!(text.contains("a     running   25.00%   50.00%       5.0MiB / --   1.5GiB"), "{text}");
    }

    #[test]
    fn sizes_have_units() {
        for (count, text) in
            [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (123 << 20, "123MiB"), (u64::MAX, "16.0EiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
