//! The file server: serves a sandbox's share to the guest over vhost-user-fs, in a process of its own (`rt fsd`)
//! that sees nothing but the share. `sandbox` starts one per VM; the VMM, built-in or QEMU, is its client.
//!
//! The share is a read-only directory with one subdirectory or file per [`Entry`], each a mount of its own: read-only
//! entries are read-only mounts, so not even this process could write there. Where they come from several host file
//! systems, the guest sees each as one of its own, too (FUSE submounts), so that their inode numbers do not meet.
//!
//! Another container's entries can join a running server ([`attach`]): whoever starts it enters this process's mount namespace
//! and moves detached mounts into its root; the guest finds them by name. Submounts are announced from the first request on
//! or never, hence [`FsdSpec::grows`].

mod join;
mod launch;
mod serve;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{self, Cache};
use crate::jail::Bind;
use crate::sys::id_map::IdMap;

pub use join::{attach, detach, follow};
pub use launch::{Ending, Error, Fsd, launch, socket};
pub use serve::main;

/// One host file or directory below the share's root. What is shared by two containers is one entry that both use: a second
/// entry of the same source would be other files to the guest, with locks, FIFOs and caches of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it appears: a relative path of plain names, such as `ID/rootfs` or `ID/mounts/3`, at or below no other entry's.
    pub name: PathBuf,
    /// Absolute. A directory, with what is mounted below it, or any other file, which then appears as one. Symbolic links
    /// in it are followed when the server starts, by the host's rules; later ones never are.
    pub source: PathBuf,
    pub readonly: bool,
    /// Other owners than those on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_map: Option<IdMap>,
}

impl From<Entry> for Bind {
    fn from(entry: Entry) -> Self {
        let Entry { name: target, source, readonly, id_map } = entry;
        Self { target, source, readonly, id_map }
    }
}

/// The file server of one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FsdSpec {
    /// The sandbox's ID.
    pub id: String,
    pub entries: Vec<Entry>,
    /// What the guest may keep of them.
    pub cache: Cache,
    /// Entries are going to join, from whatever file systems.
    pub grows: bool,
    pub limits: config::Jail,
}
