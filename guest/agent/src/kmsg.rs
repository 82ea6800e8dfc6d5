//! The agent's log: records in the kernel's own (/dev/kmsg), so that the host's console shows them among the kernel's.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rt_proto::messages::LogRecord;

static FILE: OnceLock<File> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);
static CLOSED: AtomicBool = AtomicBool::new(false);

/// The levels in use, with the kernel's numbers (Documentation/ABI/testing/dev-kmsg).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error = 3,
    Warning = 4,
    /// The kernel's "info": what a console shows that is not told to be quiet.
    Debug = 6,
}

/// Opens the log; until then, and where /dev/kmsg is missing, records are dropped.
pub fn open() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _ = FILE.set(file);
    }
}

/// Ends the log of this process, which is about to close every descriptor that it does not know.
pub fn close() {
    CLOSED.store(true, Ordering::Relaxed);
}

/// Lets debug records through.
pub fn set_debug(debug: bool) {
    DEBUG.store(debug, Ordering::Relaxed);
    if debug {
        // The kernel otherwise drops records of user space beyond ten in five seconds.
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    }
}

/// True when debug records are let through.
pub fn debugging() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// Writes one record, by way of the macros [`error`], [`warning`] and [`debug`].
pub fn record(level: Level, arguments: Arguments<'_>) {
    if CLOSED.load(Ordering::Relaxed) || level == Level::Debug && !debugging() {
        return;
    }
    if let Some(mut file) = FILE.get() {
        let text = arguments.to_string().replace('\n', " | ");
        // A record holds about 1000 bytes; the kernel refuses longer ones whole.
        let mut end = text.len().min(900);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let _ = file.write_all(format!("<{}>rt-agent: {}", level as u8, &text[..end]).as_bytes());
    }
}

/// The size of an answer: ttRPC takes 4 MiB.
const MAX_ANSWER: usize = 512 << 10;
/// The kernel's records are shorter, their dictionaries included.
const MAX_RECORD: usize = 8 << 10;

/// The log's records from this sequence number on, as many as one answer holds.
pub fn records(from: u64) -> io::Result<Vec<LogRecord>> {
    // Every descriptor reads on its own, from the oldest record that is still there.
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut records, mut size, mut buffer) = (Vec::new(), 0, vec![0; MAX_RECORD]);
    while size < MAX_ANSWER {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let record = parse(&String::from_utf8_lossy(&buffer[..count]));
                let record = record.filter(|record| record.sequence >= from);
                size += record.as_ref().map_or(0, |record| record.text.len() + 32);
                records.extend(record);
            }
            // Overwritten meanwhile: the next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT`, then lines of the record's dictionary (dev-kmsg).
fn parse(record: &str) -> Option<LogRecord> {
    let (head, text) = record.split_once(';')?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    Some(LogRecord {
        level: priority & 7,
        sequence: head.next()?.parse().ok()?,
        time_us: head.next()?.parse().ok()?,
        text: text.lines().next().unwrap_or_default().into(),
        ..Default::default()
    })
}

macro_rules! error { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Error, format_args!($($a)*)) } }
macro_rules! warning { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Warning, format_args!($($a)*)) } }
macro_rules! debug { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Debug, format_args!($($a)*)) } }
pub(crate) use {debug, error, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_the_kernels() {
        let record = parse("12,345,6789012,-;rt-agent: it; works\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((record.level, record.sequence, record.time_us), (4, 345, 6_789_012));
        assert_eq!(record.text, "rt-agent: it; works");
        for bad in ["", "6,1,2,-", "x,1,2,-;text", "6,1;text"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
