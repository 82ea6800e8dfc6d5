//! The protocol between rt on the host and its agent in the guest: vsock ports, paths, the beacon, and
//! the ttRPC service generated from agent.proto.
//!
//! In order of time: the agent mounts what it needs, listens on [`AGENT_PORT`] and [`STREAM_PORT`], then connects
//! to the host ([`BEACON_PORT`]) and sends a [`Beacon`]. The host closes that connection, connects to
//! [`AGENT_PORT`] and calls `Hello`.

pub mod resolver;

#[allow(clippy::all, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}
pub use generated::{agent as messages, agent_ttrpc as service};

/// Changes whenever host and agent of different builds could misunderstand each other.
pub const PROTOCOL_VERSION: u32 = 7;

/// vsock context identifiers, virtio 1.2 §5.10.4.
pub const HOST_CID: u32 = 2;
/// The guest's CID where it is private to one VM (not with the kernel's vhost-vsock, whose CIDs are the host's).
pub const GUEST_CID: u32 = 3;

/// Host port that the agent connects to when it is ready, unless the kernel command line says
/// `rt.beacon=PORT` (with the kernel's vhost-vsock, where host ports are shared by all VMs).
pub const BEACON_PORT: u32 = 1024;
/// Guest port on which the agent serves ttRPC.
pub const AGENT_PORT: u32 = 1024;
/// Guest port for standard streams: the connecting host first sends the stream's identifier, 8 bytes
/// little-endian, never 0; everything after is the stream's own bytes, ended by shutdown of that direction.
pub const STREAM_PORT: u32 = 1025;

/// Longest program that a process beside the agent may bring along.
pub const MAX_PROGRAM: u64 = 64 << 20;

/// Where the agent mounts the sandbox's share.
pub const SHARE_DIR: &str = "/run/rt/share";

/// Where the agent keeps what it knows of each container.
pub const CONTAINERS_DIR: &str = "/run/rt/containers";

/// Where the agent has the namespace of a container, for others of its pod to join: `kind` as in /proc/PID/ns.
pub fn namespace_path(container: &str, kind: &str) -> String {
    format!("{CONTAINERS_DIR}/{container}/ns/{kind}")
}

/// What the agent sends when it is ready: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beacon {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub version: u32,
}

impl Beacon {
    /// Length on the wire.
    pub const SIZE: usize = 16;
    const MAGIC: [u8; 8] = *b"rt-agent";

    /// The wire form: magic, version little-endian, four zero bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// Reads the wire form; `None` when the magic is missing.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("a slice of four bytes"));
        (bytes[..8] == Self::MAGIC).then_some(Self { version })
    }
}

/// Where a container that may notify finds the directory of its socket.
pub const NOTIFY_DIR: &str = "/run/notify";
/// The socket in it.
pub const NOTIFY_NAME: &str = "notify.sock";

/// That directory, as the guest outside of the container sees it.
pub fn notify_dir(container: &str) -> std::path::PathBuf {
    std::path::Path::new("/run/rt/notify").join(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beacon_survives_the_wire() {
        let beacon = Beacon { version: 7 };
        assert_eq!(Beacon::from_bytes(&beacon.to_bytes()), Some(beacon));
    }

    #[test]
    fn beacon_without_magic_is_refused() {
        let mut bytes = Beacon { version: 7 }.to_bytes();
        bytes[0] = b'x';
        assert_eq!(Beacon::from_bytes(&bytes), None);
    }
}
