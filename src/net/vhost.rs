//! The kernel's own way of moving a virtual machine's frames.

use std::fs::File;
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/vhost-net";

/// Opens vhost-net once for each of `count` pairs of queues; none where the host does not have it, which is slower and no error.
pub fn open_vhost(count: usize) -> Vec<OwnedFd> {
    let open = || File::options().read(true).write(true).open(DEVICE).map(OwnedFd::from);
    let opened: std::io::Result<Vec<OwnedFd>> = (0..count).map(|_| open()).collect();
    opened.unwrap_or_else(|error| {
        tracing::debug!("without vhost-net: {DEVICE}: {error}");
        Vec::new()
    })
}
