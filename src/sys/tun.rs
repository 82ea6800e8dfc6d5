//! TAP devices (Documentation/networking/tuntap.rst): Ethernet frames as a program reads and writes them. The queues of macvtap
//! devices, which lie on another interface, take the same requests.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Frames carry a `struct virtio_net_hdr_v1` in front of them, virtio 1.2 §5.1.6.
pub const VNET_HEADER: usize = 12;

/// Makes a TAP device in this thread's network namespace, with `queues` queues; it is gone with the last of their descriptors.
/// Frames have a header of [`VNET_HEADER`] bytes; reading blocks.
///
/// # Errors
/// What open(2) of /dev/net/tun and ioctl(2) say: EBUSY when the name is taken.
pub fn make(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let open = || File::options().read(true).write(true).open("/dev/net/tun");
    (0..queues).map(|_| set_up(open()?, name, queues > 1)).collect()
}

/// Makes a queue of what was opened: of the TAP device of that name, or, whatever the name, of the macvtap device whose node it is;
/// `several` if it is not to be the only one. As [`make`] has them.
///
/// # Errors
/// What ioctl(2) says.
pub fn set_up(queue: File, name: &str, several: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    let size = VNET_HEADER as libc::c_int;
    // SAFETY: the kernel reads one int.
    result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &size) })?;
    Ok(queue.into())
}

/// What the reader of a TAP device's frames can finish itself: checksums, and segments of TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    pub checksum: bool,
    pub tso4: bool,
    pub tso6: bool,
    pub ecn: bool,
}

/// # Errors
/// What ioctl(2) says.
pub fn set_offloads(tap: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let bit = |set, flag| if set { flag } else { 0 };
    let mut flags = bit(offloads.checksum, libc::TUN_F_CSUM);
    // Without checksums the kernel has no use for the others.
    if offloads.checksum {
        flags |= bit(offloads.tso4, libc::TUN_F_TSO4) | bit(offloads.tso6, libc::TUN_F_TSO6);
        flags |= bit(offloads.ecn && flags != libc::TUN_F_CSUM, libc::TUN_F_TSO_ECN);
    }
    // SAFETY: takes a number.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
}

/// Whether the kernel gives frames to this queue of several.
///
/// # Errors
/// What ioctl(2) says: EINVAL when it is so already.
pub fn attach_queue(tap: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: the kernel reads one ifreq.
    result(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETQUEUE as _, &request) })
}

fn result(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
