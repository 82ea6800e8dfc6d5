//! A guest's memory and machine in one file: what a template is.
//!
//! ```text
//!   0                  guest memory, as in its memfd; holes where nothing is
//!   memory's length    which pages guests touch (`WorkingSet`)
//!   behind it          the machine's state (`State`), postcard
//! ```
//!
//! It is taken of a guest that has nothing to do: no buffer is with a device, nothing is connected. So a device's state is its
//! registers alone, and where its rings stand is read from guest memory. Who may read such a file, and what of a machine must
//! be the same for it to fit, is `template`'s affair.

use std::cmp::Reverse;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use nix::sys::eventfd::EventFd;
use nix::unistd::{Whence, lseek64};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::machine::Machine;
use super::pause::Pause;
use super::registers::Registers;
use super::template::Answer;
use super::working_set::{self, WorkingSet};
use super::{Error, image, memmap, memory, one_line, program};
use crate::devices::{Memory, pci};
use crate::sys::clock;

/// What a state begins with.
const FORM: [u8; 8] = *b"rt snap3";
/// Of the machine's state: 32 processors take less than 1 MiB.
const MAX_STATE: u64 = 4 << 20;
const PAGE: usize = 4096;
/// What Linux fills pages with that it needed for its start only, as it frees them (POISON_FREE_INITMEM): the initramfs above all.
const FREED: u8 = 0xcc;
/// So many dedicated ranges at most: each splits memory as the file server sees it, which takes 32 parts, two of them above the gap.
const MAX_DEDICATED: usize = 16;
/// So many bytes at least: a range costs every start some system calls.
const MIN_DEDICATED: u64 = 64 << 10;
/// So many empty pages are a hole; fewer are copied with their neighbours, since each piece costs system calls at every start.
const HOLE: usize = 16;

/// The machine beside its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    form: [u8; 8],
    /// What KVM supported then.
    cpuid: Vec<kvm_cpuid_entry2>,
    pub vcpus: Vec<Registers>,
    pub devices: Vec<pci::State>,
    /// Guest memory that never gets another purpose: all machines share the template's until they write to it. Ascending.
    pub dedicated: Vec<Range<u64>>,
    /// What guests can touch: all that holds something, but for the page structures. Ascending.
    pub lively: Vec<Range<u64>>,
    interrupt_controllers: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl State {
    /// Of a machine that stands still.
    fn take(
        vm: &VmFd,
        cpuid: &CpuId,
        vcpus: Vec<Registers>,
        devices: Vec<pci::State>,
        dedicated: Vec<Range<u64>>,
        lively: Vec<Range<u64>>,
    ) -> Result<Self, Error> {
        let mut interrupt_controllers = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(Error::kvm("read an interrupt controller"))?;
            interrupt_controllers.push(chip);
        }
        let mut clock = vm.get_clock().map_err(Error::kvm("read the VM's clock"))?;
        // What the host's clocks showed: they have gone on when this is set.
        clock.flags = 0;
        Ok(Self {
            form: FORM,
            cpuid: cpuid.as_slice().to_vec(),
            vcpus,
            devices,
            dedicated,
            lively,
            interrupt_controllers,
            clock,
        })
    }

    /// The state in `file`, if it is one of a machine of this memory, on a host that supports `cpuid`.
    pub fn read(file: &File, memory_bytes: u64, cpuid: &CpuId) -> Option<Self> {
        let start = state_at(memory_bytes);
        let length = file.metadata().ok()?.len().checked_sub(start).filter(|length| *length <= MAX_STATE)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, start).ok()?;
        let state: Self = postcard::from_bytes(&bytes).ok()?;
        (state.form == FORM && state.cpuid == cpuid.as_slice()).then_some(state)
    }

    /// Sets what is the VM's; processors and devices are their owners'.
    pub fn give(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in &self.interrupt_controllers {
            vm.set_irqchip(chip).map_err(Error::kvm("set an interrupt controller"))?;
        }
        vm.set_clock(&self.clock).map_err(Error::kvm("set the VM's clock"))
    }
}

/// Where the state begins in a template of a machine of this memory.
fn state_at(memory_bytes: u64) -> u64 {
    memory_bytes + WorkingSet::length(memory_bytes) as u64
}

/// Fills fresh guest memory from `template`, by sendfile(2) as a kernel is loaded, but for what is dedicated: that is
/// the template's own, mapped in its place. Another process that maps `memory` sees nothing there.
pub fn load(template: &File, memory: &File, mapping: &Memory, dedicated: &[Range<u64>]) -> Result<(), Error> {
    let failed = || Error::host("copy a template");
    let memory_bytes = memory.metadata().map_err(failed())?.len();
    let mut template = template;
    for (start, end) in data(template, memory_bytes).map_err(Error::host("look through a template"))? {
        for part in memory::without(start..end, dedicated) {
            template.seek(SeekFrom::Start(part.start)).map_err(failed())?;
            let length = part.end - part.start;
            if image::send(template, memory, part.start, length).map_err(failed())? != length {
                return Err(failed()(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
    dedicated.iter().try_for_each(|range| memory::lay_over(mapping, range, template))
}

/// Of the ranges those that are worth while, ascending, as `lay_over` takes them.
fn largest(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.end <= memory::GAP && range.end - range.start >= MIN_DEDICATED);
    ranges.sort_by_key(|range| Reverse(range.end - range.start));
    ranges.truncate(MAX_DEDICATED);
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// The parts of the first `length` bytes that are no holes.
fn data(file: &File, length: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match lseek64(file, at as i64, Whence::SeekData) {
            Err(nix::errno::Errno::ENXIO) => break,
            other => other? as u64,
        };
        if start >= length {
            break;
        }
        at = (lseek64(file, start as i64, Whence::SeekHole)? as u64).min(length);
        parts.push((start, at));
    }
    Ok(parts)
}

/// Copies guest memory to `template`, but for pages that hold nothing.
fn save(memory: &File, template: &File, memory_bytes: u64) -> io::Result<()> {
    template.set_len(memory_bytes)?;
    let mut buffer = vec![0; 256 * PAGE];
    for (start, end) in data(memory, memory_bytes)? {
        let mut at = start;
        while at < end {
            let piece = &mut buffer[..(end - at).min(256 * PAGE as u64) as usize];
            memory.read_exact_at(piece, at)?;
            for (offset, bytes) in filled(piece) {
                template.write_all_at(bytes, at + offset as u64)?;
            }
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// What holds something, by page: offset and bytes. Zeros and freed pages do not: who is given a freed page expects nothing of it.
fn filled(piece: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, page) in piece.chunks(PAGE).enumerate() {
        let first = page[0];
        if matches!(first, 0 | FREED) && page.iter().all(|byte| *byte == first) {
            continue;
        }
        let (start, end) = (index * PAGE, index * PAGE + page.len());
        match runs.last_mut() {
            Some((_, last)) if start - *last < HOLE * PAGE => *last = end,
            _ => runs.push((start, end)),
        }
    }
    runs.into_iter().map(|(start, end)| (start, &piece[start..end])).collect()
}

/// Guest memory below the gap that holds something, but for `page_structures`, most of which are of memory that nobody uses.
fn lively(
    template: &File,
    memory_bytes: u64,
    mut page_structures: Vec<Range<u64>>,
) -> io::Result<Vec<Range<u64>>> {
    page_structures.sort_by_key(|range| range.start);
    let parts = data(template, memory_bytes.min(memory::GAP))?;
    Ok(parts.into_iter().flat_map(|(start, end)| memory::without(start..end, &page_structures)).collect())
}

/// What writes a template of this machine as soon as the agent has greeted and has nothing to do.
pub struct Recorder {
    pub template: File,
    /// Gets an [`Answer`].
    pub parent: UnixStream,
    /// This process's, where the kernel has such a thing.
    pub pagemap: Option<File>,
    pub greeted: Arc<AtomicBool>,
    pub vm: Arc<VmFd>,
    pub memory: Memory,
    /// In which it lies.
    pub file: Arc<File>,
    /// The files that were loaded.
    pub kernel: File,
    pub initramfs: File,
    pub cpuid: CpuId,
    pub machine: Arc<Machine>,
    pub pause: Arc<Pause>,
    pub vcpus: Vec<JoinHandle<()>>,
    /// Written to in the end.
    pub done: EventFd,
}

impl Recorder {
    /// In a thread of its own, while the machine runs.
    pub fn start(self) -> Result<(), Error> {
        let record = move || {
            let answer = match self.record() {
                Ok(()) => {
                    Answer::Made { memory: self.memory.iter().next().map_or(0, |low| low.as_ptr() as u64) }
                }
                Err(error) => Answer::Not(one_line(&error)),
            };
            // Who wants to know may have ended.
            let _ = answer.send(&self.parent, self.pagemap.as_ref());
            let _ = self.done.write(1);
        };
        let thread = thread::Builder::new().name("recorder".into());
        thread.spawn(record).map(drop).map_err(Error::host("start a thread"))
    }

    fn record(&self) -> Result<(), Error> {
        self.wait_until_idle()?;
        self.pause.during(&self.vcpus, |registers| {
            let devices = self.machine.frozen();
            let devices = devices.iter().flat_map(|device| device.as_ref());
            let states = devices.map(|device| device.state().clone()).collect();
            let page_structures =
                registers[0].page_tables().map_or(vec![], |tables| memmap::ranges(&self.memory, tables));
            let dedicated =
                self.dedicated(&page_structures).map_err(Error::host("find what machines can share"))?;
            let failed = || Error::host("write a template");
            let memory_bytes = self.file.metadata().map_err(failed())?.len();
            save(&self.file, &self.template, memory_bytes).map_err(failed())?;
            let lively = lively(&self.template, memory_bytes, page_structures).map_err(failed())?;
            let state = State::take(&self.vm, &self.cpuid, registers, states, dedicated, lively)?;
            let state = postcard::to_stdvec(&state).map_err(|error| failed()(io::Error::other(error)))?;
            WorkingSet::everything(memory_bytes).write(&self.template, memory_bytes).map_err(failed())?;
            self.template.write_all_at(&state, state_at(memory_bytes)).map_err(failed())?;
            working_set::let_go(&self.memory).map_err(failed())
        })
    }

    /// The guest memory that has one purpose from the start to the end, in which no buffer can lie: the kernel's code, its page structures,
    /// the agent's code.
    fn dedicated(&self, page_structures: &[Range<u64>]) -> io::Result<Vec<Range<u64>>> {
        let mut ranges = image::code(&self.kernel)?;
        ranges.extend_from_slice(page_structures);
        let low = self.file.metadata()?.len().min(memory::GAP);
        ranges.extend(program::ranges(&self.file, &data(&self.file, low)?, &self.initramfs)?);
        Ok(largest(ranges))
    }

    /// The agent greets before it has done everything: what it still has to do would be every start's.
    fn wait_until_idle(&self) -> Result<(), Error> {
        const WINDOW: Duration = Duration::from_millis(10);
        const BUSY_NS: u64 = 500_000;
        const PATIENCE: u32 = 300;
        let spent = || -> Result<u64, Error> {
            let spent = self.vcpus.iter().map(|vcpu| clock::thread_ns(vcpu.as_pthread_t()));
            spent.sum::<io::Result<u64>>().map_err(Error::host("read a thread's clock"))
        };
        // However long that takes: whoever waits for the greeting has a deadline.
        while !self.greeted.load(Ordering::Relaxed) {
            thread::sleep(WINDOW);
        }
        let mut last = spent()?;
        for _ in 0..PATIENCE {
            thread::sleep(WINDOW);
            let now = spent()?;
            if now - last < BUSY_NS {
                return Ok(());
            }
            last = now;
        }
        Err(Error::host("take a template of a guest that is busy")(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pages: &[(usize, u8)], count: usize) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len((count * PAGE) as u64).expect("it grows");
        for (page, byte) in pages {
            file.write_all_at(&[*byte; PAGE], (page * PAGE) as u64).expect("written");
        }
        file
    }

    fn content(file: &File, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    #[test]
    fn memory_comes_back_as_it_was() {
        let pages = [(0, 1), (1, 0), (3, 2), (4, 1), (5, FREED - 1), (300, 3), (599, 4)];
        let guest = memory(&pages, 600);
        let template = tempfile::tempfile().expect("a file");
        save(&guest, &template, 600 * PAGE as u64).expect("saved");
        let copy = memory(&[], 600);
        load(&template, &copy, &Memory::new(), &[]).expect("loaded");
        assert!(content(&guest, 600 * PAGE) == content(&copy, 600 * PAGE));
    }

    #[test]
    fn what_is_empty_is_not_kept_but_in_small_gaps() {
        let page = |byte: u8| vec![byte; PAGE];
        let piece = [page(0), page(1), page(FREED), page(2), vec![0; HOLE * PAGE], page(3)].concat();
        let runs: Vec<_> =
            filled(&piece).into_iter().map(|(start, run)| (start / PAGE, run.len() / PAGE)).collect();
        assert_eq!(runs, [(1, 3), (4 + HOLE, 1)]);
    }

    #[test]
    fn what_holds_something_is_lively_but_for_page_structures() {
        let page = PAGE as u64;
        let template = memory(&[(1, 1), (2, 2), (3, 3), (9, 1)], 12);
        let pages = |range: Range<u64>| range.start / page..range.end / page;
        let structures = vec![9 * page..10 * page, 2 * page..3 * page];
        let found = lively(&template, 12 * page, structures).expect("looked through");
        assert_eq!(found.into_iter().map(pages).collect::<Vec<_>>(), [1..2, 3..4]);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let cpuid = CpuId::from_entries(&[]).expect("none");
        let file = memory(&[(0, 1)], 2);
        assert!(State::read(&file, 4 * PAGE as u64, &cpuid).is_none(), "shorter than memory");
        assert!(State::read(&file, 2 * PAGE as u64, &cpuid).is_none(), "nothing behind memory");
        assert!(State::read(&file, PAGE as u64, &cpuid).is_none(), "something else behind memory");
    }
}
