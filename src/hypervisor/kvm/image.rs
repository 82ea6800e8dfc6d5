//! Lays kernel, initramfs and what the kernel is told into guest memory: the PVH boot protocol
//! (xen/include/public/arch-x86/hvm/start_info.h).
//!
//! Files go from page cache to guest memory by sendfile(2): no page is zeroed first, none is mapped into this process, and nothing
//! is left of the kernel but where it runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
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
    pub fn load(&self, kernel: &File, initramfs: &File, paths: (&Path, &Path)) -> Result<Image, Error> {
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
    file: &'a File,
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
        let sent = send(self.file, self.memory, offset as u64, buf.len() as u64);
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
pub fn send(from: &File, mut to: &File, offset: u64, size: u64) -> io::Result<u64> {
    to.seek(SeekFrom::Start(offset))?;
    io::copy(&mut from.take(size), &mut to)
}

/// Where a kernel's code and constants lie: its executable segment, but for what pads it (Linux frees the padding). It does patch its
/// code. An ELF file that was loaded is sound as far as this reads it.
///
/// # Errors
/// Those of reading.
pub fn code(kernel: &File) -> io::Result<Vec<Range<u64>>> {
    // elf(5), Elf64_Ehdr and Elf64_Phdr.
    const LOAD: u64 = 1;
    const EXECUTE: u64 = 1;
    const WRITE: u64 = 2;
    let number = |at: u64, size: usize| -> io::Result<u64> {
        let mut bytes = [0; 8];
        kernel.read_exact_at(&mut bytes[..size], at)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let (table, entry, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for header in (0..count).map(|index| table.saturating_add(index * entry)) {
        if number(header, 4)? != LOAD || number(header + 4, 4)? & (EXECUTE | WRITE) != EXECUTE {
            continue;
        }
        let (offset, address, size) =
            (number(header + 8, 8)?, number(header + 24, 8)?, number(header + 32, 8)?);
        if address % PAGE != 0 {
            continue;
        }
        let mut page = [0; PAGE as usize];
        // The last page may hold something else behind the segment's end.
        for at in (0..size / PAGE).map(|index| index * PAGE) {
            kernel.read_exact_at(&mut page, offset + at)?;
            if page.iter().all(|byte| *byte == page[0]) {
                continue;
            }
            let start = address + at;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE,
                _ => ranges.push(start..start + PAGE),
            }
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: u64 = 0x20_0000;

    /// A kernel of one page: ELF header, a segment, and the note that names its PVH entry.
    fn kernel(text: &[u8]) -> Vec<u8> {
        fn put(elf: &mut Vec<u8>, width: usize, values: &[u64]) {
            values.iter().for_each(|value| elf.extend(&value.to_le_bytes()[..width]));
        }
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        put(&mut elf, 2, &[2, 62]);
        put(&mut elf, 4, &[1]);
        put(&mut elf, 8, &[TEXT, 64, 0]);
        put(&mut elf, 4, &[0]);
        put(&mut elf, 2, &[64, 56, 2, 0, 0, 0]);
        for (type_, offset, address, size) in [(1, 256, TEXT, text.len() as u64), (4, 200, 0, 20)] {
            put(&mut elf, 4, &[type_, 5]);
            put(&mut elf, 8, &[offset, address, address, size, size + 0x1000, 0x1000]);
        }
        elf.resize(200, 0);
        put(&mut elf, 4, &[4, 4, 18]);
        elf.extend(b"Xen\0");
        put(&mut elf, 4, &[TEXT + 16]);
        elf.resize(256, 0);
        elf.extend(text);
        elf
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).and_then(|()| file.rewind()).expect("written");
        file
    }

    fn load(kernel: &[u8], initramfs: &[u8], memory_mib: u32) -> Result<(Image, Memory), String> {
        let (memory, backing) = memory::allocate(memory_mib, memory_mib).expect("memory");
        let target = Target { memory: &memory, file: &backing, memory_mib };
        let paths = (Path::new("KERNEL"), Path::new("INITRAMFS"));
        let image = target.load(&file(kernel), &file(initramfs), paths).map_err(|error| error.to_string())?;
        target
            .write_start_info(&image, "quiet", GuestAddress(0xe_0000))
            .map_err(|error| error.to_string())?;
        Ok((image, memory))
    }

    #[test]
    fn all_is_where_the_kernel_looks_for_it() {
        let initramfs = [b"cpio".as_slice(), &[7; 5000]].concat();
        let (image, memory) = load(&kernel(b"code and data"), &initramfs, 64).expect("it is loaded");
        assert_eq!(image.entry, GuestAddress(TEXT + 16));
        let read = |address, len| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
            bytes
        };
        assert_eq!(read(TEXT, 13), b"code and data");
        assert_eq!(read(COMMAND_LINE.raw_value(), 6), b"quiet\0");
        let info: hvm_start_info = memory.read_obj(START_INFO).expect("in memory");
        let (modules, entries) = (info.nr_modules, info.memmap_entries);
        assert_eq!((info.magic, modules, entries, info.rsdp_paddr), (START_INFO_MAGIC, 1, 2, 0xe_0000));
        let module: hvm_modlist_entry = memory.read_obj(MODULE_LIST).expect("in memory");
        assert_eq!(module.paddr % PAGE, 0);
        assert_eq!(read(module.paddr, module.size as usize), initramfs);
    }

    #[test]
    fn damaged_files_are_named() {
        let whole = kernel(&[1; 100]);
        let mut far = whole.clone();
        far[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut without_note = whole.clone();
        without_note[208] = 19;
        for damaged in [&b""[..], b"#!/bin/sh\n", &whole[..100], &whole[..300], &far, &without_note] {
            let error = load(damaged, b"cpio", 64).err().expect("no kernel");
            assert!(error.starts_with("cannot load KERNEL: "), "{error}");
        }
    }

    #[test]
    fn memory_must_hold_both() {
        let error = load(&kernel(b"code"), &vec![0; 31 << 20], 32).err().expect("no room");
        assert_eq!(error, "32 MiB of memory are too few for kernel and initramfs");
        let error = load(&kernel(b"code"), &vec![0; 33 << 20], 32).err().expect("no room");
        assert_eq!(error, "32 MiB of memory are too few for kernel and initramfs");
    }

    /// Two pages of code, of which the second is padding; data, which is written to.
    #[test]
    fn padding_and_data_are_not_code() {
        let page = PAGE as usize;
        let mut elf = vec![0; 5 * page];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        for (header, flags, offset, address, size) in
            [(64, 5u32, 1, 0x20_0000u64, 3), (120, 7, 4, 0x30_0000, 1)]
        {
            put(header, &1u32.to_le_bytes());
            put(header + 4, &flags.to_le_bytes());
            put(header + 8, &(offset * PAGE).to_le_bytes());
            put(header + 24, &address.to_le_bytes());
            put(header + 32, &(size * PAGE + 8).to_le_bytes());
        }
        put(page, b"code");
        put(2 * page, &[0xcc; PAGE as usize]);
        put(3 * page, b"constants");
        put(4 * page, b"data");
        let ranges = code(&file(&elf)).expect("it is read");
        assert_eq!(ranges, [0x20_0000..0x20_1000, 0x20_2000..0x20_3000]);
    }
}
