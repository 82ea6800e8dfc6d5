//! A container's processes as ps(1) would show them: its cgroup's, from /proc. A process that ends meanwhile is left out.

use std::collections::HashMap;
use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};
use rt_proto::messages::ProcessInfo;

use crate::cgroup;

/// Longest command that is passed on.
const MAX_COMMAND: usize = 4096;

/// The processes of a container; `in_namespace` says whether its PID namespace is another than the agent's.
///
/// # Errors
/// The group cannot be read.
pub fn list(container: &str, in_namespace: bool) -> io::Result<Vec<ProcessInfo>> {
    let boot_ns = boot_time_ns();
    let ticks = match nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK) {
        Ok(Some(ticks @ 1..)) => ticks as u64,
        _ => 100,
    };
    let depth = usize::from(in_namespace);
    let found: Vec<Found> =
        cgroup::processes(container)?.into_iter().filter_map(|pid| look(pid, depth, ticks)).collect();
    let inside: HashMap<u32, u32> = found.iter().map(|found| (found.outside_pid, found.info.pid)).collect();
    let mut processes: Vec<ProcessInfo> = found
        .into_iter()
        .map(|Found { mut info, started_ns, .. }| {
            info.parent_pid = inside.get(&info.parent_pid).copied().unwrap_or(0);
            info.started_ns = boot_ns + i64::try_from(started_ns).unwrap_or(0);
            info
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    Ok(processes)
}

struct Found {
    outside_pid: u32,
    started_ns: u64,
    /// Its parent is still the outside one.
    info: ProcessInfo,
}

fn look(pid: i32, depth: usize, ticks: u64) -> Option<Found> {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let status = text(read("status")?);
    let stat = text(read("stat")?);
    let (name, numbers) = fields(&stat)?;
    let tick_ns = 1_000_000_000 / ticks;
    let memory = Memory::of_guest();
    let mut info = ProcessInfo::new();
    info.pid = inside(&status, "NSpid:", depth);
    info.parent_pid = number(&status, "PPid:").unwrap_or(0);
    info.uid = number(&status, "Uid:").unwrap_or(0);
    // proc_pid_stat(5): tty_nr is the seventh field, utime, stime and starttime are 14, 15 and 22; the third comes first here.
    info.terminal = terminal(numbers.get(4).copied()?);
    let time = |place: usize| numbers.get(place).and_then(|number| u64::try_from(*number).ok());
    info.cpu_ns = (time(11)? + time(12)?) * tick_ns;
    let number_at = |place: usize| numbers.get(place).copied().unwrap_or(0);
    info.name = name.to_owned();
    info.nice = i32::try_from(number_at(16)).unwrap_or(0);
    info.threads = u32::try_from(number_at(17)).unwrap_or(1);
    info.state = state(&stat, &numbers, pid.into());
    info.virtual_bytes = time(20)?;
    info.resident_bytes = time(21)? * memory.page;
    info.memory_permille = u32::try_from(info.resident_bytes * 1000 / memory.total).unwrap_or(1000);
    info.group = inside(&status, "NSpgid:", depth);
    info.session = inside(&status, "NSsid:", depth);
    info.command = command(&read("cmdline").unwrap_or_default(), name);
    Some(Found { outside_pid: pid.unsigned_abs(), started_ns: time(19)? * tick_ns, info })
}

fn boot_time_ns() -> i64 {
    let now = |clock| clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
    now(ClockId::CLOCK_REALTIME) - now(ClockId::CLOCK_BOOTTIME)
}

/// A process's name, and the numbers behind its state. The name may hold anything, parentheses among it.
fn fields(stat: &str) -> Option<(&str, Vec<i64>)> {
    let (name, rest) = (stat.find('(')?, stat.rfind(')')?);
    let numbers = rest.checked_add(1).and_then(|place| stat.get(place..))?.split_ascii_whitespace();
    // The state, a letter, holds the first place.
    Some((stat.get(name + 1..rest)?, numbers.map(|number| number.parse().unwrap_or(0)).collect()))
}

/// The first number of a line of /proc/PID/status.
fn number(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The guest's memory, bytes.
struct Memory {
    page: u64,
    total: u64,
}

impl Memory {
    fn of_guest() -> Self {
        let page = match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
            Ok(Some(page @ 1..)) => page as u64,
            _ => 4096,
        };
        let total = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
        Self { page, total: total.max(1) }
    }
}

/// A letter, and what ps(1) adds to it (its STAT): niceness, leader of a session, threads, in the foreground.
fn state(stat: &str, numbers: &[i64], pid: i64) -> String {
    let letter = stat.rfind(')').and_then(|end| stat[end + 1..].trim_start().chars().next());
    let mut state: String = letter.filter(char::is_ascii_alphabetic).into_iter().collect();
    let number = |place: usize| numbers.get(place).copied().unwrap_or(0);
    let (group, session, foreground) = (number(2), number(3), number(5));
    let adds = [
        ('<', number(16) < 0),
        ('N', number(16) > 0),
        ('s', session == pid),
        ('l', number(17) > 1),
        ('+', group != 0 && foreground == group),
    ];
    state.extend(adds.into_iter().filter(|(_, holds)| *holds).map(|(mark, _)| mark));
    state
}

/// A number of that line of /proc/PID/status in the PID namespace at that depth below the guest's.
fn inside(status: &str, name: &str, depth: usize) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_ascii_whitespace().nth(depth).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A controlling terminal's number as ps(1) names it.
fn terminal(device: i64) -> String {
    let Ok(device) = u64::try_from(device) else { return "?".to_owned() };
    let (major, minor) = (libc::major(device), libc::minor(device));
    match (major, minor) {
        (0, 0) => "?".to_owned(),
        (136..=143, minor) => format!("pts/{}", (major - 136) * 256 + minor),
        (4, 64..) => format!("ttyS{}", minor - 64),
        (4, minor) => format!("tty{minor}"),
        (5, 1) => "console".to_owned(),
        _ => "?".to_owned(),
    }
}

/// The arguments with spaces between them; a kernel thread or one that has ended has none, then its name.
fn command(arguments: &[u8], name: &str) -> String {
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(arguments);
    if arguments.is_empty() {
        return format!("[{name}]");
    }
    let bytes: Vec<u8> =
        arguments.iter().take(MAX_COMMAND).map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let (name, numbers) = fields("12 (a) b (c) S 1 12 12 34816 0").expect("fields");
        assert_eq!(name, "a) b (c");
        assert_eq!(numbers, [0, 1, 12, 12, 34816, 0]);
        assert!(fields("12 a S").is_none());
        assert!(fields(")(").is_none());
    }

    #[test]
    fn numbers_are_the_containers() {
        let status = "Name:\tx\nPPid:\t7\nUid:\t1000\t0\t0\t0\nNSpid:\t70\t3\t1\n";
        let at = |depth| inside(status, "NSpid:", depth);
        assert_eq!((at(0), at(1), at(3)), (70, 3, 0));
        assert_eq!((number(status, "PPid:"), number(status, "Uid:")), (Some(7), Some(1000)));
    }

    #[test]
    fn states_are_marked_as_by_ps() {
        let of = |stat: &str, pid| state(stat, &fields(stat).expect("fields").1, pid);
        let stat = "12 (a) b) S 1 12 12 34816 12 0 0 0 0 0 5 5 0 0 20 5 3 0 9 100 7";
        assert_eq!((of(stat, 12), of(stat, 13)), ("SNsl+".to_owned(), "SNl+".to_owned()));
        assert_eq!(of("1 (x)", 1), "");
    }

    #[test]
    fn terminals_are_named_as_by_ps() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(34817), "pts/1");
    }

    #[test]
    fn commands_are_readable() {
        assert_eq!(command(b"sh\0-c\0a b\0", "sh"), "sh -c a b");
        assert_eq!(command(b"", "kthread"), "[kthread]");
    }

    #[test]
    fn this_process_is_found() {
        let found = look(std::process::id() as i32, 0, 100).expect("it is there");
        assert_eq!(found.info.pid, std::process::id());
        assert!(found.info.resident_bytes > 4096 && found.info.memory_permille < 1000);
        let now = boot_time_ns() + i64::try_from(found.started_ns).expect("a time");
        assert!(now > 1_600_000_000_000_000_000);
    }
}
