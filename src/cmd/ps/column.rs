//! The columns of ps(1): names, widths and what they show, as procps-ng 4 has them.

use std::time::{Duration, SystemTime};

use crate::agent::ProcessInfo;
use crate::sys::clock::{self, LocalTime};
use crate::sys::users;

/// A column that can be asked for.
#[derive(Debug)]
pub struct Column {
    /// The first is the usual one.
    pub names: &'static [&'static str],
    pub header: &'static str,
    width: usize,
    is_right: bool,
    value: fn(&ProcessInfo, SystemTime) -> String,
}

/// A column with the header that it is to have.
#[derive(Debug, Clone)]
pub struct Headed {
    pub column: &'static Column,
    pub header: String,
}

const fn left(
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    value: fn(&ProcessInfo, SystemTime) -> String,
) -> Column {
    Column { names, header, width, is_right: false, value }
}

const fn right(
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    value: fn(&ProcessInfo, SystemTime) -> String,
) -> Column {
    Column { names, header, width, is_right: true, value }
}

static COLUMNS: [Column; 29] = [
    right(&["pid", "tgid"], "PID", 7, |it, _| it.pid.to_string()),
    right(&["ppid"], "PPID", 7, |it, _| it.parent_pid.to_string()),
    right(&["pgid", "pgrp"], "PGID", 7, |it, _| it.group.to_string()),
    right(&["sid", "sess", "session"], "SID", 7, |it, _| it.session.to_string()),
    left(&["user", "euser", "uname"], "USER", 8, |it, _| user(it.uid)),
    // The one of -f, which is left-aligned and a name.
    left(&["UID"], "UID", 8, |it, _| user(it.uid)),
    right(&["uid", "euid"], "UID", 5, |it, _| it.uid.to_string()),
    right(&["c"], "C", 2, |it, now| format!("{:.0}", percent_of_time(it, now).min(99.0))),
    right(&["pcpu", "%cpu"], "%CPU", 4, |it, now| format!("{:.1}", percent_of_time(it, now))),
    right(&["pmem", "%mem"], "%MEM", 4, |it, _| format!("{:.1}", f64::from(it.memory_permille) / 10.0)),
    right(&["vsz", "vsize"], "VSZ", 6, |it, _| (it.virtual_bytes >> 10).to_string()),
    right(&["rss", "rssize", "rsz"], "RSS", 5, |it, _| (it.resident_bytes >> 10).to_string()),
    left(&["tty", "tt", "tname"], "TTY", 8, |it, _| it.terminal.clone()),
    left(&["stat"], "STAT", 4, |it, _| it.state.clone()),
    left(&["s", "state"], "S", 1, |it, _| it.state.chars().take(1).collect()),
    left(&["stime"], "STIME", 5, day_or_time),
    left(&["start", "start_time", "bsdstart"], "START", 5, day_or_time),
    right(&["lstart"], "STARTED", 24, |it, _| local(it).map_or_else(String::new, |time| time.long())),
    right(&["time", "cputime"], "TIME", 8, |it, _| long_time(it.cpu_ns / 1_000_000_000, 8)),
    right(&["bsdtime"], "TIME", 6, |it, _| {
        let seconds = it.cpu_ns / 1_000_000_000;
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }),
    right(&["etime"], "ELAPSED", 11, |it, now| long_time(age(it, now).as_secs(), 5)),
    right(&["etimes"], "ELAPSED", 7, |it, now| age(it, now).as_secs().to_string()),
    right(&["ni", "nice"], "NI", 3, |it, _| it.nice.to_string()),
    right(&["nlwp", "thcount"], "NLWP", 4, |it, _| it.threads.to_string()),
    left(&["comm", "ucmd", "ucomm"], "COMMAND", 15, |it, _| it.name.clone()),
    left(&["cmd"], "CMD", 27, |it, _| it.command.clone()),
    left(&["args", "command"], "COMMAND", 27, |it, _| it.command.clone()),
    // Of the short forms: the name under another header.
    left(&["CMD"], "CMD", 15, |it, _| it.name.clone()),
    right(&["cputimes"], "TIME", 8, |it, _| (it.cpu_ns / 1_000_000_000).to_string()),
];

/// The column of that name.
pub fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.names.contains(&name))
}

/// The processes, a line each below the headers, unless these are all empty.
pub fn table(columns: &[Headed], processes: &[ProcessInfo]) -> String {
    let now = SystemTime::now();
    let mut text = String::new();
    if columns.iter().any(|column| !column.header.is_empty()) {
        text.push_str(&line(columns, |headed| headed.header.clone()));
    }
    for process in processes {
        text.push_str(&line(columns, |headed| (headed.column.value)(process, now)));
    }
    text
}

fn line(columns: &[Headed], show: impl Fn(&Headed) -> String) -> String {
    let cells = columns.iter().enumerate().map(|(index, headed)| {
        let width = headed.column.width.max(headed.header.len());
        match (headed.column.is_right, index + 1 == columns.len()) {
            (true, _) => format!("{:>width$}", show(headed)),
            (false, false) => format!("{:<width$}", show(headed)),
            (false, true) => show(headed),
        }
    });
    cells.collect::<Vec<_>>().join(" ") + "\n"
}

/// As ps(1) on the host shows it: the name that the host has for this number, or the number.
fn user(uid: u32) -> String {
    users::name(uid).filter(|name| name.len() <= 8).unwrap_or_else(|| uid.to_string())
}

fn started(process: &ProcessInfo) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(process.started_ns).unwrap_or(0))
}

/// The guest's clock is the host's, roughly.
fn age(process: &ProcessInfo, now: SystemTime) -> Duration {
    now.duration_since(started(process)).unwrap_or_default()
}

fn percent_of_time(process: &ProcessInfo, now: SystemTime) -> f64 {
    let seconds = age(process, now).as_secs_f64().max(1.0);
    (process.cpu_ns as f64 / 1e9 / seconds * 100.0).min(999.0)
}

fn local(process: &ProcessInfo) -> Option<LocalTime> {
    clock::local_time(started(process))
}

/// The time of a process that has started today, else the day, else the year.
fn day_or_time(process: &ProcessInfo, now: SystemTime) -> String {
    let (Some(then), Some(now)) = (local(process), clock::local_time(now)) else { return "?".to_owned() };
    match (then.year == now.year, then.day_of_year == now.day_of_year) {
        (true, true) => then.minutes(),
        (true, false) => then.day(),
        (false, _) => then.year.to_string(),
    }
}

/// Days, hours, minutes and seconds, from minutes (5 characters) or hours (8) on.
fn long_time(seconds: u64, least: usize) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let short = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) if least == 5 => short,
        (0, _) => format!("{hours:02}:{short}"),
        (_, _) => format!("{days}-{hours:02}:{short}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::parse;
    use super::*;

    fn process() -> ProcessInfo {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        ProcessInfo {
            pid: 7,
            parent_pid: 1,
            uid: 4242,
            started_ns: (now.as_nanos() - 100_000_000_000) as i64,
            cpu_ns: 10_000_000_000,
            terminal: "?".into(),
            command: "sleep 100".into(),
            name: "sleep".into(),
            state: "Ss".into(),
            virtual_bytes: 8 << 20,
            resident_bytes: 1 << 20,
            memory_permille: 12,
            ..Default::default()
        }
    }

    #[test]
    fn forms_are_those_of_ps() {
        let rows = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            let text = table(&parse(&options).unwrap(), &[process()]);
            let (header, row) = text.trim_end().split_once('\n').unwrap();
            (header.to_owned(), row.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let (header, row) = rows(&["-ef"]);
        assert_eq!(header, "UID          PID    PPID  C STIME TTY          TIME CMD");
        assert_eq!(
            (&row[..4], &row[5..]),
            (
                &["4242", "7", "1", "10"].map(String::from)[..],
                &["?", "00:00:10", "sleep", "100"].map(String::from)[..]
            )
        );
        let (header, row) = rows(&["aux"]);
        assert_eq!(header, "USER         PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND");
        assert_eq!(row[..8], ["4242", "7", "10.0", "1.2", "8192", "1024", "?", "Ss"]);
        let (header, row) = rows(&["-e", "-x"]);
        assert_eq!(header, "    PID TTY      STAT   TIME COMMAND");
        assert_eq!(row, ["7", "?", "Ss", "0:10", "sleep", "100"]);
        let (header, row) = rows(&["-A"]);
        assert_eq!((&*header, &*row[3]), ("    PID TTY          TIME CMD", "sleep"));
        let (header, row) = rows(&["-o", "pid,etimes=AGE", "-o", "args"]);
        assert_eq!((&*header, &*row[2]), ("    PID     AGE COMMAND", "sleep"));
    }

    #[test]
    fn times_grow_to_the_left() {
        assert_eq!((&*long_time(61, 5), &*long_time(61, 8)), ("01:01", "00:01:01"));
        assert_eq!(long_time(90_061, 5), "1-01:01:01");
    }
}
