//! Guest memory and the guest's physical address space.
//!
//! ```text
//!   0            boot structures (below 640 KiB), ACPI tables (from 0xe_0000), the kernel (where it was linked to)
//!   ...3 GiB     low memory; the initramfs lies at its end
//!   3...4 GiB    no memory but configuration spaces, which are read-only: the devices' registers, I/O APIC, local APICs
//!   4 GiB...     high memory
//!   above        the region in which memory can be plugged later
//! ```
//!
//! All of it that is there at the start is one memfd, mapped shared, since the file server works in it, too; what can come later
//! is another.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::super::MEMORY_BLOCK_MIB;
use super::Error;
use crate::devices::Memory;
use crate::devices::pci;
use crate::devices::pci::config_space::{ConfigSpaces, MAX_DEVICES};

/// The virtual machine's information for the kernel, as PVH calls it.
pub const START_INFO: GuestAddress = GuestAddress(0x6000);
pub const MODULE_LIST: GuestAddress = GuestAddress(0x6040);
pub const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// The kernel copies 2 KiB at most.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
pub const COMMAND_LINE_MAX: usize = 2047;
/// End of what a PC has below its video memory and firmware.
pub const BASE_END: u64 = 0xa_0000;
/// To 1 MiB; not memory as far as the kernel is told.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
pub const ACPI_MAX: u64 = KERNEL - 0xe_0000;
/// No kernel starts below.
pub const KERNEL: u64 = 0x10_0000;

/// First address without memory, and the first with memory again.
pub const GAP: u64 = 3 << 30;
pub const GAP_END: u64 = 4 << 30;

/// Where devices have their registers: what firmware gives each, by its number, and where else the guest may lay them.
pub const BARS: Range<u64> = GAP..CONFIG_SPACES;
/// Those of all devices of the bus.
pub const CONFIG_SPACES: u64 = 0xd000_0000;
pub const CONFIG_SPACES_SIZE: u32 = (MAX_DEVICES as u64 * pci::config_space::SIZE) as u32;
pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors.
pub const TSS: usize = 0xfffb_d000;

/// Device number `index`'s registers, as firmware lays them.
pub const fn bar(index: usize) -> u32 {
    (BARS.start + index as u64 * pci::BAR_SIZE) as u32
}

/// Where RAM is in the guest: start and length, ascending.
pub fn ranges(memory_mib: u32) -> Vec<(u64, u64)> {
    let bytes = u64::from(memory_mib) << 20;
    let low = bytes.min(GAP);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((GAP_END, bytes - low));
    }
    ranges
}

/// `range` without `others`, which are ascending.
pub fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut start = range.start;
    for other in others.iter().filter(|other| other.start < range.end && other.end > range.start) {
        parts.push(start..other.start);
        start = other.end;
    }
    parts.push(start..range.end);
    parts.retain(|part| part.start < part.end);
    parts
}

/// Where memory can be plugged: start and length, in whole blocks. `None` where there can be no more than at the start.
pub fn plug_region(memory_mib: u32, max_memory_mib: u32) -> Option<(u64, u64)> {
    let (start, length) = *ranges(memory_mib).last().expect("there is memory");
    let more_mib = max_memory_mib.checked_sub(memory_mib)?.next_multiple_of(MEMORY_BLOCK_MIB);
    let start = (start + length).max(GAP_END).next_multiple_of(1 << 30);
    (more_mib > 0).then(|| (start, u64::from(more_mib) << 20))
}

/// Makes memory. No page of it exists before someone writes to it.
pub fn allocate(memory_mib: u32, max_memory_mib: u32) -> Result<(Memory, Arc<File>), Error> {
    let file = memory_file(u64::from(memory_mib) << 20)?;
    let mut offset = 0;
    let mut ranges: Vec<_> = ranges(memory_mib)
        .into_iter()
        .map(|(start, len)| {
            let part = FileOffset::from_arc(Arc::clone(&file), offset);
            offset += len;
            (GuestAddress(start), len as usize, Some(part))
        })
        .collect();
    if let Some((start, len)) = plug_region(memory_mib, max_memory_mib) {
        let part = FileOffset::from_arc(memory_file(len)?, 0);
        ranges.push((GuestAddress(start), len as usize, Some(part)));
    }
    let memory = Memory::from_ranges_with_files(ranges).map_err(|error| {
        let source = match error {
            FromRangesError::MmapRegion(vm_memory::mmap::MmapRegionError::Mmap(source)) => source,
            other => io::Error::other(other),
        };
        Error::host("map guest memory")(source)
    })?;
    Ok((memory, file))
}

fn memory_file(length: u64) -> Result<Arc<File>, Error> {
    let file = memfd_create(c"guest memory", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| Error::host("make guest memory")(errno.into()))?;
    let file = File::from(file);
    file.set_len(length).map_err(Error::host("size guest memory"))?;
    Ok(Arc::new(file))
}

/// Maps `range` of `file` over the same range of guest memory, below the gap, for this process alone: what is written there goes nowhere else.
pub fn lay_over(memory: &Memory, range: &Range<u64>, file: &File) -> Result<(), Error> {
    let failed = Error::host("map a template");
    let length = (range.end - range.start) as usize;
    let Ok(slice) = memory.get_slice(GuestAddress(range.start), length) else {
        return Err(failed(io::ErrorKind::InvalidData.into()));
    };
    let place = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the place is mapped, as long as this, and belongs to guest memory, whose content nobody here relies on. `memory` unmaps all of
    // its region in the end, whatever lies there.
    let mapped = unsafe {
        libc::mmap(
            place.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            range.start as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

/// Gives the memory to a VM, and its devices' configuration spaces.
pub fn register(vm: &VmFd, memory: &Memory, spaces: &ConfigSpaces) -> Result<(), Error> {
    let (userspace_addr, memory_size) = spaces.place();
    let spaces = kvm_userspace_memory_region {
        flags: KVM_MEM_READONLY,
        guest_phys_addr: CONFIG_SPACES,
        memory_size,
        userspace_addr,
        slot: 0,
    };
    let memory = memory.iter().map(|region| kvm_userspace_memory_region {
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        slot: 0,
    });
    for (slot, region) in (0..).zip(memory.chain([spaces])) {
        let region = kvm_userspace_memory_region { slot, ..region };
        // SAFETY: the mapping stays while a vCPU can run: its thread holds the `Machine`, whose devices hold both.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("give the VM its memory"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_room_for_devices_below_4_gib() {
        assert_eq!(ranges(128), [(0, 128 << 20)]);
        assert_eq!(ranges(3072), [(0, GAP)]);
        assert_eq!(ranges(3073), [(0, GAP), (GAP_END, 1 << 20)]);
        assert_eq!(ranges(65_536), [(0, GAP), (GAP_END, 61 << 30)]);
    }

    #[test]
    fn what_comes_later_lies_above_all_else() {
        assert_eq!(plug_region(256, 256), None);
        assert_eq!(plug_region(256, 128), None);
        assert_eq!(plug_region(256, 257), Some((GAP_END, 128 << 20)));
        assert_eq!(plug_region(4096, 8192), Some((5 << 30, 4 << 30)));
        assert_eq!(plug_region(4097, 8193), Some((6 << 30, 4 << 30)));
        let (memory, file) = allocate(256, 1280).expect("address space and no memory");
        assert_eq!(file.metadata().expect("a file").len(), 256 << 20);
        let later = memory.find_region(GuestAddress(GAP_END)).expect("a region");
        assert_eq!((later.len(), later.file_offset().map(FileOffset::start)), (1 << 30, Some(0)));
    }

    #[test]
    fn the_largest_guest_is_one_file() {
        let (memory, file) = allocate(65_536, 65_536).expect("address space and no memory");
        assert_eq!(file.metadata().expect("a file").len(), 64 << 30);
        let high = memory.find_region(GuestAddress(GAP_END)).expect("high memory");
        assert_eq!(high.file_offset().map(FileOffset::start), Some(GAP));
        assert!(memory.find_region(GuestAddress(GAP)).is_none());
    }

    #[test]
    fn what_is_left_of_a_range_is_in_parts() {
        assert_eq!(without(2..9, &[0..1, 1..3, 5..6, 8..20]), [3..5, 6..8]);
        assert!(without(2..9, &[0..2, 9..10]).iter().eq([&(2..9)]));
        assert!(without(2..9, std::slice::from_ref(&(0..20))).is_empty());
    }
}
