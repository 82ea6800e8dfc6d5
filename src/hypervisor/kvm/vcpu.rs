//! A virtual processor: its state at power-on, and its thread.

use std::io;
use std::ops::Range;

use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_SHUTDOWN, KVMIO, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_pre_fault_memory,
    kvm_regs, kvm_segment,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::machine::Machine;
use super::memory::START_INFO;
use super::pause::Pause;
use super::{End, Error, cpuid};

/// Processor number `id`, of which 0 starts at once, and the others when the guest says so.
pub fn create(vm: &VmFd, id: u8, supported: &CpuId) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(id.into()).map_err(Error::kvm("make a vCPU"))?;
    vcpu.set_cpuid2(&cpuid::for_vcpu(supported, id)).map_err(Error::kvm("set a vCPU's CPUID"))?;
    set_msrs(&vcpu)?;
    set_local_interrupts(&vcpu)?;
    Ok(vcpu)
}

/// What firmware would have left behind: fast string operations, and memory that is cached.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1;
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = [(MISC_ENABLE, FAST_STRING), (MTRR_DEFAULT_TYPE, MTRR_ON_WRITE_BACK)].map(entry);
    let msrs = Msrs::from_entries(&msrs).expect("two entries fit");
    match vcpu.set_msrs(&msrs).map_err(Error::kvm("set a vCPU's MSRs"))? {
        2 => Ok(()),
        _ => Err(Error::kvm("set a vCPU's MSRs")(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

/// Virtual wire mode, as firmware leaves it: LINT0 takes external interrupts, LINT1 is NMI (Intel SDM vol. 3 §11.5.1).
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXTINT: u32 = 0x7;
    const NMI: u32 = 0x4;
    fn set_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
        let bytes = &mut lapic.regs[register..register + 4];
        let old = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8));
        for (byte, new) in bytes.iter_mut().zip((old & !0x700 | mode << 8).to_le_bytes()) {
            *byte = new as _;
        }
    }
    let mut lapic = vcpu.get_lapic().map_err(Error::kvm("read a local APIC"))?;
    set_mode(&mut lapic, LINT0, EXTINT);
    set_mode(&mut lapic, LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(Error::kvm("set a local APIC"))
}

/// Points a processor at the kernel: 32-bit protected mode, flat segments, no paging (PVH).
pub fn start_at(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), Error> {
    const PROTECTED_MODE: u64 = 1;
    const EXTENSION_TYPE: u64 = 1 << 4;
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TSS: u8 = 0xb;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("read a vCPU's registers"))?;
    sregs.cs = flat(0x8, CODE);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat(0x10, DATA);
    }
    sregs.tr = kvm_segment { limit: 0x67, type_: BUSY_TSS, present: 1, ..Default::default() };
    sregs.cr0 = PROTECTED_MODE | EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(Error::kvm("set a vCPU's registers"))?;
    let regs = kvm_regs {
        rip: entry.raw_value(),
        rbx: START_INFO.raw_value(),
        // Bit 1 is always set.
        rflags: 1 << 1,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(Error::kvm("set a vCPU's registers"))
}

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Has KVM map guest memory before the guest touches it: each page that is not mapped then ends the guest's turn. A host whose KVM
/// cannot (Linux before 6.11) maps them one by one, as ever (Documentation/virt/kvm/api.rst §4.143).
pub fn map_ahead(vcpu: &VcpuFd, ranges: &[Range<u64>]) {
    for range in ranges {
        let mut left =
            kvm_pre_fault_memory { gpa: range.start, size: range.end - range.start, ..Default::default() };
        while left.size > 0 {
            // SAFETY: KVM reads and writes one kvm_pre_fault_memory, which outlives the call.
            match unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut left) } {
                0.. => {}
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

/// Runs processor number `id` until the guest ends.
pub fn run(id: usize, vcpu: &mut VcpuFd, machine: &Machine, pause: Option<&Pause>) -> End {
    loop {
        let mut interrupted = false;
        let end = match vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => machine.write_memory(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => {
                machine.read_memory(address, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => machine.write_port(port, data),
            Ok(VcpuExit::IoIn(port, data)) => machine.read_port(port, data),
            Ok(VcpuExit::Intr) => None,
            // EAGAIN: a processor that waits for its start was woken by something else.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                interrupted = true;
                None
            }
            Ok(VcpuExit::Shutdown) => Some(End::TripleFault),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(End::PowerOff),
            Ok(VcpuExit::SystemEvent(..)) => Some(End::Reset),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Some(End::Kvm(format!("the processor refuses the guest's state ({reason:#x}, CPU {cpu})")))
            }
            Ok(VcpuExit::InternalError) => Some(End::Kvm(internal_error(vcpu))),
            Ok(exit) => Some(End::Kvm(format!("it exits for an unknown reason ({exit:?})"))),
            Err(error) => Some(End::Kvm(format!("KVM_RUN failed: {error}"))),
        };
        if let Some(end) = end {
            return end;
        }
        if let (true, Some(pause)) = (interrupted, pause) {
            pause.stop_here(id, vcpu);
        }
    }
}

/// KVM_EXIT_INTERNAL_ERROR in words.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so KVM filled in this field of the union.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    match suberror {
        1 => format!("KVM cannot emulate the instruction at {rip:#x}: is this a para-virtual KVM?"),
        _ => format!("KVM has an internal error (suberror {suberror}, at {rip:#x})"),
    }
}
