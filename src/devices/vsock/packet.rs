//! Packets: the 44-byte header, and the guest's buffers that carry header and data.
//!
//! A packet's bytes lie in a descriptor chain that the guest laid out as it liked: Linux before 6.2 uses one
//! descriptor for the header and one for the data, since then one for both, and one more for each fragment
//! where the sender's pages are not contiguous (MSG_ZEROCOPY, large sends of newer kernels). So nothing here assumes a layout: a chain
//! is a sequence of bytes ([`Buffers`]), the first 44 of which are the header. That, and headers read exactly once, is why the
//! `virtio-vsock` crate, which knows one or two descriptors only, is not used.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::{Bitmap, BitmapSlice, MS};
use vm_memory::{GuestMemory, VolatileSlice};

/// The most data in one packet, either way (Linux: VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
pub const MAX_DATA: usize = 64 * 1024;
/// More pieces than any driver makes of 64 KiB and a header; a chain that has more is hostile.
const MAX_SEGMENTS: usize = 64;

/// `type` of a stream; there is no other without VIRTIO_VSOCK_F_SEQPACKET.
pub const TYPE_STREAM: u16 = 1;

/// `op`, virtio 1.2 §5.10.6.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of SHUTDOWN: the sender receives no more, sends no more; virtio 1.2 §5.10.6.5.
pub mod shutdown {
    pub const RCV: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RCV | SEND;
}

/// struct virtio_vsock_hdr, virtio 1.2 §5.10.6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// Length on the wire.
    pub const SIZE: usize = 44;

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// The wire form.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Which descriptors of a chain are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device reads them: a packet from the guest.
    FromGuest,
    /// The device writes them: room for a packet to the guest.
    ToGuest,
}

/// The bytes of one descriptor chain, wherever they lie in guest memory. Checked to lie there; the guest may
/// change the content at any time.
pub struct Buffers<'a, M: GuestMemory + 'a> {
    segments: Vec<VolatileSlice<'a, MS<'a, M>>>,
    len: usize,
}

impl<'a, M: GuestMemory> Buffers<'a, M> {
    /// Gathers the chain's descriptors of one direction, up to a header and [`MAX_DATA`]. `None` when the chain
    /// leaves guest memory, is in absurdly many pieces, or has no room for a header.
    pub fn gather(mem: &'a M, chain: DescriptorChain<&M>, direction: Direction) -> Option<Self> {
        let mut segments = Vec::new();
        let mut room = Header::SIZE + MAX_DATA;
        for descriptor in chain.filter(|d| d.is_write_only() == (direction == Direction::ToGuest)) {
            for slice in mem.get_slices(descriptor.addr(), (descriptor.len() as usize).min(room)) {
                let slice = slice.ok()?;
                room -= slice.len();
                segments.push(slice);
            }
            if segments.len() > MAX_SEGMENTS {
                return None;
            }
        }
        let len = Header::SIZE + MAX_DATA - room;
        (len >= Header::SIZE).then_some(Self { segments, len })
    }

    /// Room for data, or data, after the header.
    pub fn data_len(&self) -> usize {
        self.len - Header::SIZE
    }

    /// Reads the header: once, so that what was checked is what is used.
    pub fn header(&self) -> Header {
        let mut bytes = [0; Header::SIZE];
        let mut at = 0;
        for slice in self.within(0, Header::SIZE) {
            at += slice.copy_to(&mut bytes[at..]);
        }
        Header::from_bytes(&bytes)
    }

    /// Writes the header.
    pub fn set_header(&self, header: Header) {
        let bytes = header.to_bytes();
        let mut at = 0;
        for slice in self.within(0, Header::SIZE) {
            slice.copy_from(&bytes[at..at + slice.len()]);
            at += slice.len();
        }
    }

    /// Appends the `len` data bytes from `start` on to `to`.
    pub fn append_data(&self, start: usize, len: usize, to: &mut Vec<u8>) {
        for slice in self.within(Header::SIZE + start, len) {
            let end = to.len();
            to.resize(end + slice.len(), 0);
            slice.copy_to(&mut to[end..]);
        }
    }

    /// Sends up to `len` data bytes from `start` on to a stream socket, without blocking.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn send_data(&self, start: usize, len: usize, to: impl AsFd) -> io::Result<usize> {
        let mut vector: Vec<libc::iovec> =
            self.within(Header::SIZE + start, len).map(|slice| iovec(&slice)).collect();
        // SAFETY: msghdr is plain data for which all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vector.as_mut_ptr();
        message.msg_iovlen = vector.len();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: each iovec covers a VolatileSlice that self borrows from mapped guest memory; the kernel only reads it. Races
        // with the guest change the bytes that are sent, nothing else.
        let sent = unsafe { libc::sendmsg(to.as_fd().as_raw_fd(), &message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The slices of the byte range, which is cut at the chain's end.
    fn within(&self, start: usize, len: usize) -> impl Iterator<Item = VolatileSlice<'a, MS<'a, M>>> {
        let (mut skip, mut left) = (start, len);
        self.segments.iter().filter_map(move |slice| {
            let from = skip.min(slice.len());
            let count = (slice.len() - from).min(left);
            skip -= from;
            left -= count;
            (count > 0).then(|| slice.subslice(from, count).expect("a range within the slice"))
        })
    }
}

/// Reads up to `limit` bytes of a stream socket into the data parts of several chains, one after the other, in one system call.
///
/// # Errors
/// Those of readv(2); `WouldBlock` when there is nothing to read.
pub fn receive_data<M: GuestMemory>(
    from: impl AsFd,
    chains: &[Buffers<'_, M>],
    limit: usize,
) -> io::Result<usize> {
    let mut left = limit;
    let mut vector: Vec<libc::iovec> = Vec::with_capacity(chains.len());
    for chain in chains {
        for slice in chain.within(Header::SIZE, left.min(chain.data_len())) {
            left -= slice.len();
            vector.push(iovec(&slice));
        }
    }
    vector.truncate(libc::UIO_MAXIOV as usize);
    // SAFETY: each iovec covers a VolatileSlice of mapped guest memory that `chains` borrows, and no Rust reference to
    // that memory exists anywhere.
    let read = unsafe { libc::readv(from.as_fd().as_raw_fd(), vector.as_ptr(), vector.len() as libc::c_int) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let mut left = read;
    for chain in chains {
        for slice in chain.within(Header::SIZE, left.min(chain.data_len())) {
            left -= slice.len();
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
    Ok(read)
}

fn iovec<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}
