//! Signals that are waited for, by number: nix knows no real-time ones.

use std::io;

use nix::sys::signal::SigSet;

/// Waits for one of the signals, all of which are blocked, and takes it: its number.
///
/// # Errors
/// What sigwait(3) says.
pub fn wait(set: &SigSet) -> io::Result<i32> {
    let mut signal = 0;
    // SAFETY: both pointers are of variables that outlive the call.
    match unsafe { libc::sigwait(set.as_ref(), &mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::SigmaskHow;

    use super::*;

    #[test]
    fn real_time_signals_have_numbers() {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
        let number = libc::SIGRTMIN() + 3;
        // SAFETY: it is this thread's own, and blocked.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), number) }, 0);
        assert_eq!(wait(&SigSet::all()).unwrap(), number);
        before.thread_set_mask().unwrap();
    }
}
