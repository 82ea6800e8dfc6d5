//! The monotonic clock, which all processes of a host share: timelines of several processes fit together.

use std::io;

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
