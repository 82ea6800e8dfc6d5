//! Traffic between a guest and a peer. Both ends are this program: in the guest as its own test `network::traffic::serves`, started in the container as
//! [`GUEST`]; at the peer's as [`Client`], or as a server on a thread.
//!
//! A connection starts with a letter for what it is to do, and a number of 8 bytes:
//!
//! | letter | number | then |
//! |---|---|---|
//! | `e` | | everything comes back |
//! | `s` | bytes | so many are sent to the server, which answers their sum |
//! | `r` | bytes | the server sends so many |
//! | `S`, `R` | bytes | the same, of zeros that nobody looks at: to be measured |
//! | `c` | | a line with an address: the server calls the one there with `e` and by UDP, and answers `ok` |

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::netns::{Netns, enter};
use crate::shell::{Bundle, patience};

const PORT: u16 = 7000;
const DATAGRAMS: u16 = 7001;
const CHUNK: usize = 64 << 10;
/// The server in a container; [`lay`] puts it there.
pub const GUEST: [&str; 5] = ["/traffic", "--exact", "network::traffic::serves", "--ignored", "--nocapture"];

/// Puts this program into a bundle.
pub fn lay(bundle: &Bundle) {
    let (own, place) = (std::env::current_exe().expect("a path"), bundle.rootfs("traffic"));
    fs::hard_link(&own, &place).or_else(|_| fs::copy(&own, &place).map(drop)).expect("the program is laid");
}

#[test]
#[ignore = "the guest's half of other tests"]
fn serves() {
    let ports = Ports::open();
    // Behind what the harness has written in front of it.
    println!("\nserving");
    serve(ports, &AtomicBool::new(false));
}

struct Ports {
    connections: TcpListener,
    datagrams: UdpSocket,
}

impl Ports {
    fn open() -> Self {
        let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        Self {
            connections: TcpListener::bind((any, PORT)).expect("a port"),
            datagrams: UdpSocket::bind((any, DATAGRAMS)).expect("a port"),
        }
    }
}

/// A server in a namespace; dropped, it ends.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    namespace: Arc<File>,
}

pub fn serve_in(netns: &Netns) -> Server {
    let namespace = Arc::new(File::open(netns.path()).expect("the namespace is there"));
    let stop = Arc::new(AtomicBool::new(false));
    let ports = netns.within(Ports::open);
    let until = Arc::clone(&stop);
    let inside = Arc::clone(&namespace);
    let thread = thread::spawn(move || {
        // It calls others, too.
        enter(&inside);
        serve(ports, &until);
    });
    Server { stop, thread: Some(thread), namespace }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // It looks when somebody calls.
        thread::scope(|scope| {
            scope.spawn(|| {
                enter(&self.namespace);
                drop(TcpStream::connect(("127.0.0.1", PORT)));
            });
        });
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(Ports { connections, datagrams }: Ports, stop: &AtomicBool) {
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, sender)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], sender);
        }
    });
    for connection in connections.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(connection) = connection else { continue };
        let handler = thread::Builder::new().stack_size(128 << 10);
        let _ = handler.spawn(move || drop(answer(connection)));
    }
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 9];
    connection.read_exact(&mut request)?;
    let amount = u64::from_le_bytes(request[1..].try_into().expect("eight bytes"));
    match request[0] {
        b'e' => {
            let mut buffer = [0; 16 << 10];
            loop {
                let count = connection.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                connection.write_all(&buffer[..count])?;
            }
        }
        b's' => {
            let sum = take(&mut connection, amount)?;
            connection.write_all(&sum.to_le_bytes())
        }
        b'r' => give(&mut connection, amount).map(drop),
        b'S' => {
            drain(&mut connection, amount)?;
            connection.write_all(&amount.to_le_bytes())
        }
        b'R' => flood(&mut connection, amount),
        b'c' => {
            let mut address = String::new();
            BufReader::new(&connection).read_line(&mut address)?;
            let back = Client::new(address.trim());
            back.echo(b"from the server");
            back.datagrams(20);
            connection.write_all(b"ok")
        }
        _ => Ok(()),
    }
}

/// Bytes of a pattern in which every chunk differs; gives their sum.
fn give(connection: &mut impl Write, mut amount: u64) -> std::io::Result<u64> {
    let (mut sum, mut seed) = (0_u64, 1_u64);
    let mut chunk = vec![0_u8; CHUNK];
    while amount > 0 {
        for word in chunk.chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&seed.to_le_bytes());
        }
        let count = amount.min(CHUNK as u64) as usize;
        sum = add(sum, &chunk[..count]);
        connection.write_all(&chunk[..count])?;
        amount -= count as u64;
    }
    Ok(sum)
}

fn take(connection: &mut TcpStream, mut amount: u64) -> std::io::Result<u64> {
    let mut sum = 0;
    let mut chunk = vec![0_u8; CHUNK];
    while amount > 0 {
        let count = amount.min(CHUNK as u64) as usize;
        connection.read_exact(&mut chunk[..count])?;
        sum = add(sum, &chunk[..count]);
        amount -= count as u64;
    }
    Ok(sum)
}

/// Many bytes, with as little of this program's own work as can be: it is not optimised.
fn flood(connection: &mut TcpStream, amount: u64) -> std::io::Result<()> {
    let chunk = vec![0_u8; 4 * CHUNK];
    let mut left = amount;
    while left > 0 {
        let count = left.min(chunk.len() as u64);
        connection.write_all(&chunk[..count as usize])?;
        left -= count;
    }
    Ok(())
}

fn drain(connection: &mut TcpStream, amount: u64) -> std::io::Result<()> {
    let mut chunk = vec![0_u8; 4 * CHUNK];
    let mut left = amount;
    while left > 0 {
        match connection.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => left = left.saturating_sub(count as u64),
        }
    }
    Ok(())
}

/// Depends on the order, too.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(sum, |sum, word| {
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        sum.rotate_left(1).wrapping_add(u64::from_le_bytes(whole))
    })
}

/// Calls a server, from the network namespace of the calling thread.
pub struct Client {
    server: IpAddr,
}

impl Client {
    pub fn new(server: &str) -> Self {
        Self { server: server.parse().expect("an address") }
    }

    fn call(&self, letter: u8, amount: u64) -> TcpStream {
        let address = SocketAddr::new(self.server, PORT);
        let mut connection = TcpStream::connect_timeout(&address, patience(20))
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        connection.set_read_timeout(Some(patience(60))).expect("a time limit");
        connection.set_write_timeout(Some(patience(60))).expect("a time limit");
        connection.set_nodelay(true).expect("no delay");
        let request = [&[letter][..], &amount.to_le_bytes()].concat();
        connection.write_all(&request).expect("a request is sent");
        connection
    }

    pub fn echo(&self, text: &[u8]) {
        let mut connection = self.call(b'e', 0);
        connection.write_all(text).expect("sent");
        let mut back = vec![0; text.len()];
        connection.read_exact(&mut back).expect("an echo");
        assert_eq!(back, text);
    }

    /// So many round trips on one connection.
    pub fn round_trips(&self, count: usize) {
        let mut connection = self.call(b'e', 0);
        let mut byte = [7];
        for _ in 0..count {
            connection.write_all(&byte).expect("sent");
            connection.read_exact(&mut byte).expect("an echo");
        }
    }

    /// UDP, of several sizes, some of which take fragments.
    pub fn datagrams(&self, count: usize) {
        let any = if self.server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time limit");
        socket.connect((self.server, DATAGRAMS)).expect("an address");
        for number in 0..count {
            let datagram: Vec<u8> = (0..1 + number * 97).map(|byte| (byte + number) as u8).collect();
            let mut back = vec![0; 65_536];
            // UDP may lose what it likes; a network that works does not lose all.
            let came = (0..20).any(|_| {
                socket.send(&datagram).expect("sent");
                socket.recv(&mut back).is_ok_and(|length| back[..length] == datagram[..])
            });
            assert!(came, "a datagram of {} bytes", datagram.len());
        }
    }

    /// The server gets so many bytes, whole and in order.
    pub fn sends(&self, amount: u64) {
        let mut connection = self.call(b's', amount);
        let sum = give(&mut connection, amount).expect("all is sent");
        let mut answer = [0; 8];
        connection.read_exact(&mut answer).expect("an answer");
        assert_eq!(u64::from_le_bytes(answer), sum, "of {amount} bytes");
    }

    /// The server sends so many bytes, and they come whole and in order.
    pub fn receives(&self, amount: u64) {
        let mut connection = self.call(b'r', amount);
        let sum = take(&mut connection, amount).expect("all comes");
        assert_eq!(connection.read(&mut [0]).expect("the end"), 0);
        let expected = give(&mut std::io::sink(), amount).expect("a sink takes all");
        assert_eq!(sum, expected, "of {amount} bytes");
    }

    /// As [`Client::sends`], to be measured.
    pub fn floods(&self, amount: u64) {
        let mut connection = self.call(b'S', amount);
        flood(&mut connection, amount).expect("all is sent");
        connection.read_exact(&mut [0; 8]).expect("an answer");
    }

    /// As [`Client::receives`], to be measured.
    pub fn drains(&self, amount: u64) {
        let mut connection = self.call(b'R', amount);
        drain(&mut connection, amount).expect("all comes");
    }

    pub fn both_at_once(&self, amount: u64) {
        // A thread starts in the network namespace of the one that starts it.
        thread::scope(|scope| {
            scope.spawn(|| self.receives(amount));
            self.sends(amount);
        });
    }

    /// The server calls the one at `address`.
    pub fn asks_to_call(&self, address: &str) {
        let mut connection = self.call(b'c', 0);
        connection.write_all(format!("{address}\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "ok");
    }

    /// Opens so many connections, uses all while all are open, and closes them.
    pub fn holds_connections(&self, count: usize) {
        let mut connections: Vec<TcpStream> = (0..count).map(|_| self.call(b'e', 0)).collect();
        for (number, connection) in connections.iter_mut().enumerate() {
            connection.write_all(&number.to_le_bytes()).expect("sent");
        }
        for (number, connection) in connections.iter_mut().enumerate() {
            let mut back = [0; 8];
            connection.read_exact(&mut back).unwrap_or_else(|error| panic!("connection {number}: {error}"));
            assert_eq!(usize::from_le_bytes(back), number);
        }
        for connection in &connections {
            connection.shutdown(Shutdown::Both).expect("closed");
        }
    }
}
