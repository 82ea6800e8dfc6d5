//! What another process asks of a running VM: to plug network interfaces and block devices, and to change its memory.
//!
//! The VMM's bus has slots for devices, in which the kernel finds nothing at boot. One message over the control socket, with the descriptors beside
//! it, puts a device into one of them; the guest's agent then has the kernel look again. The answer is a line: a number (the device's, or of bytes), or what went wrong. Only root reaches the socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::vmm::Bus;
use super::{Error, one_line};
use crate::devices::VirtioDevice;
use crate::devices::block::{Block as BlockDevice, Disk};
use crate::devices::mem::{self, Control};
use crate::devices::net::Net;
use crate::hypervisor::{BLOCK_SLOTS, Block, GuestDevice, NETWORK_SLOTS, Nic, vsock::connect_plain};
use crate::sys::{fd, text::printable};

/// For an answer: the VMM may still be starting. Its end is noticed at once.
const TIMEOUT: Duration = Duration::from_secs(60);
/// For a message on a connection, which comes at once, or on a very busy host in a while: the VMM's devices stand still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Interface {
    slot: usize,
    mac: [u8; 6],
    /// Beside the message: so many queues of a TAP device, then what is left, of vhost-net.
    taps: usize,
    offloads: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Network(Interface),
    /// Beside the message: its descriptor.
    Block {
        slot: usize,
        serial: String,
        bytes: u64,
        block_size: u32,
        readonly: bool,
    },
    /// Answered by what is plugged.
    Memory {
        /// Beyond what there was at the start; `None` leaves it.
        bytes: Option<u64>,
    },
}

/// # Errors
/// What the socket or the VMM say.
pub fn plug(control: &Path, nic: Nic) -> io::Result<GuestDevice> {
    let message = Message::Network(Interface {
        slot: nic.slot,
        mac: nic.mac,
        taps: nic.taps.len(),
        offloads: nic.offloads,
    });
    let descriptors: Vec<_> = nic.taps.iter().chain(&nic.vhost).map(AsFd::as_fd).collect();
    let index = ask(control, &message, &descriptors)?;
    Ok(guest_device(index))
}

/// # Errors
/// What the socket or the VMM say.
pub fn plug_block(control: &Path, block: Block) -> io::Result<GuestDevice> {
    let Block { slot, serial, file, bytes, block_size, readonly } = block;
    let message = Message::Block { slot, serial, bytes, block_size, readonly };
    Ok(guest_device(ask(control, &message, &[file.as_fd()])?))
}

/// Device number `index` of the only bus.
fn guest_device(index: u64) -> GuestDevice {
    GuestDevice { address: format!("{index:02x}") }
}

/// Asks for so many bytes of memory beyond those of the start, or for nothing: how many are plugged.
///
/// # Errors
/// What the socket or the VMM say.
pub fn memory(control: &Path, bytes: Option<u64>) -> io::Result<u64> {
    ask(control, &Message::Memory { bytes }, &[])
}

fn ask(control: &Path, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<u64> {
    let mut socket = connect_plain(control, TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    fd::send_several(socket.as_fd(), &serde_json::to_vec(message)?, descriptors)?;
    let mut answer = String::new();
    let late = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "its VMM does not answer"),
        _ => error,
    };
    Read::take(&mut socket, MAX_MESSAGE as u64).read_to_string(&mut answer).map_err(late)?;
    let answer = answer.strip_suffix('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
    answer.parse().map_err(|_| io::Error::other(printable(answer, MAX_MESSAGE)))
}

/// The VMM's side.
pub struct Slots {
    pub listener: UnixListener,
    pub bus: Bus,
    /// Device number of the first; the others follow.
    pub first: usize,
    pub used: [bool; NETWORK_SLOTS],
    /// The same of block devices; those that are not there are in use.
    pub first_block: usize,
    pub used_blocks: [bool; BLOCK_SLOTS],
    /// Device number of what plugs memory, where that is possible.
    pub plug: Option<(u32, Control)>,
}

impl Slots {
    /// Somebody has connected.
    pub fn serve(&mut self, machine: &Machine) {
        let Ok((mut socket, _)) = self.listener.accept() else { return };
        let answer = match self.answer(&socket, machine) {
            Ok(number) => number.to_string(),
            Err(refusal) => refusal.replace('\n', " "),
        };
        // Who asked may be gone.
        let _ = writeln!(socket, "{answer}");
    }

    fn answer(&mut self, socket: &UnixStream, machine: &Machine) -> Result<u64, String> {
        let (message, descriptors) = receive(socket).map_err(|error| error.to_string())?;
        match message {
            Message::Network(interface) => {
                let free = self.used.get(interface.slot).is_some_and(|used| !used);
                if !free {
                    return Err(format!("slot {} is not free", interface.slot));
                }
                let index = self.plug(&interface, descriptors, machine).map_err(|error| one_line(&error))?;
                self.used[interface.slot] = true;
                Ok(index as u64)
            }
            Message::Block { slot, serial, bytes, block_size, readonly } => {
                if self.used_blocks.get(slot).is_none_or(|used| *used) {
                    return Err(format!("it has no place for a block device in slot {slot}"));
                }
                let file = descriptors.into_iter().next().ok_or("there is no descriptor beside it")?;
                let disk = Disk::new(file.into(), bytes, block_size, readonly, &serial);
                let index = self.first_block + slot;
                self.put(index, Box::new(BlockDevice::new(disk)), machine)
                    .map_err(|error| one_line(&error))?;
                self.used_blocks[slot] = true;
                Ok(index as u64)
            }
            Message::Memory { bytes } => {
                let (index, control) =
                    self.plug.as_ref().ok_or("it was not started with a place for more memory")?;
                if let Some(bytes) = bytes {
                    control.request(bytes);
                    machine.process(*index, mem::RESIZE);
                }
                Ok(control.plugged())
            }
        }
    }

    fn plug(&self, interface: &Interface, mut taps: Vec<OwnedFd>, machine: &Machine) -> Result<usize, Error> {
        let vhost = taps.split_off(interface.taps.min(taps.len()));
        let device =
            Net::new(interface.mac, taps, vhost, &self.bus.memory)?.with_offloads(interface.offloads);
        self.put(self.first + interface.slot, Box::new(device), machine)
    }

    /// The device's number.
    fn put(&self, index: usize, device: Box<dyn VirtioDevice>, machine: &Machine) -> Result<usize, Error> {
        machine.put(index, self.bus.attach(index, device, None)?);
        Ok(index)
    }
}

fn receive(socket: &UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut text = [0; MAX_MESSAGE];
    let (length, descriptors) = fd::receive_several(socket.as_fd(), &mut text)?;
    Ok((serde_json::from_slice(&text[..length])?, descriptors))
}
