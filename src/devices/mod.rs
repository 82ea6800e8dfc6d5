//! Virtio devices, apart from their transport.

pub mod vsock;
