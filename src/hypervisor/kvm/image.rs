//! Lays kernel, initramfs and what the kernel is told into guest memory: the PVH boot protocol
//! (xen/include/public/arch-x86/hvm/start_info.h).
//!
//! Files go from page cache to guest memory by sendfile(2): no page is zeroed first, none is mapped into this process, and nothing
//! is left of the kernel but where it runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::memory::{BASE_END, COMMAND_LINE, COMMAND_LINE_MAX, KERNEL, MEMORY_MAP, MODULE_LIST, START_INFO};
use super::{Error, memory};
use crate::devices::Memory;

/// E820 type of usable memory.
const RAM: u32 = 1;
/// "xEn3" with the high bit of its E set.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const PAGE: u64 = 0x1000;

/// Guest memory, also as a file, for what is written to it without a mapping. Low memory is the start of the file, so a
/// place's offset in it is its address.
pub struct Target<'a> {
    pub memory: &'a Memory,
    pub file: &'a File,
    pub memory_mib: u32,
}

/// What was loaded and where.
pub struct Image {
    pub entry: GuestAddress,
    initramfs: (u64, u64),
}

impl Target<'_> {
    /// Loads both files; `paths` are for messages.
    pub fn load(&self, kernel: File, initramfs: &File, paths: (&Path, &Path)) -> Result<Image, Error> {
        let image = |path: &Path, reason: String| Error::Image { path: path.to_owned(), reason };
        let mut source = Source { file: kernel, memory: self.file, base: self.base()? };
        let loaded = Elf::load(self.memory, None, &mut source, Some(GuestAddress(KERNEL)))
            .map_err(|error| image(paths.0, error.to_string()))?;
        let KernelLoaderResult {
            pvh_boot_cap: PvhBootCapability::PvhEntryPresent(entry), kernel_end, ..
        } = loaded
        else {
            return Err(image(paths.0, "it has no PVH entry point (CONFIG_PVH)".to_owned()));
        };
        let failed = |error: io::Error| image(paths.1, error.to_string());
        let size = initramfs.metadata().map_err(failed)?.len();
        let end = memory::ranges(self.memory_mib)[0].1;
        let start = end.saturating_sub(size) & !(PAGE - 1);
        if start < kernel_end {
            return Err(Error::NoRoom { memory_mib: self.memory_mib });
        }
        let sent = send(initramfs, self.file, start, size).map_err(failed)?;
        if sent != size {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Image { entry, initramfs: (start, size) })
    }

    /// Tells the kernel what it has: its command line, memory, the initramfs, the ACPI tables at `rsdp`.
    pub fn write_start_info(
        &self,
        image: &Image,
        command_line: &str,
        rsdp: GuestAddress,
    ) -> Result<(), Error> {
        let bad_line = |reason| Error::CommandLine { reason };
        if command_line.len() > COMMAND_LINE_MAX {
            return Err(bad_line("it is longer than 2047 bytes"));
        }
        if command_line.contains('\0') {
            return Err(bad_line("it contains a NUL byte"));
        }
        let line = [command_line.as_bytes(), b"\0"].concat();
        self.memory.write_slice(&line, COMMAND_LINE).map_err(Error::memory)?;

        let ram = |(addr, size)| hvm_memmap_table_entry { addr, size, type_: RAM, reserved: 0 };
        let mut map = vec![ram((0, BASE_END))];
        for (start, len) in memory::ranges(self.memory_mib) {
            let hidden = if start == 0 { KERNEL } else { 0 };
            map.push(ram((start + hidden, len - hidden)));
        }
        let (paddr, size) = image.initramfs;
        let start_info = hvm_start_info {
            magic: START_INFO_MAGIC,
            version: 1,
            nr_modules: 1,
            modlist_paddr: MODULE_LIST.raw_value(),
            cmdline_paddr: COMMAND_LINE.raw_value(),
            rsdp_paddr: rsdp.raw_value(),
            memmap_paddr: MEMORY_MAP.raw_value(),
            memmap_entries: map.len() as u32,
            ..hvm_start_info::default()
        };
        let mut params = BootParams::new(&start_info, START_INFO);
        params.set_sections(&map, MEMORY_MAP);
        params.set_modules(&[hvm_modlist_entry { paddr, size, ..Default::default() }], MODULE_LIST);
        PvhBootConfigurator::write_bootparams(&params, self.memory).map_err(|_| Error::memory(()))
    }

    fn base(&self) -> Result<usize, Error> {
        self.memory.get_host_address(GuestAddress(0)).map(|base| base as usize).map_err(Error::memory)
    }
}

/// The kernel's file, from which the loader "reads" into guest memory.
struct Source<'a> {
    file: File,
    memory: &'a File,
    /// Where low memory is mapped.
    base: usize,
}

impl ReadVolatile for Source<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = buf.ptr_guard().as_ptr() as usize - self.base;
        let sent = send(&self.file, self.memory, offset as u64, buf.len() as u64);
        sent.map(|sent| sent as usize).map_err(VolatileMemoryError::IOError)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Copies up to `size` bytes from the position of `from`; between files, `io::copy` is sendfile(2).
fn send(from: &File, mut to: &File, offset: u64, size: u64) -> io::Result<u64> {
    to.seek(SeekFrom::Start(offset))?;
    io::copy(&mut from.take(size), &mut to)
}
