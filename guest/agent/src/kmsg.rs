//! The agent's log: records in the kernel's own (/dev/kmsg), so that the host's console shows them among the kernel's.

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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

macro_rules! error { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Error, format_args!($($a)*)) } }
macro_rules! warning { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Warning, format_args!($($a)*)) } }
macro_rules! debug { ($($a:tt)*) => { $crate::kmsg::record($crate::kmsg::Level::Debug, format_args!($($a)*)) } }
pub(crate) use {debug, error, warning};
