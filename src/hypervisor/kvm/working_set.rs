//! Which pages of guest memory a machine touches when it goes on from a template: less than half of what that holds, and some that
//! were free, much the same ones each time. KVM maps them ahead, and no others.
//!
//! The machine that makes a template shows them. Its VMM lets go of all mappings of guest memory as it takes the template, and KVM makes
//! them again as the guest needs them. After a moment, or when the machine is to end, its parent looks which are there (/proc/PID/pagemap,
//! Documentation/admin-guide/mm/pagemap.rst) and writes that down; the VMM has given the template away by then. It is a hint: what is
//! wrong in it costs time and nothing else.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::{GuestMemory, GuestMemoryRegion};

use super::memory;
use crate::devices::Memory;
use crate::sys;

const PAGE: u64 = 4096;
/// So many untouched pages between two others are mapped, too: asking twice costs as much.
const NEAR: u64 = 4;
/// Memory that the template does not hold is mapped ahead up to so many bytes. A machine takes some 2 MiB until its first container runs, most of it
/// the same each time; more is that container's affair, and not to be the others'.
const MAX_FRESH: u64 = 4 << 20;
/// So long a machine is watched: its first container starts meanwhile.
const MOMENT: Duration = Duration::from_secs(2);

/// A bit for each page below the gap, the lowest one first. In a template it lies behind the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet(Vec<u8>);

impl WorkingSet {
    /// Of machines that nobody has watched yet.
    pub fn everything(memory_bytes: u64) -> Self {
        Self(vec![0xff; Self::length(memory_bytes)])
    }

    /// In bytes, of machines of this memory.
    pub fn length(memory_bytes: u64) -> usize {
        (memory_bytes.min(memory::GAP) / PAGE).div_ceil(8) as usize
    }

    pub fn read(template: &File, memory_bytes: u64) -> io::Result<Self> {
        let mut bytes = vec![0; Self::length(memory_bytes)];
        template.read_exact_at(&mut bytes, memory_bytes)?;
        Ok(Self(bytes))
    }

    pub fn write(&self, template: &File, memory_bytes: u64) -> io::Result<()> {
        template.write_all_at(&self.0, memory_bytes)
    }

    /// What is mapped by the process that `pagemap` is of, which has guest memory at `address`.
    fn mapped(pagemap: &File, address: u64, memory_bytes: u64) -> io::Result<Self> {
        const ENTRY: usize = 8;
        const PRESENT: u8 = 1 << 7;
        const AT_ONCE: u64 = 4096;
        let pages = memory_bytes.min(memory::GAP) / PAGE;
        let mut set = vec![0; Self::length(memory_bytes)];
        let mut entries = [0; AT_ONCE as usize * ENTRY];
        for start in (0..pages).step_by(AT_ONCE as usize) {
            let entries = &mut entries[..(pages - start).min(AT_ONCE) as usize * ENTRY];
            pagemap.read_exact_at(entries, (address / PAGE + start) * ENTRY as u64)?;
            for (page, entry) in (start as usize..).zip(entries.chunks(ENTRY)) {
                set[page / 8] |= u8::from(entry[ENTRY - 1] & PRESENT != 0) << (page % 8);
            }
        }
        Ok(Self(set))
    }

    /// What to map ahead, in whole pages: what belongs to it of `held`, which is ascending, and of the rest of memory if that is not much.
    pub fn ahead(&self, held: &[Range<u64>]) -> Vec<Range<u64>> {
        let of_held = held.iter().flat_map(|range| self.within(range, NEAR));
        let end = self.0.len() as u64 * 8 * PAGE;
        let others = memory::without(0..end, held);
        let fresh: Vec<_> = others.iter().flat_map(|range| self.within(range, 0)).collect();
        let is_much = fresh.iter().map(|range| range.end - range.start).sum::<u64>() > MAX_FRESH;
        of_held.chain(if is_much { vec![] } else { fresh }).collect()
    }

    /// What belongs to it of `range`, and so many pages between two that do.
    fn within(&self, range: &Range<u64>, near: u64) -> Vec<Range<u64>> {
        let wanted = range.start / PAGE..range.end / PAGE;
        let bytes = &self.0[..self.0.len().min(wanted.end.div_ceil(8) as usize)];
        let bytes = (0..).zip(bytes).skip((wanted.start / 8) as usize).filter(|(_, byte)| **byte != 0);
        let pages = bytes.flat_map(|(index, byte)| {
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| index * 8 + bit)
        });
        let mut parts: Vec<Range<u64>> = Vec::new();
        for page in pages.filter(|page| wanted.contains(page)) {
            match parts.last_mut() {
                Some(last) if page * PAGE - last.end <= near * PAGE => last.end = (page + 1) * PAGE,
                _ => parts.push(page * PAGE..(page + 1) * PAGE),
            }
        }
        parts
    }
}

/// Has this process map guest memory anew as it is touched, page by page where the kernel can do that. The guest stands still.
pub fn let_go(memory: &Memory) -> io::Result<()> {
    for region in memory.iter() {
        // Elsewhere neighbours of what is touched count as touched.
        if let Ok(open_to_the_end) = sys::memory::map_singly(region.as_ptr() as u64, region.len()) {
            let _ = open_to_the_end.into_raw_fd();
        }
        // SAFETY: the region is a shared mapping of a file, which keeps the content.
        let done =
            unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Looks what a machine touches, in a thread of its own.
#[derive(Debug)]
pub struct Observer {
    enough: Sender<()>,
    thread: JoinHandle<()>,
}

impl Observer {
    /// For `template`, of machines of this memory; the VMM has it at `address`, and its mappings in `pagemap`.
    pub fn start(pagemap: File, address: u64, template: File, memory_bytes: u64) -> io::Result<Self> {
        let (enough, is_enough) = channel();
        let observe = move || {
            let _ = is_enough.recv_timeout(MOMENT);
            let set = WorkingSet::mapped(&pagemap, address, memory_bytes);
            if let Err(error) = set.and_then(|set| set.write(&template, memory_bytes)) {
                tracing::debug!("it is not known what machines touch: {error}");
            }
        };
        let thread = thread::Builder::new().name("observer".into()).spawn(observe)?;
        Ok(Self { enough, thread })
    }

    /// The machine is about to end.
    pub fn end(self) {
        drop(self.enough);
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn pages(range: Range<u64>) -> Range<u64> {
        range.start * PAGE..range.end * PAGE
    }

    #[test]
    fn what_is_mapped_is_touched() {
        let (memory, _file) = memory::allocate(64, 64).expect("memory");
        let address = memory.iter().next().expect("a region").as_ptr() as u64;
        let bytes = 64 << 20;
        let set = || {
            let pagemap = File::open("/proc/self/pagemap").expect("/proc");
            WorkingSet::mapped(&pagemap, address, bytes).expect("read")
        };
        let touch = |page: u64| {
            memory.write_obj(1_u8, GuestAddress(page * PAGE)).expect("within memory");
        };
        touch(3);
        touch(16_383);
        let_go(&memory).expect("let go");
        assert_eq!(set(), WorkingSet(vec![0; 2048]));
        touch(0);
        touch(9000);
        touch(9004);
        touch(9100);
        let touched = set();
        let ahead = |held: &[Range<u64>]| touched.ahead(held);
        assert_eq!(ahead(&[pages(0..16_384)]), [pages(0..1), pages(9000..9005), pages(9100..9101)]);
        let rest = [pages(0..1), pages(9000..9001), pages(9100..9101)];
        assert_eq!(ahead(&[pages(1..9000), pages(9002..9100)]), [&[pages(9004..9005)], &rest[..]].concat());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(3 * PAGE)).expect("within memory"), 1);
    }

    #[test]
    fn what_a_large_program_took_is_left_to_it() {
        let everything = WorkingSet::everything(64 << 20);
        let (few, more) = (MAX_FRESH / PAGE, MAX_FRESH / PAGE + 1);
        assert_eq!(everything.ahead(&[pages(few..16_384)]), [pages(few..16_384), pages(0..few)]);
        assert_eq!(everything.ahead(&[pages(more..16_384)]), [pages(more..16_384)]);
    }

    #[test]
    fn it_is_kept_in_the_template() {
        let template = tempfile::tempfile().expect("a file");
        let bytes = 16 * PAGE;
        assert!(WorkingSet::read(&template, bytes).is_err());
        let everything = WorkingSet::everything(bytes);
        everything.write(&template, bytes).expect("written");
        assert_eq!(WorkingSet::read(&template, bytes).expect("read"), everything);
        assert_eq!(everything.ahead(&[pages(2..10)]), [pages(2..10), pages(0..2), pages(10..16)]);
        assert_eq!(template.metadata().expect("a file").len(), bytes + 2);
    }
}
