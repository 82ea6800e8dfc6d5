//! Where a Linux guest has its page structures: 64 bytes for each page of memory, taken when it starts and kept to its end.
//!
//! Linux maps them as one array at an address that it only changes where it randomises its own (Documentation/arch/x86/x86_64/mm.rst), which a
//! kernel that is started as an ELF file does not. Which memory that is, its page tables say (Intel SDM vol. 3 §4.5). Of a guest that
//! does otherwise nothing is found, and nothing depends on it.

use std::ops::Range;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::devices::Memory;

const ARRAY: u64 = 0xffff_ea00_0000_0000;
const STRUCTURE: u64 = 64;
const PAGE: u64 = 4096;
/// Of a page that a table of the lowest level but one holds.
const LARGE_PAGE: u64 = 2 << 20;

/// In a table's entry: there is something; it is a page and not a table of the next level; where it is.
const PRESENT: u64 = 1;
const IS_PAGE: u64 = 1 << 7;
const PLACE: u64 = 0x000f_ffff_ffff_f000;

/// The guest memory that holds them, by the page tables at `tables` (CR3), four levels of them.
pub fn ranges(memory: &Memory, tables: u64) -> Vec<Range<u64>> {
    let end = ARRAY + memory.last_addr().raw_value() / PAGE * STRUCTURE;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = ARRAY;
    while at < end {
        let Some(page) = page(memory, tables, at) else {
            at += LARGE_PAGE;
            continue;
        };
        at += page.end - page.start;
        match ranges.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => ranges.push(page),
        }
    }
    ranges
}

/// What is mapped at `address`, a multiple of its length.
fn page(memory: &Memory, tables: u64, address: u64) -> Option<Range<u64>> {
    let mut table = tables & PLACE;
    for (shift, may_be_page) in [(39, false), (30, false), (21, true), (12, true)] {
        let entry: u64 = memory.read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        let length = 1 << shift;
        if may_be_page && (length == PAGE || entry & IS_PAGE != 0) {
            let start = entry & PLACE & !(length - 1);
            return Some(start..start + length);
        }
        table = entry & PLACE;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Tables at 0x1000 and up, of memory of 384 MiB: its structures are three large pages.
    fn guest(entries: &[(u64, u64)]) -> Memory {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 384 << 20)]).expect("memory");
        let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at)).expect("within memory");
        put(0x1000 + (ARRAY >> 39 & 0x1ff) * 8, 0x2000 | PRESENT);
        put(0x2000, 0x3000 | PRESENT);
        entries.iter().for_each(|(index, entry)| put(0x3000 + index * 8, *entry));
        memory
    }

    #[test]
    fn pages_of_both_sizes_are_found_and_joined() {
        let no_execute = 1 << 63;
        let large = |place: u64| place | no_execute | IS_PAGE | PRESENT;
        let memory = guest(&[(0, large(200 * MIB)), (1, large(202 * MIB)), (2, large(100 * MIB))]);
        assert_eq!(ranges(&memory, 0x1000), [200 * MIB..204 * MIB, 100 * MIB..102 * MIB]);
        let memory = guest(&[(0, 0x4000 | PRESENT), (1, 0), (2, large(6 * MIB))]);
        for index in 0..512 {
            let entry = (8 * MIB + index * PAGE) | PRESENT;
            memory.write_obj(entry, GuestAddress(0x4000 + index * 8)).expect("written");
        }
        // Bits beside the address are not part of it.
        assert_eq!(ranges(&memory, 0x1018), [8 * MIB..10 * MIB, 6 * MIB..8 * MIB]);
    }

    #[test]
    fn of_tables_that_lead_nowhere_nothing_is_found() {
        assert!(ranges(&guest(&[]), 0x1000).is_empty());
        assert!(ranges(&guest(&[(0, !IS_PAGE)]), 0x1000).is_empty());
        assert!(ranges(&guest(&[]), u64::MAX).is_empty());
    }
}
