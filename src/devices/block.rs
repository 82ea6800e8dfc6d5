//! virtio-blk, virtio 1.2 §5.2, before a descriptor of a block device of the host.
//!
//! A thread of the device's own takes one request after the other from the queue, which bounds them, and moves the data between device
//! and guest memory without a copy. A guest that waits for its disk so holds nothing else up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemory};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivationContext, Error, Memory, VirtioDevice, Watch};

const QUEUE_SIZE: u16 = 128;
/// §5.2.6: type, reserved, sector.
const HEADER_BYTES: usize = 16;
const SECTOR: u64 = 512;
/// §5.2.6.1: of the serial number.
const SERIAL_BYTES: usize = 20;
/// The thread has ended, and why.
const FAILED: u32 = 0;
const STACK: usize = 64 * 1024;

/// A block device of the host.
pub struct Disk {
    file: File,
    bytes: u64,
    /// Logical, a power of two from 512 on.
    block_size: u32,
    readonly: bool,
    /// Padded with zeros.
    serial: [u8; SERIAL_BYTES],
}

impl Disk {
    /// Of a serial number what is too long is cut off, and of the size what is no whole sector.
    pub fn new(file: File, bytes: u64, block_size: u32, readonly: bool, serial: &str) -> Self {
        let mut padded = [0; SERIAL_BYTES];
        let length = serial.len().min(SERIAL_BYTES);
        padded[..length].copy_from_slice(&serial.as_bytes()[..length]);
        Self { file, bytes: bytes / SECTOR * SECTOR, block_size, readonly, serial: padded }
    }
}

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; 24],
    worker: Option<Worker>,
}

impl Block {
    pub fn new(disk: Disk) -> Self {
        let mut config = [0; 24];
        config[..8].copy_from_slice(&(disk.bytes / SECTOR).to_le_bytes());
        // A descriptor each for header and status.
        config[12..16].copy_from_slice(&u32::from(QUEUE_SIZE - 2).to_le_bytes());
        config[20..].copy_from_slice(&disk.block_size.to_le_bytes());
        Self { disk: Arc::new(disk), config, worker: None }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let readonly = if self.disk.readonly { 1 << VIRTIO_BLK_F_RO } else { 0 };
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | readonly
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        self.worker = Some(Worker::start(Arc::clone(&self.disk), context)?);
        Ok(())
    }

    fn process(&mut self, _source: u32) -> Result<(), Error> {
        self.worker.as_mut().and_then(Worker::failure).map_or(Ok(()), Err)
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// The thread. Dropped, it has ended, and holds no buffer of the guest's.
struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _watch: Watch,
}

struct Shared {
    stop: AtomicBool,
    /// Readable when it is time to stop.
    wake: EventFd,
    /// Readable when the thread has failed.
    failed: EventFd,
    failure: Mutex<Option<Error>>,
}

impl Worker {
    fn start(disk: Arc<Disk>, context: ActivationContext) -> Result<Self, Error> {
        let eventfd = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("make an eventfd"));
        let (wake, failed) = (eventfd()?, eventfd()?);
        let shared = Shared { stop: AtomicBool::new(false), wake, failed, failure: Mutex::default() };
        let shared = Arc::new(shared);
        let watch = context.events.watch(borrow(&shared.failed), FAILED)?;
        let own = Arc::clone(&shared);
        let work = move || {
            if let Err(error) = work(&disk, context, &own) {
                *own.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                let _ = own.failed.write(1);
            }
        };
        let thread = thread::Builder::new().name("block".to_owned()).stack_size(STACK).spawn(work);
        let thread = thread.map_err(Error::host("start a block device's thread"))?;
        Ok(Self { shared, thread: Some(thread), _watch: watch })
    }

    fn failure(&mut self) -> Option<Error> {
        let _ = self.shared.failed.read();
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

fn borrow(eventfd: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the eventfd keeps its descriptor open at least as long as it is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

fn work(disk: &Disk, mut context: ActivationContext, shared: &Shared) -> Result<(), Error> {
    let memory = &context.memory;
    let active = &mut context.queues[0];
    while !shared.stop.load(Ordering::Relaxed) {
        active.drain_kick();
        while !shared.stop.load(Ordering::Relaxed)
            && let Some(chain) = active.queue.iter(memory)?.next()
        {
            let head = chain.head_index();
            let written = disk.serve(chain, memory);
            active.queue.add_used(memory, head, written)?;
            if active.queue.needs_notification(memory)? {
                active.interrupt.trigger()?;
            }
        }
        let mut fds = [active.kick_fd(), borrow(&shared.wake)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::host("wait for requests")(errno.into())),
        }
    }
    Ok(())
}

/// What a request asks for.
struct Request {
    kind: u32,
    sector: u64,
    data: Vec<Descriptor>,
    status: Descriptor,
}

impl Request {
    /// `None` for one that cannot even be refused.
    fn read(chain: DescriptorChain<&Memory>, memory: &Memory) -> Option<Self> {
        let mut data: Vec<Descriptor> = chain.collect();
        let status = data.pop().filter(|status| status.is_write_only() && status.len() > 0)?;
        let header = (!data.is_empty()).then(|| data.remove(0))?;
        let mut bytes = [0; HEADER_BYTES];
        if header.is_write_only() || (header.len() as usize) < HEADER_BYTES {
            return None;
        }
        memory.read_slice(&mut bytes, header.addr()).ok()?;
        let kind = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        Some(Self { kind, sector, data, status })
    }
}

impl Disk {
    /// Does what a chain asks for: how many bytes were written into it.
    fn serve(&self, chain: DescriptorChain<&Memory>, memory: &Memory) -> u32 {
        let Some(request) = Request::read(chain, memory) else { return 0 };
        let (status, written) = match self.execute(&request, memory) {
            Ok(Some(written)) => (VIRTIO_BLK_S_OK, written),
            Ok(None) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(_) => (VIRTIO_BLK_S_IOERR, 0),
        };
        // Its last byte, §5.2.6.
        let place = request.status.addr().0.checked_add(u64::from(request.status.len()) - 1);
        let told =
            place.is_some_and(|place| memory.write_obj(status as u8, vm_memory::GuestAddress(place)).is_ok());
        if told { written.saturating_add(1) } else { 0 }
    }

    /// Bytes written into the guest's buffers; `None` for a request of an unknown kind.
    fn execute(&self, request: &Request, memory: &Memory) -> io::Result<Option<u32>> {
        match request.kind {
            VIRTIO_BLK_T_IN => self.move_data(request, memory, true).map(Some),
            VIRTIO_BLK_T_OUT if self.readonly => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            VIRTIO_BLK_T_OUT => self.move_data(request, memory, false).map(|_| Some(0)),
            VIRTIO_BLK_T_FLUSH if self.readonly => Ok(Some(0)),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data().map(|()| Some(0)),
            VIRTIO_BLK_T_GET_ID => {
                let place = request.data.first().filter(|place| place.is_write_only());
                let place = place.ok_or(io::ErrorKind::InvalidInput)?;
                let serial = &self.serial[..SERIAL_BYTES.min(place.len() as usize)];
                memory.write_slice(serial, place.addr()).map_err(io::Error::other)?;
                Ok(Some(serial.len() as u32))
            }
            _ => Ok(None),
        }
    }

    /// From the device into the guest's buffers (`reads`), or the other way. All of it, or an error.
    fn move_data(&self, request: &Request, memory: &Memory, reads: bool) -> io::Result<u32> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
        let length: u64 = request.data.iter().map(|part| u64::from(part.len())).sum();
        let start = request.sector.checked_mul(SECTOR).ok_or_else(wrong)?;
        let end = start.checked_add(length).ok_or_else(wrong)?;
        let fits = length.is_multiple_of(SECTOR) && end <= self.bytes && u32::try_from(length).is_ok();
        if !fits || request.data.iter().any(|part| part.is_write_only() != reads) {
            return Err(wrong());
        }
        let mut offset = start;
        for part in &request.data {
            for slice in memory.get_slices(part.addr(), part.len() as usize) {
                let slice = slice.map_err(io::Error::other)?;
                let mut done = 0;
                while done < slice.len() {
                    let rest = slice.offset(done).map_err(io::Error::other)?;
                    done += self.move_slice(&rest, offset + done as u64, reads)?;
                }
                offset += slice.len() as u64;
            }
        }
        Ok(length as u32)
    }

    fn move_slice(
        &self,
        slice: &vm_memory::VolatileSlice<'_>,
        offset: u64,
        reads: bool,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let guard = slice.ptr_guard_mut();
        let (buffer, length, fd) = (guard.as_ptr().cast::<libc::c_void>(), slice.len(), self.file.as_fd());
        // SAFETY: the buffer is `length` bytes of guest memory, whose mapping `slice` borrows; the guest may change them at any time,
        // which is no matter to the kernel, and nothing in this process has a reference to them.
        let moved = unsafe {
            match reads {
                true => libc::pread(fd.as_raw_fd(), buffer, length, offset),
                false => libc::pwrite(fd.as_raw_fd(), buffer, length, offset),
            }
        };
        match moved {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            1.. => Ok(moved as usize),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {
                    self.move_slice(slice, offset as u64, reads)
                }
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::devices::driver::Driver;

    const HEADER: u64 = 0x8_0000;
    const DATA: u64 = 0x8_1000;
    const STATUS: u64 = 0x8_4000;

    fn disk(readonly: bool) -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[5; 8192], 0).unwrap();
        Disk::new(file, 8192 + 100, 512, readonly, "rt0")
    }

    /// One request: its status, how many bytes were written, and whether anything was.
    fn ask(disk: &Disk, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32, Driver) {
        let mut driver = Driver::new();
        driver.fill(DATA, 0x2000, 9);
        driver.fill(STATUS, 1, 0xff);
        let header = [kind.to_le_bytes(), [0; 4]].concat();
        let header = [header, sector.to_le_bytes().to_vec()].concat();
        driver.memory.write_slice(&header, vm_memory::GuestAddress(HEADER)).unwrap();
        let chain = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
        driver.offer(&chain);
        let mut context = driver.context(1, 0);
        let chain = context.queues[0].queue.iter(&driver.memory).unwrap().next().unwrap();
        let written = disk.serve(chain, &driver.memory);
        (driver.byte(STATUS), written, driver)
    }

    #[test]
    fn sectors_are_read_and_written() {
        let disk = disk(false);
        let (status, written, driver) =
            ask(&disk, VIRTIO_BLK_T_IN, 2, &[(DATA, 512, true), (DATA + 1024, 1024, true)]);
        assert_eq!((status, written), (0, 1537));
        assert_eq!((driver.byte(DATA), driver.byte(DATA + 512), driver.byte(DATA + 2047)), (5, 9, 5));
        let (status, written, _) = ask(&disk, VIRTIO_BLK_T_OUT, 15, &[(DATA, 512, false)]);
        assert_eq!((status, written), (0, 1));
        let mut last = [0; 513];
        disk.file.read_exact_at(&mut last, 8192 - 513).unwrap();
        assert_eq!((last[0], last[1], last[512]), (5, 9, 9));
        assert_eq!(ask(&disk, VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0);
        let (status, written, driver) = ask(&disk, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]);
        assert_eq!((status, written, driver.byte(DATA + 2), driver.byte(DATA + 3)), (0, 21, b'0', 0));
    }

    #[test]
    fn what_is_wrong_is_an_error_of_the_request() {
        let disk = disk(false);
        for (kind, sector, data) in [
            (VIRTIO_BLK_T_IN, 16, &[(DATA, 512, true)][..]),
            (VIRTIO_BLK_T_IN, 15, &[(DATA, 1024, true)]),
            (VIRTIO_BLK_T_IN, u64::MAX, &[(DATA, 512, true)]),
            (VIRTIO_BLK_T_IN, u64::MAX / 512, &[(DATA, 512, true)]),
            (VIRTIO_BLK_T_IN, 0, &[(DATA, 511, true)]),
            (VIRTIO_BLK_T_IN, 0, &[(DATA, 512, false)]),
            (VIRTIO_BLK_T_IN, 0, &[(1 << 40, 512, true)]),
            (VIRTIO_BLK_T_IN, 0, &[(0xf_ff00, 512, true)]),
            (VIRTIO_BLK_T_IN, 0, &[(u64::MAX - 10, 512, true)]),
            (VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, true)]),
            (VIRTIO_BLK_T_OUT, 16, &[(DATA, 512, false)]),
            (VIRTIO_BLK_T_GET_ID, 0, &[]),
        ] {
            let (status, written, _) = ask(&disk, kind, sector, data);
            assert_eq!((u32::from(status), written), (VIRTIO_BLK_S_IOERR, 1), "{kind} {sector} {data:x?}");
        }
        assert_eq!(u32::from(ask(&disk, 11, 0, &[(DATA, 16, false)]).0), VIRTIO_BLK_S_UNSUPP);
        let mut unchanged = [0; 8192];
        disk.file.read_exact_at(&mut unchanged, 0).unwrap();
        assert!(unchanged.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn nothing_is_written_to_a_read_only_disk() {
        let disk = disk(true);
        assert_eq!(u32::from(ask(&disk, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]).0), VIRTIO_BLK_S_IOERR);
        assert_eq!(ask(&disk, VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0);
        assert_ne!(Block::new(disk).features() & 1 << VIRTIO_BLK_F_RO, 0);
    }

    #[test]
    fn a_thread_serves_the_queue_until_the_reset() {
        let mut driver = Driver::new();
        let mut block = Block::new(disk(false));
        block.activate(driver.context(1, 0)).unwrap();
        driver.fill(HEADER, 16, 0);
        driver.offer(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        // A chain that is no request.
        driver.offer(&[(HEADER, 4, false)]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while driver.used().len() < 2 {
            assert!(Instant::now() < deadline, "no answer");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(driver.used(), [(0, 513), (3, 0)]);
        block.process(FAILED).unwrap();
        block.reset();
        driver.offer(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        assert_eq!(driver.used().len(), 2);
    }
}
