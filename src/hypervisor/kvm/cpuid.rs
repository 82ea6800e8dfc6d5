//! What the guest's processors say of themselves: what KVM supports, with the host's topology replaced by the guest's.
//!
//! One socket, each vCPU a core without siblings. Sources: Intel SDM vol. 2 CPUID; AMD APM vol. 3 appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::Error;

/// The same for all processors of the VM; [`for_vcpu`] makes it one's own.
pub fn supported(kvm: &Kvm, vcpus: u8) -> Result<CpuId, Error> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("ask for KVM's CPUID"))?;
    // Not among what KVM reports, as it depends on the local APIC being KVM's, which it is here.
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    // KVM tells nothing of topology, or the host's.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for index in 0..3 {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let level = kvm_cpuid_entry2 { function: 0xb, index, flags, ..Default::default() };
        cpuid
            .push(level)
            .map_err(|_| Error::host("extend KVM's CPUID")(std::io::ErrorKind::OutOfMemory.into()))?;
    }
    for entry in cpuid.as_mut_slice() {
        adapt(entry, vcpus.into(), deadline_timer);
    }
    Ok(cpuid)
}

/// `cpuid` with vCPU `id`'s own APIC ID.
pub fn for_vcpu(cpuid: &CpuId, id: u8) -> CpuId {
    let mut own = cpuid.clone();
    let id = u32::from(id);
    for entry in own.as_mut_slice() {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb => entry.edx = id,
            // Extended APIC ID; compute unit (here: core) ID.
            0x8000_001e => (entry.eax, entry.ebx) = (id, id),
            _ => {}
        }
    }
    own
}

fn adapt(entry: &mut kvm_cpuid_entry2, vcpus: u32, deadline_timer: bool) {
    /// Bits of an APIC ID that tell cores apart.
    fn bits(vcpus: u32) -> u32 {
        vcpus.next_power_of_two().trailing_zeros()
    }
    match entry.function {
        0x1 => {
            const MONITOR: u32 = 1 << 3;
            const TSC_DEADLINE: u32 = 1 << 24;
            const HYPERVISOR: u32 = 1 << 31;
            const HTT: u32 = 1 << 28;
            entry.ecx = entry.ecx & !(MONITOR | TSC_DEADLINE) | HYPERVISOR;
            entry.ecx |= if deadline_timer { TSC_DEADLINE } else { 0 };
            entry.ebx = entry.ebx & 0xff00_ffff | vcpus << 16;
            entry.edx = entry.edx & !HTT | if vcpus > 1 { HTT } else { 0 };
        }
        // Caches: the last level is shared by all cores, the others by none.
        0x4 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { (1 << bits(vcpus)) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << bits(vcpus)) - 1) << 26;
        }
        // No energy bias, no thermal sensor or frequency that a guest could do anything with.
        0x6 => (entry.eax, entry.ecx) = (entry.eax & 1 << 2, 0),
        // Levels: thread (type 1), core (type 2), none.
        0xb => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (bits(vcpus), vcpus, 2 << 8 | 1),
                index => (0, 0, index & 0xff),
            };
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | bits(vcpus) << 12 | (vcpus - 1),
        0x8000_001d => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        // One thread per core, one node.
        0x8000_001e => (entry.ebx, entry.ecx) = (0, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, vcpus: u32) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 { function, index, eax: 0x63, ..Default::default() };
        adapt(&mut entry, vcpus, true);
        entry
    }

    #[test]
    fn topology_counts_the_guests_processors() {
        for vcpus in [1, 2, 3, 32] {
            assert_eq!(adapted(0xb, 1, vcpus).ebx, vcpus);
            assert_eq!(adapted(0x1, 0, vcpus).ebx >> 16 & 0xff, vcpus);
            assert_eq!(adapted(0x8000_0008, 0, vcpus).ecx & 0xff, vcpus - 1);
        }
        assert_eq!(adapted(0xb, 1, 3).eax, 2);
        assert_eq!(adapted(0xb, 1, 32).eax, 5);
        assert_eq!(adapted(0x4, 0, 1).eax >> 14, 0);
    }

    #[test]
    fn each_processor_has_its_own_id() {
        let entries: Vec<_> = [0x1, 0xb, 0x8000_001e].map(|function| adapted(function, 0, 4)).into();
        let own = for_vcpu(&CpuId::from_entries(&entries).expect("three entries"), 3);
        let own = own.as_slice();
        assert_eq!((own[0].ebx >> 24, own[1].edx, own[2].eax), (3, 3, 3));
    }
}
