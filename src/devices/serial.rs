//! The serial port of a PC, output only: where a guest's kernel tells of its panic, and its whole console when asked for.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

/// I/O ports of COM1.
pub const PORTS: std::ops::Range<u16> = 0x3f8..0x400;
/// Its interrupt line.
pub const GSI: u32 = 4;

/// A line as long as this is passed on in parts.
const LINE: usize = 512;

/// COM1.
pub struct Serial(Uart<Line, NoEvents, Lines<io::Stdout>>);

impl Serial {
    /// Writes to standard output. `interrupt` only matters to user space in the guest, since the kernel polls.
    pub fn new(interrupt: Option<EventFd>) -> Self {
        Self(Uart::new(Line(interrupt), Lines { out: io::stdout(), line: Vec::with_capacity(LINE) }))
    }

    pub fn read(&mut self, port: u16) -> u8 {
        self.0.read((port - PORTS.start) as u8)
    }

    /// Nothing of what may fail concerns the guest.
    pub fn write(&mut self, port: u16, value: u8) {
        let _ = self.0.write((port - PORTS.start) as u8, value);
    }

    /// Passes on a line without an end.
    pub fn flush(&mut self) {
        self.0.writer_mut().pass_on();
    }
}

struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |interrupt| interrupt.write(1))
    }
}

/// Gathers bytes up to a line: the port flushes after each.
struct Lines<W: Write> {
    out: W,
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    fn pass_on(&mut self) {
        // A console that nobody reads any more is no reason to stop a guest.
        let _ = self.out.write_all(&self.line).and_then(|()| self.out.flush());
        self.line.clear();
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.line.len() >= LINE {
            self.pass_on();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
