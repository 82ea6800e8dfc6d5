//! Connections to a loopback's address, whatever their port, led to one listener (Documentation/bpf/prog_sk_lookup.rst; Linux 5.9).

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::bpf::{
    self, ADD, CALL, COPY, EXIT, IF_EQUAL, LINK_CREATE, LOAD_MAP, LOAD_WORD, MAP_CREATE, MAP_UPDATE_ELEM,
    SET, STORE_WORD, UNLESS_EQUAL, step,
};

/// As long as it lives, who connects to [`ADDRESS`] in the namespace gets the listener.
#[derive(Debug)]
pub struct Steering {
    _link: OwnedFd,
}

pub const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

// linux/bpf.h
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

impl Steering {
    /// Of the network namespace `namespace`, in which `listener` listens.
    ///
    /// # Errors
    /// What bpf(2) says: EPERM, ENOSYS and EINVAL where the kernel does not let programs be attached.
    pub fn new(namespace: BorrowedFd<'_>, listener: &TcpListener) -> io::Result<Self> {
        // Type, key size, value size, entries.
        let map = bpf::call(MAP_CREATE, &[MAP_TYPE_SOCKMAP, 4, 8, 1])?;
        let (key, value) = (0_u32, listener.as_raw_fd() as u64);
        let update = Update {
            map: map.as_raw_fd(),
            pad: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf::command(MAP_UPDATE_ELEM, &update)?;
        let program = load(map.as_fd())?;
        // Program, target, type, flags.
        let numbers = [program.as_raw_fd() as u32, namespace.as_raw_fd() as u32, ATTACH_SK_LOOKUP, 0];
        Ok(Self { _link: bpf::call(LINK_CREATE, &numbers)? })
    }
}

#[repr(C)]
struct Update {
    map: RawFd,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Loads the program: for a TCP connection to the address it chooses the socket in the map.
fn load(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // Of struct bpf_sk_lookup.
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    const PSEUDO_MAP_FD: u8 = 1;
    const PASS: i32 = 1;
    let address = i32::from_ne_bytes(ADDRESS.octets());
    let mut program = [
        step(COPY, 6, 1, 0, 0),
        step(LOAD_WORD, 2, 6, PROTOCOL, 0),
        step(UNLESS_EQUAL, 2, 0, 0, libc::IPPROTO_TCP),
        step(LOAD_WORD, 2, 6, FAMILY, 0),
        step(UNLESS_EQUAL, 2, 0, 0, libc::AF_INET),
        step(LOAD_WORD, 2, 6, LOCAL_IP4, 0),
        step(UNLESS_EQUAL, 2, 0, 0, address),
        // The key, 0, on the stack.
        step(STORE_WORD, 10, 0, -4, 0),
        step(LOAD_MAP, 1, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
        step(0, 0, 0, 0, 0),
        step(COPY, 2, 10, 0, 0),
        step(ADD, 2, 0, 0, -4),
        step(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        step(IF_EQUAL, 0, 0, 0, 0),
        step(COPY, 7, 0, 0, 0),
        step(COPY, 1, 6, 0, 0),
        step(COPY, 2, 7, 0, 0),
        step(SET, 3, 0, 0, 0),
        step(CALL, 0, 0, 0, SK_ASSIGN),
        step(COPY, 1, 7, 0, 0),
        step(CALL, 0, 0, 0, SK_RELEASE),
        // Whatever came of it, the kernel's own search goes on where no socket was chosen.
        step(SET, 0, 0, 0, PASS),
        step(EXIT, 0, 0, 0, 0),
    ];
    // Jumps lead to its last two.
    let last = program.len() - 2;
    for (place, jump) in program.iter_mut().enumerate() {
        if [UNLESS_EQUAL, IF_EQUAL].contains(&jump.code) {
            jump.offset = (last - place - 1) as i16;
        }
    }
    bpf::load(PROG_TYPE_SK_LOOKUP, ATTACH_SK_LOOKUP, "rt_loopback", &program)
}
