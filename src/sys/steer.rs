//! Connections to a loopback's address, whatever their port, led to one listener (Documentation/bpf/prog_sk_lookup.rst; Linux 5.9).

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// As long as it lives, who connects to [`ADDRESS`] in the namespace gets the listener.
#[derive(Debug)]
pub struct Steering {
    _link: OwnedFd,
}

pub const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

// linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
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
        let map = call(MAP_CREATE, &[MAP_TYPE_SOCKMAP, 4, 8, 1])?;
        let (key, value) = (0_u32, listener.as_raw_fd() as u64);
        let update = Update {
            map: map.as_raw_fd(),
            pad: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        command(MAP_UPDATE_ELEM, &update)?;
        let program = load(map.as_fd())?;
        // Program, target, type, flags.
        let numbers = [program.as_raw_fd() as u32, namespace.as_raw_fd() as u32, ATTACH_SK_LOOKUP, 0];
        Ok(Self { _link: call(LINK_CREATE, &numbers)? })
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

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach: u32,
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn step(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// Loads the program: for a TCP connection to the address it chooses the socket in the map.
fn load(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x62;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const UNLESS_EQUAL: u8 = 0x55;
    const IF_EQUAL: u8 = 0x15;
    const LOAD_MAP: u8 = 0x18;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
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
    let mut name = [0; 16];
    name[..11].copy_from_slice(b"rt_loopback");
    let load = Load {
        kind: PROG_TYPE_SK_LOOKUP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name,
        attach: ATTACH_SK_LOOKUP,
        ..Default::default()
    };
    descriptor(command(PROG_LOAD, &load)?)
}

/// A command whose arguments are numbers and whose result is a descriptor.
fn call(number: libc::c_int, arguments: &[u32; 4]) -> io::Result<OwnedFd> {
    descriptor(command(number, arguments)?)
}

fn descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: bpf(2) has made the descriptor, close-on-exec, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn command<T>(number: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, of the size that is said, and what the addresses in them point to: values of the
    // caller that live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
