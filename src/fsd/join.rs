//! A running server's share grows and shrinks, as containers join and leave a sandbox. The server takes no part in it: what is
//! mounted in its namespace it serves, and the guest finds it by name.

use std::path::PathBuf;

use super::{Entry, Error};
use crate::jail::{self, Bind};
use crate::sys::pidfd::ProcessId;

/// Adds entries to the share of the server `process`; all or none.
///
/// # Errors
/// [`Error::Gone`] when the server has ended; [`Error::Jail`].
pub fn attach(process: ProcessId, entries: &[Entry]) -> Result<(), Error> {
    let binds: Vec<Bind> = entries.iter().cloned().map(Bind::from).collect();
    jail::extend(process, &binds).map_err(failed)
}

/// Takes entries away, whether all of them are there or not. What the guest has open stays so until it closes it.
///
/// # Errors
/// [`Error::Gone`] when the server has ended, and everything with it; [`Error::Jail`].
pub fn detach(process: ProcessId, names: &[PathBuf]) -> Result<(), Error> {
    jail::withdraw(process, names).map_err(failed)
}

/// Makes the mounts below entries of the server those that are below their sources on the host now: the names that are gone.
///
/// # Errors
/// [`Error::Gone`] when the server has ended; [`Error::Jail`].
pub fn follow(process: ProcessId, entries: &[Entry]) -> Result<Vec<PathBuf>, Error> {
    let binds: Vec<Bind> = entries.iter().cloned().map(Bind::from).collect();
    jail::follow(process, &binds).map_err(failed)
}

fn failed(error: jail::Error) -> Error {
    match error {
        jail::Error::Ended => Error::Gone,
        other => other.into(),
    }
}
