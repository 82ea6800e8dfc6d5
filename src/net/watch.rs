//! News of a network namespace: that something in it has changed, not what.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::sys::bpf;

/// linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_NEIGH, and addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;

/// Readable when something has changed in the network namespace in which it was opened.
pub struct Events(Socket);

impl Events {
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        bpf::attach_filter(socket.as_fd(), &of_account())?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Takes all news that there are. Whether some were lost is the same to who looks at everything anyway.
    pub fn drain(&self) {
        let mut buffer = Vec::with_capacity(32 << 10);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) | Ok(0) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Passes what is of account. Of neighbours that is one entered by hand; an entry that is deleted no longer says whether it was. What the kernel finds
/// out by itself, and a bridge's list of stations, wake nobody.
fn of_account() -> [libc::sock_filter; 9] {
    // linux/netlink.h, neighbour.h: of struct nlmsghdr the type; behind it, of struct ndmsg, family and state.
    const TYPE: u32 = 4;
    const FAMILY: u32 = 16;
    const STATE: u32 = 24;
    const NUD_PERMANENT: u16 = 0x80;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // It reads numbers as a network has them, and these are the machine's.
    let own = |number: u16| u32::from(number.to_be());
    [
        step(LOAD_HALF, 0, 0, TYPE),
        step(IF_EQUAL, 0, 2, own(libc::RTM_NEWNEIGH)),
        step(LOAD_HALF, 0, 0, STATE),
        step(IF_SET, 1, 4, own(NUD_PERMANENT)),
        step(IF_EQUAL, 0, 2, own(libc::RTM_DELNEIGH)),
        step(LOAD_BYTE, 0, 0, FAMILY),
        step(IF_EQUAL, 1, 0, libc::AF_BRIDGE as u32),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A message of a type about a neighbour.
    fn news(kind: u16, family: libc::c_int, state: u16) -> Vec<u8> {
        let mut message = vec![0; 28];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[16] = family as u8;
        message[24..26].copy_from_slice(&state.to_ne_bytes());
        message
    }

    #[test]
    fn what_the_kernel_finds_out_of_neighbours_wakes_nobody() {
        const REACHABLE: u16 = 0x02;
        const FAILED: u16 = 0x20;
        const PERMANENT: u16 = 0x80;
        let (kernel, own) = UnixDatagram::pair().expect("a pair of sockets");
        own.set_nonblocking(true).expect("it does not block");
        bpf::attach_filter(own.as_fd(), &of_account()).expect("the kernel takes the program");
        let wakes = |message: Vec<u8>| {
            kernel.send(&message).expect("sent");
            own.recv(&mut [0; 64]).is_ok()
        };
        for family in [libc::AF_INET, libc::AF_INET6] {
            assert!(wakes(news(libc::RTM_NEWNEIGH, family, PERMANENT)));
            assert!(wakes(news(libc::RTM_DELNEIGH, family, FAILED)));
            assert!(!wakes(news(libc::RTM_NEWNEIGH, family, REACHABLE)));
            assert!(!wakes(news(libc::RTM_NEWNEIGH, family, FAILED)));
        }
        assert!(!wakes(news(libc::RTM_NEWNEIGH, libc::AF_BRIDGE, PERMANENT)));
        assert!(!wakes(news(libc::RTM_DELNEIGH, libc::AF_BRIDGE, REACHABLE)));
        for kind in [libc::RTM_NEWLINK, libc::RTM_DELADDR, libc::RTM_NEWROUTE] {
            assert!(wakes(news(kind, libc::AF_BRIDGE, 0)));
        }
    }
}
