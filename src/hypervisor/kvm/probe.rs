//! Does a stock guest run on this host's KVM? The device file alone says nothing: a para-virtual KVM (PVM, for clouds without nested
//! virtualisation) makes VMs too, but runs code outside its protocol in an instruction emulator that soon gives up.
//!
//! So a guest of three instructions is run, in about 2 ms. An SSE instruction in long mode is nothing to a
//! processor, and unknown to KVM's emulator.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::thread;

use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::devices::Memory;

pub const DEVICE: &str = "/dev/kvm";

/// What rt's VMM needs of KVM beside a guest that runs.
const NEEDED: [(&str, Cap); 6] = [
    ("irqchip", Cap::Irqchip),
    ("irqfd", Cap::Irqfd),
    ("ioeventfd", Cap::Ioeventfd),
    ("user-memory", Cap::UserMemory),
    ("tss-address", Cap::SetTssAddr),
    ("cpuid", Cap::ExtCpuid),
];

/// KVM cannot be used. In words, with what to do where there is something to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unusable {
    pub reason: String,
    runs_stock_guests: bool,
}

impl Unusable {
    /// Whether another hypervisor has the processor.
    pub fn is_busy(&self) -> bool {
        self.reason == busy()
    }

    /// As another process would report it.
    pub fn new(reason: &str) -> Self {
        unusable(reason.into())
    }

    /// That another hypervisor has the processor.
    pub fn busy() -> Self {
        unusable(busy())
    }

    /// Whether the test guest ran all the same: then another VMM, which needs less of KVM, may use it.
    pub fn runs_stock_guests(&self) -> bool {
        self.runs_stock_guests
    }
}

/// Whether the built-in VMM works here.
///
/// # Errors
/// [`Unusable`]
pub fn probe() -> Result<(), Unusable> {
    let file = open()?;
    // SAFETY: the descriptor is open, owned by `file`, and handed over.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(unusable(format!("{DEVICE} has another API version than {KVM_API_VERSION}")));
    }
    run_guest(&kvm)?;
    match NEEDED.into_iter().find(|(_, cap)| !kvm.check_extension(*cap)) {
        None => Ok(()),
        Some((_, missing)) => {
            let reason = format!("this host's KVM lacks {missing:?}");
            Err(Unusable { reason, runs_stock_guests: true })
        }
    }
}

/// One thing that KVM is asked for, and whether it can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    pub result: Result<(), Unusable>,
}

/// Tries one by one what [`probe`] needs, and what would be good to have, as far as it goes.
pub fn examine() -> Vec<Step> {
    let mut steps = Vec::new();
    let mut note = |name, result: Result<(), Unusable>| {
        let is_ok = result.is_ok();
        steps.push(Step { name, result });
        is_ok
    };
    let device = open();
    note("open", device.as_ref().map(drop).map_err(Unusable::clone));
    let Ok(device) = device else { return steps };
    // SAFETY: the descriptor is open, owned by `device`, and handed over.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    let vm = kvm.create_vm().map_err(failed("make a VM"));
    note("create-vm", vm.as_ref().map(drop).map_err(Unusable::clone));
    let Ok(vm) = vm else { return steps };
    let vcpu = vm.create_vcpu(0).map(drop).map_err(failed("make a vCPU"));
    if !note("create-vcpu", vcpu) || !note("run-guest", run_guest(&kvm)) {
        return steps;
    }
    for (name, cap) in NEEDED.into_iter().chain([("tsc-deadline", Cap::TscDeadlineTimer)]) {
        let missing =
            || Unusable { reason: format!("this host's KVM lacks {cap:?}"), runs_stock_guests: true };
        note(name, if kvm.check_extension(cap) { Ok(()) } else { Err(missing()) });
    }
    steps
}

/// How many bits a guest's physical addresses may have, where KVM says so: on arm64.
pub fn address_bits() -> Option<i32> {
    // SAFETY: the descriptor is open, owned by what `open` gave, and handed over.
    let kvm = unsafe { Kvm::from_raw_fd(open().ok()?.into_raw_fd()) };
    Some(kvm.check_extension_int(Cap::ArmVmIPASize)).filter(|bits| *bits > 0)
}

/// The device, opened for [`probe`] or for a VM.
pub(super) fn open() -> Result<OwnedFd, Unusable> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(unusable(match error.raw_os_error() {
            Some(libc::ENOENT) => format!(
                "there is no {DEVICE}: load the module kvm_intel or kvm_amd, and see that virtualisation is on in the firmware \
                 (or, on a virtual machine, that nested virtualisation is)"
            ),
            Some(libc::EACCES | libc::EPERM) => {
                format!("permission denied at {DEVICE}: run as root, or as a member of its group (kvm)")
            }
            Some(libc::ENODEV | libc::ENXIO) => {
                format!("{DEVICE} has no driver: load the module kvm_intel or kvm_amd")
            }
            Some(libc::EBUSY) => busy(),
            _ => format!("cannot open {DEVICE}: {error}"),
        })),
    }
}

fn run_guest(kvm: &Kvm) -> Result<(), Unusable> {
    let mut guest = Guest::new(kvm)?;
    let result = guest.run();
    // KVM waits some 15 ms, idle, for others to forget a VM that ends. The caller need not.
    let _ = thread::Builder::new().name("probe's end".to_owned()).spawn(move || drop(guest));
    result
}

/// The test guest. Fields are dropped in this order: KVM lets go of the memory before that does.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Self, Unusable> {
        let memory = memory().map_err(|error| unusable(format!("no memory for a test guest: {error}")))?;
        let vm = kvm.create_vm().map_err(failed("make a VM"))?;
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).expect("it starts there") as u64,
            ..Default::default()
        };
        // SAFETY: `memory` outlives `vm` and its only vCPU: in the struct by the order of fields, here by that of variables.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("take memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("make a vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("tell its CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set its CPUID"))?;
        set_long_mode(&vcpu).map_err(failed("enter long mode"))?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }

    fn run(&mut self) -> Result<(), Unusable> {
        let exits: [fn(&VcpuExit<'_>) -> bool; 2] =
            [|exit| matches!(exit, VcpuExit::IoOut(PORT, _)), |exit| matches!(exit, VcpuExit::Hlt)];
        for expected in exits {
            match self.vcpu.run().map_err(failed("run a guest"))? {
                exit if expected(&exit) => {}
                VcpuExit::InternalError => {
                    return Err(unusable(format!(
                        "{DEVICE} is a para-virtual KVM, which emulates instructions one by one and does not know all: no stock guest runs on it"
                    )));
                }
                exit => return Err(unusable(format!("KVM cannot run a test guest ({exit:?})"))),
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Unusable {
    move |error| match error.errno() {
        libc::EBUSY => unusable(busy()),
        _ => unusable(format!("KVM does not {what}: {error}")),
    }
}

const MEMORY: usize = 0x10000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGES: u64 = 0x3000;
const CODE: u64 = 0x4000;
const PORT: u16 = 0x10;

/// Page tables that map the first 2 MiB onto themselves, and `pxor xmm0, xmm0; out PORT, al; hlt`.
fn memory() -> io::Result<Memory> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(io::Error::other)?;
    let entries = [
        (PML4, PDPT | PRESENT_WRITABLE),
        (PDPT, PAGES | PRESENT_WRITABLE),
        (PAGES, LARGE | PRESENT_WRITABLE),
    ];
    for (table, entry) in entries {
        memory.write_obj(entry, GuestAddress(table)).map_err(io::Error::other)?;
    }
    let code = [0x66, 0x0f, 0xef, 0xc0, 0xe6, PORT as u8, 0xf4];
    memory.write_slice(&code, GuestAddress(CODE)).map_err(io::Error::other)?;
    Ok(memory)
}

fn set_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    /// PE, MP, ET, NE, WP, PG.
    const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    /// PAE, OSFXSR, OSXMMEXCPT.
    const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
    /// LME, LMA.
    const EFER: u64 = 1 << 8 | 1 << 10;
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x8, type_: 0xb, l: 1, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = kvm_segment { selector: 0x10, type_: 0x3, db: 1, ..flat };
    }
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rflags: 1 << 1, ..Default::default() })
}

fn busy() -> String {
    "another hypervisor has taken the processor\'s virtualisation: stop VirtualBox, VMware or the like"
        .to_owned()
}

fn unusable(reason: String) -> Unusable {
    Unusable { reason, runs_stock_guests: false }
}
