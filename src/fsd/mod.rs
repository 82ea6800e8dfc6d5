//! The file server: serves a sandbox's share to the guest over vhost-user-fs, in a process of its own (`rt fsd`)
//! that sees nothing but the share.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One host file or directory below the share's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it appears: a relative path of plain names, such as `ID/rootfs` or `ID/mounts/3`.
    pub name: PathBuf,
    /// Absolute; a directory, or any other file, which then appears as one.
    pub source: PathBuf,
    pub readonly: bool,
}

/// The file server of one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FsdSpec {
    /// The sandbox's ID.
    pub id: String,
    pub entries: Vec<Entry>,
}

/// A started file server. Dropping it kills the process and reaps it.
#[derive(Debug)]
pub struct Fsd {}

/// Starts `rt fsd`, which serves `spec` on `socket` (vhost-user backend side, a connected Unix stream socket).
pub fn launch(_spec: &FsdSpec, _socket: OwnedFd) -> Result<Fsd, crate::jail::Error> {
    Ok(Fsd {})
}
