//! virtio-vsock: byte streams between host and guest, virtio 1.2 §5.10.
//!
//! The device knows no transport: whoever owns the queues (the built-in VMM's virtio-pci, or `rt vsockd` for QEMU) calls
//! [`VsockDevice`] with guest memory and a queue. In layers, each knowing only the ones below it:
//!
//! ```text
//!   device       queues, notifications, configuration space
//!   muxer        which packet belongs to which connection; host sockets; whose turn it is
//!   connection   one connection's state machine: credit, half-close, reset
//!   packet       the header, and bytes in descriptor chains
//! ```
//!
//! On the host there is no address family: a process connects to a Unix socket and sends `CONNECT PORT\n`; the
//! guest can reach one port only, [`rt_proto::BEACON_PORT`], and each such connection is handed to rt's parent process as a descriptor.

mod connection;
mod device;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

pub use device::{QUEUE_SIZES, Turn, VsockDevice};

/// What the guest, or the host's descriptors, made impossible.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue itself lies outside guest memory, or its indices make no sense.
    #[error("the guest broke a vsock queue")]
    Queue(#[from] virtio_queue::Error),
    /// epoll failed; nothing is wrong with the guest.
    #[error("cannot watch the host's sockets")]
    Watch(#[source] std::io::Error),
}
