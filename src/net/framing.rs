//! What frames look like at an interface, and what makes them Ethernet frames for a guest, which knows no other: a BPF program at the
//! ingress qdisc in the place of u32 and mirred (linux/bpf.h; bpf_skb_change_head in such programs is Linux 5.8's).
//!
//! Such an interface asks nobody for addresses (NOARP), nor does the guest's: it puts its own address into a frame as the destination.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::sys::bpf::{
    self, CALL, COPY, EXIT, IF_EQUAL, Instruction, LOAD_WORD, SET, STORE_HALF, STORE_HALF_OF, STORE_WORD,
    step,
};

/// What is in front of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// An Ethernet header, with addresses that the guest can have.
    #[default]
    Ethernet,
    /// An Ethernet header of zeros: netkit in layer 3 mode.
    Blank,
    /// Nothing: TUN devices, tunnels.
    Bare,
}

/// The Ethernet address of a guest's interface for one that has none: locally administered, and the same every time.
pub fn address(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [0x02, b'r', a, b, c, d]
}

/// A program that sends every packet out of the TAP device `tap`, as from `mac`'s other end to `mac`.
///
/// # Errors
/// What bpf(2) says.
pub fn to_guest(framing: Framing, mac: [u8; 6], tap: u32) -> io::Result<OwnedFd> {
    let mut other = mac;
    other[0] ^= 0x04;
    load(&program(framing == Framing::Bare, mac, other, tap))
}

/// A program that sends every frame out of the interface `index`, with a blank header.
///
/// # Errors
/// What bpf(2) says.
pub fn from_guest(index: u32) -> io::Result<OwnedFd> {
    load(&program(false, [0; 6], [0; 6], index))
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_TYPE_SCHED_CLS: u32 = 3;
    bpf::load(PROG_TYPE_SCHED_CLS, 0, "rt_framing", program)
}

/// Writes an Ethernet header in front of the packet, for which it makes room first if it is bare, and sends it out of an interface.
fn program(bare: bool, destination: [u8; 6], source: [u8; 6], to: u32) -> Vec<Instruction> {
    const SKB_STORE_BYTES: i32 = 9;
    const REDIRECT: i32 = 23;
    const SKB_CHANGE_HEAD: i32 = 43;
    // Of struct __sk_buff; in network byte order.
    const PROTOCOL: i16 = 16;
    const HEADER: i32 = 14;
    const ON_STACK: i16 = -16;
    const DROP: i32 = 2;
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    let word = i32::from_ne_bytes;
    let half = |bytes| i32::from(i16::from_ne_bytes(bytes));
    let mut program = vec![step(COPY, 6, 1, 0, 0)];
    if bare {
        program.extend([
            step(SET, 2, 0, 0, HEADER),
            step(SET, 3, 0, 0, 0),
            step(CALL, 0, 0, 0, SKB_CHANGE_HEAD),
            // Past the failure.
            step(IF_EQUAL, 0, 0, 2, 0),
            step(SET, 0, 0, 0, DROP),
            step(EXIT, 0, 0, 0, 0),
        ]);
    }
    program.extend([
        step(STORE_WORD, 10, 0, ON_STACK, word([a, b, c, d])),
        step(STORE_HALF, 10, 0, ON_STACK + 4, half([e, f])),
        step(STORE_HALF, 10, 0, ON_STACK + 6, half([g, h])),
        step(STORE_WORD, 10, 0, ON_STACK + 8, word([i, j, k, l])),
        step(LOAD_WORD, 1, 6, PROTOCOL, 0),
        step(STORE_HALF_OF, 10, 1, ON_STACK + 12, 0),
        step(COPY, 1, 6, 0, 0),
        step(SET, 2, 0, 0, 0),
        step(COPY, 3, 10, 0, 0),
        step(bpf::ADD, 3, 0, 0, ON_STACK.into()),
        step(SET, 4, 0, 0, HEADER),
        step(SET, 5, 0, 0, 0),
        step(CALL, 0, 0, 0, SKB_STORE_BYTES),
        step(IF_EQUAL, 0, 0, 2, 0),
        step(SET, 0, 0, 0, DROP),
        step(EXIT, 0, 0, 0, 0),
        step(SET, 1, 0, 0, to as i32),
        step(SET, 2, 0, 0, 0),
        step(CALL, 0, 0, 0, REDIRECT),
        step(EXIT, 0, 0, 0, 0),
    ]);
    program
}
