//! The harness: bundles, running rt, terminals, what is left afterwards, and where the tests run.

mod bundle;
mod ended;
mod leftovers;
mod lifecycle;
mod place;
mod pty;
mod running;

pub use bundle::{Bundle, host, without};
pub use ended::Ended;
pub use leftovers::Processes;
pub use lifecycle::Container;
pub use place::{Place, guest_file, patience, place, rt_binary, skipped};
pub use pty::Pty;
pub use running::{Call, Input, Running};
