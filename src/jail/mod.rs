//! Starts rt's own helper processes (`rt vmm`, `rt fsd`, `rt vsockd`, and QEMU through `rt qemu`) and lets them lock
//! themselves in: own mount, pid, ipc and uts namespaces, an empty or share-only root, no capabilities but the
//! named ones, no_new_privs, limits, and only the descriptors they were given.
//!
//! In two halves. The parent calls [`Spawn::spawn`]: clone3 into new namespaces, then exec of /proc/self/exe with a
//! hidden verb; between the two only async-signal-safe calls. The child, still trusted since no guest
//! byte has reached it, calls [`enter`] first thing.

mod spawn;

pub use spawn::{Child, Spawn};

/// What a room of the jail may fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper process could not be started.
    #[error("cannot start `rt {verb}`")]
    Spawn {
        /// The hidden verb.
        verb: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
