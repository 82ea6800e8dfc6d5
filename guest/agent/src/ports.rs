//! Ports that the host forwards: it connects where a container listens, on the pod's loopback.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use crate::stdio;

/// Connects, IPv4 first, and moves bytes between the connection and `stream` from then on.
///
/// # Errors
/// Nobody listens there, or no thread is to be had.
pub fn forward(port: u16, stream: OwnedFd) -> io::Result<()> {
    let loopbacks = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()];
    // To one of both it is refused, or succeeds, at once.
    let connection = TcpStream::connect(&loopbacks[..])?;
    connection.set_nodelay(true)?;
    stdio::move_both_ways(connection.into(), stream)
}
