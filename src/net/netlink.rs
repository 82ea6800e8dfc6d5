//! rtnetlink (rtnetlink(7)): requests to the kernel of this thread's network namespace.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// A dump that changes while it is read is read again, so often.
const ATTEMPTS: usize = 8;

/// What is to happen when the object is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The request changes or removes it.
    Change,
    /// EEXIST.
    Refuse,
    /// It is replaced.
    Replace,
}

/// A socket to the kernel.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for something to be made, changed or removed.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn request(&mut self, message: RouteNetlinkMessage, existing: Existing) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&encode(message, existing, self.sequence), 0)?;
        self.replies(|_| ()).map(drop)
    }

    /// All objects of a kind.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            self.sequence += 1;
            self.socket.send(&finish(message.clone(), NLM_F_DUMP, self.sequence), 0)?;
            let mut found = Vec::new();
            if self.replies(|reply| found.push(reply))? {
                return Ok(found);
            }
        }
        Err(io::Error::other("it changes all the time"))
    }

    /// Reads to the end of the answer; false when what was listed changed meanwhile.
    fn replies(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
        const INTERRUPTED: u16 = 0x10;
        let mut whole = true;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let reply =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get((reply.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                whole &= reply.header.flags & INTERRUPTED == 0;
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(whole),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            }
        }
    }
}

/// A request as it goes over a socket, answered by the kernel in every case.
pub fn encode(message: RouteNetlinkMessage, existing: Existing, sequence: u32) -> Vec<u8> {
    let flags = match existing {
        Existing::Change => 0,
        Existing::Refuse => NLM_F_CREATE | NLM_F_EXCL,
        Existing::Replace => NLM_F_CREATE | NLM_F_REPLACE,
    };
    finish(message, flags | NLM_F_ACK, sequence)
}

fn finish(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}
