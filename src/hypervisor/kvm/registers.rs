//! All that a vCPU is: read while it stands still, given to another before that first runs.
//!
//! Some of it depends on the rest being there already, so the order of [`Registers::give`] is KVM's (Documentation/virt/kvm/api.rst): the
//! local APIC before the MSRs, of which one is its timer's deadline, and that behind the time stamp counter, as KVM lists them; what is
//! pending last.

use kvm_bindings::{
    KVM_MAX_MSR_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::Error;

/// See the module's head.
#[derive(Debug, Serialize, Deserialize)]
pub struct Registers {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// The numbers of the MSRs that make up a vCPU's state on this host.
///
/// # Errors
/// Also when KVM has more floating point state than [`Registers`] holds.
pub fn msr_numbers(kvm: &Kvm) -> Result<Vec<u32>, Error> {
    if kvm.check_extension_int(Cap::Xsave2) > size_of::<kvm_xsave>() as i32 {
        let error = kvm_ioctls::Error::new(libc::E2BIG);
        return Err(Error::kvm("keep a vCPU's floating point state")(error));
    }
    Ok(kvm.get_msr_index_list().map_err(Error::kvm("list the MSRs"))?.as_slice().to_vec())
}

impl Registers {
    /// Those of `vcpu`, which does not run. MSRs that it does not have are passed over.
    pub fn take(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Self, Error> {
        let failed = || Error::kvm("read a vCPU's state");
        Ok(Self {
            // First, since reading it has KVM take up signals between processors.
            mp_state: vcpu.get_mp_state().map_err(failed())?,
            regs: vcpu.get_regs().map_err(failed())?,
            sregs: vcpu.get_sregs().map_err(failed())?,
            xsave: vcpu.get_xsave().map_err(failed())?,
            xcrs: vcpu.get_xcrs().map_err(failed())?,
            debug: vcpu.get_debug_regs().map_err(failed())?,
            lapic: vcpu.get_lapic().map_err(failed())?,
            msrs: take_msrs(vcpu, numbers)?,
            events: vcpu.get_vcpu_events().map_err(failed())?,
        })
    }

    /// Where the tables are by which it finds memory (CR3), if they have four levels (CR4.LA57 would be a fifth).
    pub fn page_tables(&self) -> Option<u64> {
        const LA57: u64 = 1 << 12;
        (self.sregs.cr4 & LA57 == 0).then_some(self.sregs.cr3)
    }

    /// Makes them those of `vcpu`, which has its CPUID and has not run.
    pub fn give(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        let failed = || Error::kvm("set a vCPU's state");
        vcpu.set_mp_state(self.mp_state).map_err(failed())?;
        vcpu.set_regs(&self.regs).map_err(failed())?;
        vcpu.set_sregs(&self.sregs).map_err(failed())?;
        // SAFETY: KVM reads no more than this structure, by `msr_numbers`.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed())?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed())?;
        vcpu.set_debug_regs(&self.debug).map_err(failed())?;
        vcpu.set_lapic(&self.lapic).map_err(failed())?;
        for entries in self.msrs.chunks(KVM_MAX_MSR_ENTRIES) {
            let msrs = Msrs::from_entries(entries).expect("no more than fit");
            if vcpu.set_msrs(&msrs).map_err(Error::kvm("set a vCPU's MSRs"))? != entries.len() {
                return Err(Error::kvm("set a vCPU's MSRs")(kvm_ioctls::Error::new(libc::EINVAL)));
            }
        }
        vcpu.set_vcpu_events(&self.events).map_err(failed())
    }
}

/// KVM stops at the first MSR that the vCPU does not have.
fn take_msrs(vcpu: &VcpuFd, mut numbers: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut taken = Vec::with_capacity(numbers.len());
    while !numbers.is_empty() {
        let (wanted, _) = numbers.split_at(numbers.len().min(KVM_MAX_MSR_ENTRIES));
        let entries: Vec<_> =
            wanted.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("no more than fit");
        let count = vcpu.get_msrs(&mut msrs).map_err(Error::kvm("read a vCPU's MSRs"))?;
        taken.extend_from_slice(&msrs.as_slice()[..count]);
        numbers = &numbers[(count + 1).min(wanted.len())..];
    }
    Ok(taken)
}
