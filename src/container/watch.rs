//! A thread that keeps something in step with what changes on the host.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::record::Error as StateError;
use super::{Error, system};

/// Changes come in bursts: what makes an interface takes several steps. So long after the last one they are looked at.
const SETTLED: Duration = Duration::from_millis(30);
/// So long after the first one they are looked at in any case.
const AT_LATEST: Duration = Duration::from_millis(500);

/// What tells of changes.
pub struct News<T> {
    pub of: T,
    /// By which poll(2) tells that there are some.
    pub flag: PollFlags,
    /// Takes those that are there.
    pub take: fn(&T),
}

/// A thread that looks whenever something has changed. Dropped, it has ended.
pub struct Watcher {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Has `look` called whenever there is news. `what` is what is watched, in words.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn start<T: AsFd + Send + 'static>(
        news: News<T>,
        what: String,
        mut look: impl FnMut() -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(Arc::new);
        let stop = stop.map_err(|errno| system("make an eventfd")(errno.into()))?;
        let until = Arc::clone(&stop);
        let work = move || {
            while wait(&news, &until) {
                match look() {
                    // Deleted meanwhile.
                    Err(Error::State(StateError::Missing(_))) => return,
                    Err(error) => tracing::warn!("{what}: {}", crate::log::chain(&error)),
                    Ok(()) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("watcher".into()).stack_size(256 << 10);
        let thread = thread.spawn(work).map_err(system("start a thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

/// Waits until something has changed and no more does, or for [`AT_LATEST`]; false when it is time to end.
fn wait<T: AsFd>(news: &News<T>, stop: &EventFd) -> bool {
    let mut first = None;
    loop {
        let left = first.map(|first: Instant| AT_LATEST.saturating_sub(first.elapsed()).min(SETTLED));
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(news.of.as_fd(), news.flag)];
        match poll(&mut fds, timeout) {
            Ok(0) => return true,
            Ok(_) if fds[0].any() == Some(true) => return false,
            Ok(_) => {
                (news.take)(&news.of);
                if left == Some(Duration::ZERO) {
                    return true;
                }
                first.get_or_insert_with(Instant::now);
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn changes_that_never_pause_are_looked_at() {
        let restless = EventFd::from_value(1).expect("an eventfd");
        let take: fn(&EventFd) = |_| thread::sleep(Duration::from_millis(1));
        let news = News { of: restless, flag: PollFlags::POLLIN, take };
        let stop = EventFd::new().expect("an eventfd");
        let (sender, looked) = mpsc::channel();
        // Left behind where it waits for ever.
        thread::spawn(move || sender.send(wait(&news, &stop)));
        assert_eq!(looked.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn what_has_settled_is_looked_at_and_an_end_is_one() {
        let (events, stop) = (EventFd::new().expect("an eventfd"), EventFd::new().expect("an eventfd"));
        events.write(1).expect("something changes");
        let take: fn(&EventFd) = |events| assert_eq!(events.read(), Ok(1));
        let news = News { of: events, flag: PollFlags::POLLIN, take };
        assert!(wait(&news, &stop));
        stop.write(1).expect("told");
        assert!(!wait(&news, &stop));
    }
}
