//! What a process of the guest writes, on its way to the host's readers, and how long the guest may take with it.
//!
//! A guest tells the end of a process when its output is out. A reader on the host that takes its time takes that of the end, too, and loses
//! no byte: [`Patience`] counts the guest's own time only, in which none of the readers was waited for. What a guest sends is counted as
//! well: one that never stops writing would never be late.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More than pipes, sockets and credit of all of a process's streams hold.
const MOST: u64 = 64 << 20;
/// How often whoever waits looks how much has come.
const LOOK: Duration = Duration::from_millis(500);

/// The outputs of one process.
#[derive(Debug, Default)]
pub struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Outputs that have not come to their end.
    open: usize,
    /// Of these, such that wait for their readers; and since when at least one does.
    writing: usize,
    since: Option<Instant>,
    /// How long at least one has waited, before that.
    waited: Duration,
    bytes: u64,
    /// The guest has said that the process has ended, or cannot say it any more.
    told: bool,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An output, until what this gives is dropped.
    pub fn open(self: &Arc<Self>) -> Output {
        self.lock().open += 1;
        Output(Arc::clone(self))
    }

    /// The process has ended, as far as the guest is concerned.
    pub fn tell(&self) {
        self.lock().told = true;
    }

    pub fn is_told(&self) -> bool {
        self.lock().told
    }

    /// Waits until all outputs have come to their end; false when patience comes to its own before.
    pub fn ends(&self, patience: &Patience) -> bool {
        let mut state = self.lock();
        while state.open > 0 {
            let left = patience.left_of(&state);
            if left.is_zero() {
                return false;
            }
            // What is sent wakes nobody.
            let left = left.min(LOOK);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    fn waited(&self) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// One output.
pub struct Output(Arc<Flow>);

impl Output {
    /// Does `write`, which takes as long as the host's reader lets it, with so many bytes of the guest's.
    pub fn write<T>(&self, bytes: usize, write: impl FnOnce() -> T) -> T {
        {
            let mut state = self.0.lock();
            state.bytes = state.bytes.saturating_add(bytes as u64);
            state.writing += 1;
            state.since.get_or_insert_with(Instant::now);
        }
        let result = write();
        let mut state = self.0.lock();
        state.writing -= 1;
        if state.writing == 0 {
            state.waited = state.waited();
            state.since = None;
        }
        result
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
        self.0.changed.notify_all();
    }
}

/// A time that the guest has from now on.
pub struct Patience {
    flow: Arc<Flow>,
    limit: Duration,
    start: Instant,
    /// What there was at the start.
    waited: Duration,
    bytes: u64,
}

impl Patience {
    pub fn new(flow: &Arc<Flow>, limit: Duration) -> Self {
        let (waited, bytes) = {
            let state = flow.lock();
            (state.waited(), state.bytes)
        };
        Self { flow: Arc::clone(flow), limit, start: Instant::now(), waited, bytes }
    }

    /// When to look next; zero when it is over.
    pub fn left(&self) -> Duration {
        self.left_of(&self.flow.lock()).min(LOOK)
    }

    fn left_of(&self, state: &State) -> Duration {
        if state.bytes.saturating_sub(self.bytes) > MOST {
            return Duration::ZERO;
        }
        let waited = state.waited().saturating_sub(self.waited);
        let left = self.limit.saturating_sub(self.start.elapsed().saturating_sub(waited));
        // While a reader is waited for nothing runs out.
        if state.writing > 0 { left.max(LOOK) } else { left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn the_guest_does_not_pay_for_a_reader() {
        let flow = Arc::new(Flow::default());
        let output = flow.open();
        let patience = Patience::new(&flow, SHORT);
        output.write(10, || {
            std::thread::sleep(4 * SHORT);
            assert!(!patience.left().is_zero());
        });
        assert!(!patience.left().is_zero());
        std::thread::sleep(2 * SHORT);
        assert!(patience.left().is_zero() && !flow.ends(&patience));
        drop(output);
        assert!(flow.ends(&patience));
    }

    #[test]
    fn one_that_never_stops_writing_is_late() {
        let flow = Arc::new(Flow::default());
        let output = flow.open();
        output.write(1 << 40, || ());
        let patience = Patience::new(&flow, Duration::from_secs(1000));
        output.write(MOST as usize, || ());
        assert!(!patience.left().is_zero());
        output.write(1, || assert!(patience.left().is_zero()));
    }

    #[test]
    fn the_end_of_the_last_output_is_waited_for() {
        let flow = Arc::new(Flow::default());
        let outputs = [flow.open(), flow.open()];
        let patience = Patience::new(&flow, Duration::from_secs(60));
        std::thread::spawn(move || {
            for output in outputs {
                std::thread::sleep(SHORT);
                drop(output);
            }
        });
        assert!(flow.ends(&patience) && patience.start.elapsed() >= 2 * SHORT);
    }
}
