//! The monotonic clock, which all processes of a host share, so that timelines of several processes fit together; and the time
//! of day.

use std::io;
use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC always exists");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The processor time that a thread of this process has used, a guest's in it included, in nanoseconds.
///
/// # Errors
/// ESRCH when it has ended.
pub fn thread_ns(thread: libc::pthread_t) -> io::Result<u64> {
    let mut clock = 0;
    // SAFETY: the pointer is to a clock identifier; the thread was not joined, so the C library still knows it.
    let result = unsafe { libc::pthread_getcpuclockid(thread, &mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let used = clock_gettime(ClockId::from_raw(clock))?;
    Ok(used.tv_sec() as u64 * 1_000_000_000 + used.tv_nsec() as u64)
}

/// A moment in the host's own time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i64,
    /// From 0 on.
    pub day_of_year: i32,
    month: usize,
    day: i32,
    weekday: usize,
    hour: i32,
    minute: i32,
    second: i32,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

impl LocalTime {
    /// "13:05"
    pub fn minutes(&self) -> String {
        format!("{:02}:{:02}", self.hour, self.minute)
    }

    /// "Nov02"
    pub fn day(&self) -> String {
        format!("{}{:02}", MONTHS[self.month], self.day)
    }

    /// "Mon Nov  2 13:05:00 2026"
    pub fn long(&self) -> String {
        let (weekday, month) = (WEEKDAYS[self.weekday], MONTHS[self.month]);
        let Self { day, hour, minute, second, year, .. } = self;
        format!("{weekday} {month} {day:2} {hour:02}:{minute:02}:{second:02} {year}")
    }
}

/// That moment where the host is; `None` beyond what the C library can tell.
pub fn local_time(moment: SystemTime) -> Option<LocalTime> {
    let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let seconds = libc::time_t::try_from(seconds).ok()?;
    // SAFETY: numbers and a pointer that is not followed; all zeros are valid.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables that outlive the call.
    if unsafe { libc::localtime_r(&seconds, &mut parts) }.is_null() {
        return None;
    }
    let place = |number: i32, length: usize| usize::try_from(number).ok().filter(|place| *place < length);
    Some(LocalTime {
        year: i64::from(parts.tm_year) + 1900,
        day_of_year: parts.tm_yday,
        month: place(parts.tm_mon, MONTHS.len())?,
        day: parts.tm_mday,
        weekday: place(parts.tm_wday, WEEKDAYS.len())?,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_day_of_the_year_is_told() {
        // Noon, so that it is the same day nearly everywhere.
        let time = local_time(SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_620_800)).unwrap();
        assert_eq!((time.year, &*time.day()), (2026, "Nov02"));
        assert!(
            time.long().starts_with("Mon Nov  2 ") && time.long().ends_with(":00 2026"),
            "{}",
            time.long()
        );
    }
}
