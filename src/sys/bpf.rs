//! Programs in the kernel's own machine code (bpf(2), Documentation/bpf/standardization/instruction-set.rst). The kernel runs none that could do
//! harm: it proves so of each before it loads it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// linux/bpf.h
pub const MAP_CREATE: libc::c_int = 0;
pub const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
pub const LINK_CREATE: libc::c_int = 28;

pub const LOAD_WORD: u8 = 0x61;
pub const STORE_WORD: u8 = 0x62;
pub const STORE_HALF: u8 = 0x6a;
pub const STORE_HALF_OF: u8 = 0x6b;
pub const COPY: u8 = 0xbf;
pub const SET: u8 = 0xb7;
pub const ADD: u8 = 0x07;
pub const UNLESS_EQUAL: u8 = 0x55;
pub const IF_EQUAL: u8 = 0x15;
pub const LOAD_MAP: u8 = 0x18;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;

/// One instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    pub code: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    pub offset: i16,
    immediate: i32,
}

pub const fn step(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
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

/// Loads a program of a kind, to be attached so. Of its name the kernel knows the first 15 letters.
///
/// # Errors
/// What bpf(2) says: EPERM and ENOSYS where the kernel does not let programs be loaded, EINVAL where it does not know the kind or a function.
pub fn load(kind: u32, attach: u32, name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        attach,
        ..Load::default()
    };
    for (place, byte) in load.name.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    descriptor(command(PROG_LOAD, &load)?)
}

/// A command whose arguments are numbers and whose result is a descriptor.
///
/// # Errors
/// What bpf(2) says.
pub fn call(number: libc::c_int, arguments: &[u32; 4]) -> io::Result<OwnedFd> {
    descriptor(command(number, arguments)?)
}

fn descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: bpf(2) has made the descriptor, close-on-exec, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// # Errors
/// What bpf(2) says.
pub(super) fn command<T>(number: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, of the size that is said, and what the addresses in them point to: values of the
    // caller that live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Attaches a program of the older kind (Documentation/networking/filter.rst) to a socket, which from then on is given only what the program
/// returns a length for.
///
/// # Errors
/// What setsockopt(2) says: EINVAL for what is no program.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    // The kernel only reads it.
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let size = size_of_val(&filter) as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads a sock_fprog, and as many instructions of the caller's as it says.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const filter).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
