//! `rt vmm`, the process that is the virtual machine: from its descriptors to the guest's end, in one line from top to bottom.
//!
//! Threads: this one boots, then serves the devices (`main`); one for each vCPU (`vcpu0`, …). The first vCPU to see the guest's
//! end says so to `main`, which returns; the process's exit ends the other threads wherever they are.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};
use std::thread;

use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use nix::sys::eventfd::EfdFlags;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::acpi::Tables;
use super::image::Target;
use super::machine::Machine;
use super::memory::{MAX_DEVICES, TSS, gsi, registers};
use super::plug::{self, Slots};
use super::{End, Error, cpuid, memory, vcpu};
use crate::devices::balloon::Balloon;
use crate::devices::fs::Fs;
use crate::devices::mem::{Control, Mem};
use crate::devices::mmio::{MmioTransport, Wiring};
use crate::devices::rng::Rng;
use crate::devices::serial::{self, Serial};
use crate::devices::vsock::VsockDevice;
use crate::devices::vsock_virtio::VsockVirtio;
use crate::devices::{self, EventLoop, Interrupt, Memory, VirtioDevice, Watch};
use crate::hypervisor::{BLOCK_SLOTS, NETWORK_SLOTS, VmSpec};
use crate::jail::{self, Jail, Limits};
use crate::sys::{clock, fd};

/// Descriptors are for vsock's connections; of threads vhost-net has one for each pair of queues. No file is made that could grow but guest memory, which has its size.
const LIMITS: Limits = Limits { open_files: 4096, threads: 128, file_size: None };
/// Of which a few pages are used.
const VCPU_STACK: usize = 128 * 1024;

/// What `Kvm::launch` hands over, as descriptors from 3 on, in this order.
pub struct Inherited {
    spec: File,
    kvm: File,
    kernel: File,
    initramfs: File,
    share: UnixStream,
    vsock: UnixListener,
    uplink: UnixStream,
    control: UnixListener,
}

impl Inherited {
    fn take() -> Result<Self, Error> {
        let mut numbers = 3..;
        let mut next = || {
            let number = numbers.next().expect("an endless range");
            fd::inherited(number).map_err(Error::host("take over descriptors: this verb is rt's own"))
        };
        Ok(Self {
            spec: next()?.into(),
            kvm: next()?.into(),
            kernel: next()?.into(),
            initramfs: next()?.into(),
            share: next()?.into(),
            vsock: next()?.into(),
            uplink: next()?.into(),
            control: next()?.into(),
        })
    }
}

/// Boots the guest and runs it to its end.
pub fn run() -> Result<End, Error> {
    let mut timeline = Timeline::default();
    timeline.mark("vmm.exec");
    let Inherited { mut spec, kvm, kernel, initramfs, share, vsock, uplink, control } = Inherited::take()?;
    let spec = read_spec(&mut spec)?;
    jail::enter(&Jail::sealed(LIMITS))?;
    timeline.mark("vmm.jailed");

    // SAFETY: the descriptor is owned and passed on.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    let vm = kvm.create_vm().map_err(Error::kvm("make a VM"))?;
    let (memory, file) = memory::allocate(spec.memory_mib, spec.max_memory_mib)?;
    // Before the interrupt controllers: afterwards KVM would wait several ms for readers of what it replaces.
    memory::register(&vm, &memory)?;
    vm.set_tss_address(TSS).map_err(Error::kvm("place the TSS"))?;
    vm.create_irq_chip().map_err(Error::kvm("make interrupt controllers"))?;
    timeline.mark("vmm.created");

    let target = Target { memory: &memory, file: &file, memory_mib: spec.memory_mib };
    let image = target.load(kernel, &initramfs, (&spec.kernel, &spec.initramfs))?;
    timeline.mark("vmm.loaded");

    let event_loop = EventLoop::new()?;
    let fs = Fs::new(&spec.share_tag, share, &event_loop.events(0))?;
    let vsock = VsockDevice::new(rt_proto::GUEST_CID.into(), vsock, uplink).map_err(devices::Error::from)?;
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(fs), Box::new(VsockVirtio::new(vsock))];
    if spec.entropy {
        devices.push(Box::new(Rng::default()));
    }
    if spec.page_reporting {
        devices.push(Box::new(Balloon::default()));
    }
    let mut plug = None;
    if let Some((start, length)) = memory::plug_region(spec.memory_mib, spec.max_memory_mib) {
        let control = Control::default();
        plug = Some((devices.len() as u32, control.clone()));
        devices.push(Box::new(Mem::new(start, length, control)));
    }
    let first_slot = devices.len();
    if spec.network {
        devices.extend(plug::placeholders(NETWORK_SLOTS));
    }
    let first_block = devices.len();
    devices.extend(plug::placeholders(spec.block_slots));
    assert!(devices.len() <= MAX_DEVICES, "the list of devices is this file's");
    let attach = |(index, device)| attach(index, device, &vm, &memory, &event_loop);
    let devices = devices.into_iter().enumerate().map(attach).collect::<Result<Vec<_>, _>>()?;
    let serial = Serial::new(serial_interrupt(&vm, spec.console)?);

    let tables = Tables { vcpus: spec.max_vcpus, devices: devices.len(), serial: spec.console };
    let rsdp = tables.write(&memory)?;
    target.write_start_info(&image, &command_line(&spec), rsdp)?;

    let supported = cpuid::supported(&kvm, spec.max_vcpus)?;
    let vcpus =
        (0..spec.max_vcpus).map(|id| vcpu::create(&vm, id, &supported)).collect::<Result<Vec<_>, _>>()?;
    vcpu::start_at(&vcpus[0], image.entry)?;
    timeline.mark("vmm.run");
    drop(timeline);

    let machine = Arc::new(Machine::new(devices, serial));
    let (ended, _watch) = start(vcpus, &machine, &event_loop)?;
    let slots = Slots {
        listener: control,
        vm,
        memory,
        event_loop: event_loop.clone(),
        first: first_slot,
        first_block,
        used_blocks: std::array::from_fn(|slot| slot >= spec.block_slots),
        plug,
        used: Default::default(),
    };
    let end = serve(&machine, slots, &event_loop, &ended)?;
    Timeline::default().mark("vmm.end");
    Ok(end)
}

/// Marks for the parent, which collects them. Printed in one write when dropped: each would wake the parent.
#[derive(Default)]
struct Timeline(String);

impl Timeline {
    fn mark(&mut self, name: &str) {
        self.0.push_str(&format!("@{name} {}\n", clock::monotonic_ns()));
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        eprint!("{}", self.0);
    }
}

fn read_spec(file: &mut File) -> Result<VmSpec, Error> {
    let mut json = String::new();
    file.read_to_string(&mut json).map_err(Error::host("read what VM to start"))?;
    let spec: VmSpec = serde_json::from_str(&json).map_err(Error::Spec)?;
    let VmSpec { vcpus, max_vcpus, memory_mib, max_memory_mib, .. } = spec;
    let in_range = 1 <= vcpus && vcpus <= max_vcpus && max_vcpus <= 32;
    let in_range = in_range && 32 <= memory_mib && memory_mib <= max_memory_mib && max_memory_mib <= 65_536;
    let in_range = in_range && spec.block_slots <= BLOCK_SLOTS;
    if in_range { Ok(spec) } else { Err(Error::Shape { vcpus, max_vcpus, memory_mib, max_memory_mib }) }
}

/// What this machine needs the kernel to know, then what the caller wants.
fn command_line(spec: &VmSpec) -> String {
    // No PCI bus, no PIT to check the timer against; of a console only what a panic says. keep: beyond the early boot.
    let machine = "panic=-1 pci=off no_timer_check noreplace-smp cryptomgr.notests dummy.numdummies=0";
    let console = match spec.console {
        true => "console=ttyS0 earlyprintk=serial,0x3f8,115200",
        false => "quiet loglevel=3 8250.nr_uarts=0 earlyprintk=serial,0x3f8,115200,keep",
    };
    format!("{machine} {console} {} {}", spec.growth_parameters(), spec.kernel_parameters)
}

/// Connects device number `index` with the guest: registers, a kick for each queue, an interrupt line.
pub fn attach(
    index: usize,
    device: Box<dyn VirtioDevice>,
    vm: &VmFd,
    memory: &Memory,
    event_loop: &EventLoop,
) -> Result<MmioTransport, Error> {
    let eventfd =
        || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Arc::new).map_err(Error::host("make an eventfd"));
    let interrupt = eventfd()?;
    let queues = device.queue_sizes().len() as u32;
    // Without queues it is a placeholder, which leaves the line to what comes in its place.
    if queues > 0 {
        vm.register_irqfd(&interrupt, gsi(index)).map_err(Error::kvm("wire an interrupt"))?;
    }
    let notify = IoEventAddress::Mmio(registers(index) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    let mut kicks = Vec::new();
    for queue in 0..queues {
        let kick = eventfd()?;
        vm.register_ioevent(&kick, &notify, queue).map_err(Error::kvm("wire a queue"))?;
        kicks.push(kick);
    }
    let events = event_loop.events(index as u32);
    let interrupt = Interrupt(interrupt);
    Ok(MmioTransport::new(device, Wiring { memory: memory.clone(), events, interrupt, kicks }))
}

/// User space in the guest needs the interrupt to write to its console.
fn serial_interrupt(vm: &VmFd, console: bool) -> Result<Option<EventFd>, Error> {
    if !console {
        return Ok(None);
    }
    let interrupt = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("make an eventfd"))?;
    vm.register_irqfd(&interrupt, serial::GSI).map_err(Error::kvm("wire an interrupt"))?;
    Ok(Some(interrupt))
}

/// Where the first thread to see it puts the guest's end.
type Ended = Arc<OnceLock<End>>;
/// Device number of the event that there is one.
const END: u32 = u32::MAX;
/// Device number of the control socket.
const CONTROL: u32 = u32::MAX - 1;

fn start(
    vcpus: Vec<VcpuFd>,
    machine: &Arc<Machine>,
    event_loop: &EventLoop,
) -> Result<(Ended, Watch), Error> {
    let ended = Ended::default();
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = nix::sys::eventfd::EventFd::from_flags(flags)
        .map_err(|errno| Error::host("make an eventfd")(errno.into()))?;
    let watch = event_loop.events(END).watch(&wake, 0)?;
    let wake = Arc::new(wake);
    for (id, mut vcpu) in vcpus.into_iter().enumerate() {
        let (machine, ended, wake) = (Arc::clone(machine), Arc::clone(&ended), Arc::clone(&wake));
        let thread = thread::Builder::new().name(format!("vcpu{id}")).stack_size(VCPU_STACK);
        let run = move || {
            // A second end is no news.
            let _ = ended.set(vcpu::run(&mut vcpu, &machine));
            let _ = wake.write(1);
        };
        thread.spawn(run).map_err(Error::host("start a vCPU's thread"))?;
    }
    Ok((ended, watch))
}

fn serve(
    machine: &Machine,
    mut slots: Slots,
    event_loop: &EventLoop,
    ended: &OnceLock<End>,
) -> Result<End, Error> {
    slots.listener.set_nonblocking(true).map_err(Error::host("listen for control"))?;
    let _watch = event_loop.events(CONTROL).watch(&slots.listener, 0)?;
    loop {
        event_loop.wait(|device, source| {
            if device == CONTROL {
                slots.serve(machine);
            } else if let Some(end) = machine.process(device, source) {
                let _ = ended.set(end);
            }
            Ok::<(), Error>(())
        })?;
        if let Some(end) = ended.get() {
            machine.flush();
            return Ok(end.clone());
        }
    }
}
