//! Questions to docker's resolver, and its answers, on their way between guest and host: DNS messages (RFC 1035 §4), each with a header of
//! eight bytes before it, little-endian: a number by which the answer finds its question, 1 where the question came by TCP and
//! 0 by UDP, and the length.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Where it listens: on the loopback of the container's network namespace.
pub const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// A question or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub number: u32,
    pub by_tcp: bool,
    /// At most 65,535.
    pub bytes: Vec<u8>,
}

impl Message {
    /// # Errors
    /// What the stream says; InvalidInput when it is too long.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let length = u16::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut frame = Vec::with_capacity(8 + self.bytes.len());
        frame.extend(self.number.to_le_bytes());
        frame.extend(u16::from(self.by_tcp).to_le_bytes());
        frame.extend(length.to_le_bytes());
        frame.extend(&self.bytes);
        stream.write_all(&frame)
    }

    /// # Errors
    /// What the stream says.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let [a, b, c, d, tcp, _, low, high] = header;
        let mut bytes = vec![0; u16::from_le_bytes([low, high]).into()];
        stream.read_exact(&mut bytes)?;
        Ok(Self { number: u32::from_le_bytes([a, b, c, d]), by_tcp: tcp != 0, bytes })
    }
}

/// A message of DNS over TCP, whose length stands before it (RFC 1035 §4.2.2).
///
/// # Errors
/// What the stream says.
pub fn read_from_tcp(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// # Errors
/// What the stream says; InvalidInput when it is too long.
pub fn write_to_tcp(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let message = |length, by_tcp| Message { number: 0x0102_0304, by_tcp, bytes: vec![7; length] };
        let mut wire = Vec::new();
        for (length, by_tcp) in [(0, false), (300, true), (65_535, false)] {
            message(length, by_tcp).write(&mut wire).expect("written");
        }
        let mut rest = &wire[..];
        for (length, by_tcp) in [(0, false), (300, true), (65_535, false)] {
            assert_eq!(Message::read(&mut rest).expect("read"), message(length, by_tcp));
        }
        assert!(Message::read(&mut rest).is_err());
        assert!(message(65_536, false).write(&mut wire).is_err());
    }

    #[test]
    fn tcp_has_the_length_first() {
        let mut wire = Vec::new();
        write_to_tcp(&mut wire, b"abc").expect("written");
        assert_eq!(wire, b"\0\x03abc");
        assert_eq!(read_from_tcp(&mut &wire[..]).expect("read"), b"abc");
        assert!(read_from_tcp(&mut &wire[..4]).is_err());
    }
}
