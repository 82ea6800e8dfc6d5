//! `rt vmm`, the process that is the virtual machine: from its descriptors to the guest's end, in one line from top to bottom.
//!
//! Threads: this one boots, then serves the devices (`main`); one for each vCPU (`vcpu0`, …). The first vCPU to see the guest's
//! end says so to `main`, which returns; the process's exit ends the other threads wherever they are.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use nix::sys::eventfd::EfdFlags;
use vmm_sys_util::eventfd::EventFd;

use super::acpi::Tables;
use super::image::Target;
use super::lines::{DeviceLines, Routes};
use super::machine::Machine;
use super::memory::{BARS, TSS, bar};
use super::pause::Pause;
use super::plug::Slots;
use super::snapshot::{self, Recorder, State};
use super::template::Answer;
use super::working_set::WorkingSet;
use super::{End, Error, Order, TemplateUse, cpuid, memory, registers, vcpu};
use crate::devices::balloon::Balloon;
use crate::devices::fs::Fs;
use crate::devices::mem::{Control, Mem};
use crate::devices::pci::config_space::{ConfigSpaces, MAX_DEVICES};
use crate::devices::pci::{self, PciTransport, Wiring};
use crate::devices::rng::Rng;
use crate::devices::serial::{self, Serial};
use crate::devices::vsock::VsockDevice;
use crate::devices::vsock_virtio::VsockVirtio;
use crate::devices::{self, EventLoop, Interrupt, Memory, VirtioDevice, Watch};
use crate::hypervisor::{BLOCK_SLOTS, NETWORK_SLOTS, VmSpec};
use crate::jail::{self, Jail, Limits};
use crate::sys::{self, clock, fd};

/// Descriptors are for vsock's connections; of threads vhost-net has one for each pair of queues. No file is made that could grow but guest memory, which has its size.
const LIMITS: Limits = Limits { open_files: 4096, threads: 128, file_size: None };
/// Of which a few pages are used.
const VCPU_STACK: usize = 128 * 1024;

/// What `Kvm::launch` hands over, as descriptors from 3 on, in this order.
pub struct Inherited {
    order: File,
    kvm: File,
    kernel: File,
    initramfs: File,
    share: UnixStream,
    vsock: UnixListener,
    uplink: UnixStream,
    control: UnixListener,
}

impl Inherited {
    const COUNT: i32 = 8;

    fn take() -> Result<Self, Error> {
        let mut numbers = 3..;
        let mut next = || {
            let number = numbers.next().expect("an endless range");
            fd::inherited(number).map_err(Error::host("take over descriptors: this verb is rt's own"))
        };
        Ok(Self {
            order: next()?.into(),
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

/// A template's file, and whom to tell of it.
struct TemplateFds {
    file: File,
    parent: UnixStream,
}

impl TemplateFds {
    /// They come behind the others.
    fn take() -> Result<Self, Error> {
        let take = |number| fd::inherited(number).map_err(Error::host("take over a template"));
        Ok(Self { file: take(3 + Inherited::COUNT)?.into(), parent: take(4 + Inherited::COUNT)?.into() })
    }
}

/// Boots the guest, or lets it go on from a template, and runs it to its end.
pub fn run() -> Result<End, Error> {
    let mut timeline = Timeline::default();
    timeline.mark("vmm.exec");
    // What making a template takes would otherwise stay.
    sys::memory::stay_small();
    let Inherited { mut order, kvm, kernel, initramfs, share, vsock, uplink, control } = Inherited::take()?;
    let Order { spec, template } = read_order(&mut order)?;
    let (start, make) = match template {
        None => (None, None),
        Some(TemplateUse::Start) => (Some(TemplateFds::take()?), None),
        Some(TemplateUse::Make) => (None, Some(TemplateFds::take()?)),
    };
    // Open to the end: the file server ends with its last connection, this process is killed then, and may have a reason to tell first.
    let _ = share.try_clone().map_err(Error::host("keep the file server"))?.into_raw_fd();
    let pagemap = make.as_ref().and_then(|_| File::open("/proc/self/pagemap").ok());
    jail::enter(&Jail::sealed(LIMITS))?;
    timeline.mark("vmm.jailed");

    // SAFETY: the descriptor is owned and passed on.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    let vm = Arc::new(kvm.create_vm().map_err(Error::kvm("make a VM"))?);
    let (memory, file) = memory::allocate(spec.memory_mib, spec.max_memory_mib)?;
    // Before the interrupt controllers: afterwards KVM would wait several ms for readers of what it replaces.
    let config_spaces = ConfigSpaces::new()?;
    memory::register(&vm, &memory, &config_spaces)?;
    vm.set_tss_address(TSS).map_err(Error::kvm("place the TSS"))?;
    vm.create_irq_chip().map_err(Error::kvm("make interrupt controllers"))?;
    let supported = cpuid::supported(&kvm, spec.max_vcpus)?;
    timeline.mark("vmm.created");

    let memory_bytes = u64::from(spec.memory_mib) << 20;
    let snapshot = start.and_then(|TemplateFds { file, parent }| {
        let state = State::read(&file, memory_bytes, &supported);
        if state.is_none() {
            // Who started this process may have ended.
            let _ = Answer::Not("it was made by another KVM".into()).send(&parent, None);
        }
        Some((file, state?))
    });

    let dedicated = snapshot.as_ref().map_or(&[][..], |(_, state)| &state.dedicated);
    let target = Target { memory: &memory, file: &file, memory_mib: spec.memory_mib };
    let image = match &snapshot {
        Some((template, _)) => {
            snapshot::load(template, &file, &memory, dedicated)?;
            announce(&uplink)?;
            None
        }
        None => Some(target.load(&kernel, &initramfs, (&spec.kernel, &spec.initramfs))?),
    };
    timeline.mark(if image.is_some() { "vmm.loaded" } else { "vmm.resumed" });

    let event_loop = EventLoop::new()?;
    let fs = Fs::new(&spec.share_tag, share, dedicated.to_vec(), &event_loop.events(0))?;
    let vsock = VsockDevice::new(rt_proto::GUEST_CID.into(), vsock, uplink).map_err(devices::Error::from)?;
    let greeted = vsock.greeted();
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
    let first_block = first_slot + NETWORK_SLOTS;
    assert!(first_block + BLOCK_SLOTS <= MAX_DEVICES, "the list of devices is this file's");
    let bus = Bus { routes: Routes::new(Arc::clone(&vm)), memory: memory.clone(), config_spaces, event_loop };
    let mut states = snapshot.as_ref().map(|(_, state)| state.devices.iter().cloned());
    let attach = |(index, device)| bus.attach(index, device, states.as_mut().and_then(Iterator::next));
    let devices = devices.into_iter().enumerate().map(attach).collect::<Result<Vec<_>, _>>()?;
    bus.routes.go_live()?;
    let serial = Serial::new(serial_interrupt(&vm, spec.console)?);

    let vcpus =
        (0..spec.max_vcpus).map(|id| vcpu::create(&vm, id, &supported)).collect::<Result<Vec<_>, _>>()?;
    match (&image, &snapshot) {
        (Some(image), _) => {
            let tables = Tables { vcpus: spec.max_vcpus, serial: spec.console };
            let rsdp = tables.write(&memory)?;
            target.write_start_info(image, &command_line(&spec), rsdp)?;
            vcpu::start_at(&vcpus[0], image.entry)?;
        }
        (None, Some((_, state))) => {
            state.give(&vm)?;
            state.vcpus.iter().zip(&vcpus).try_for_each(|(registers, vcpu)| registers.give(vcpu))?;
            devices.iter().try_for_each(PciTransport::wake)?;
        }
        (None, None) => unreachable!("without a template there is an image"),
    }
    timeline.mark("vmm.run");
    drop(timeline);

    let machine = Arc::new(Machine::new(devices, serial));
    let pause = match &make {
        Some(_) => Some(Arc::new(Pause::new(vcpus.len(), registers::msr_numbers(&kvm)?)?)),
        None => None,
    };
    let soon = snapshot.map_or(vec![], |(template, state)| {
        WorkingSet::read(&template, memory_bytes).map_or(vec![], |set| set.ahead(&state.lively))
    });
    let (ended, _watch, threads) = start_vcpus(vcpus, soon, &machine, pause.as_ref(), &bus.event_loop)?;
    let recording = match (make, pause) {
        (Some(TemplateFds { file: template, parent }), Some(pause)) => {
            let done = signal()?;
            let watch = bus.event_loop.events(RECORDED).watch(&done, 0)?;
            let recorder = Recorder {
                template,
                parent,
                pagemap,
                greeted,
                vm,
                memory,
                file,
                kernel,
                initramfs,
                cpuid: supported,
                machine: Arc::clone(&machine),
                pause,
                vcpus: threads,
                done,
            };
            recorder.start()?;
            Some(watch)
        }
        _ => None,
    };
    let event_loop = bus.event_loop.clone();
    let slots = Slots {
        listener: control,
        bus,
        first: first_slot,
        first_block,
        used_blocks: std::array::from_fn(|slot| slot >= spec.block_slots),
        plug,
        used: Default::default(),
    };
    let end = serve(&machine, slots, recording, &event_loop, &ended)?;
    Timeline::default().mark("vmm.end");
    Ok(end)
}

/// A guest from a template has greeted already: the same words, from here.
fn announce(uplink: &UnixStream) -> Result<(), Error> {
    let beacon = rt_proto::Beacon { version: rt_proto::PROTOCOL_VERSION };
    let send = || -> io::Result<()> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(&beacon.to_bytes())?;
        fd::send(uplink.as_fd(), &[0], theirs.as_fd())
    };
    send().map_err(Error::host("tell that the guest is up"))
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

fn read_order(file: &mut File) -> Result<Order, Error> {
    let mut json = String::new();
    file.read_to_string(&mut json).map_err(Error::host("read what VM to start"))?;
    let order: Order = serde_json::from_str(&json).map_err(Error::Spec)?;
    let VmSpec { vcpus, max_vcpus, memory_mib, max_memory_mib, .. } = order.spec;
    let in_range = 1 <= vcpus && vcpus <= max_vcpus && max_vcpus <= 32;
    let in_range = in_range && 32 <= memory_mib && memory_mib <= max_memory_mib && max_memory_mib <= 65_536;
    let in_range = in_range && order.spec.block_slots <= BLOCK_SLOTS;
    if in_range { Ok(order) } else { Err(Error::Shape { vcpus, max_vcpus, memory_mib, max_memory_mib }) }
}

/// What this machine needs the kernel to know, then what the caller wants.
fn command_line(spec: &VmSpec) -> String {
    // noearly: nobody asks for quirks of chips by ports that are not there. Of a console only what a panic says. keep: beyond the early boot.
    // reboot: a kernel with EFI takes reduced ACPI for a sign of that, and falls back to a BIOS that is not there.
    let machine = "reboot=a pci=noearly";
    let console = match spec.console {
        true => "console=ttyS0 earlyprintk=serial,0x3f8,115200",
        false => "quiet loglevel=3 8250.nr_uarts=0 earlyprintk=serial,0x3f8,115200,keep",
    };
    format!("{machine} {} {console} {}", spec.parameters(), spec.kernel_parameters)
}

/// What all devices are attached to.
pub struct Bus {
    routes: Routes,
    pub memory: Memory,
    config_spaces: ConfigSpaces,
    event_loop: EventLoop,
}

impl Bus {
    /// Connects device number `index` with the guest. With `state` it goes on as the device that was in that state.
    pub fn attach(
        &self,
        index: usize,
        device: Box<dyn VirtioDevice>,
        state: Option<pci::State>,
    ) -> Result<PciTransport, Error> {
        let queues = device.queue_sizes().len();
        let kicks = (0..queues).map(|_| devices::eventfd().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        // One is the configuration's.
        let interrupts = (0..=queues).map(|_| Interrupt::new()).collect::<Result<Vec<_>, _>>()?;
        let lines = DeviceLines::new(self.routes.clone(), index, kicks.clone(), interrupts.clone());
        let wiring = Wiring {
            memory: self.memory.clone(),
            config_space: self.config_spaces.of(index),
            bars: BARS,
            events: self.event_loop.events(index as u32),
            kicks,
            interrupts,
            lines: Box::new(lines),
        };
        match state {
            None => Ok(PciTransport::new(device, bar(index), wiring)),
            Some(state) => Ok(PciTransport::resumed(device, state, wiring)?),
        }
    }
}

/// User space in the guest needs the interrupt to write to its console.
fn serial_interrupt(vm: &VmFd, console: bool) -> Result<Option<EventFd>, Error> {
    if !console {
        return Ok(None);
    }
    let interrupt = devices::eventfd()?;
    vm.register_irqfd(&interrupt, serial::GSI).map_err(Error::kvm("wire an interrupt"))?;
    Ok(Some(interrupt))
}

/// Where the first thread to see it puts the guest's end.
type Ended = Arc<OnceLock<End>>;
/// Device number of the event that there is one.
const END: u32 = u32::MAX;
/// Device number of the control socket.
const CONTROL: u32 = u32::MAX - 1;
/// Device number of the event that the machine's template is done.
const RECORDED: u32 = u32::MAX - 2;

/// For a thread to wake the first one.
fn signal() -> Result<nix::sys::eventfd::EventFd, Error> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let signal = nix::sys::eventfd::EventFd::from_flags(flags);
    signal.map_err(|errno| Error::host("make an eventfd")(errno.into()))
}

fn start_vcpus(
    vcpus: Vec<VcpuFd>,
    mut soon: Vec<Range<u64>>,
    machine: &Arc<Machine>,
    pause: Option<&Arc<Pause>>,
    event_loop: &EventLoop,
) -> Result<(Ended, Watch, Vec<JoinHandle<()>>), Error> {
    let ended = Ended::default();
    let wake = signal()?;
    let watch = event_loop.events(END).watch(&wake, 0)?;
    let wake = Arc::new(wake);
    let mut threads = Vec::with_capacity(vcpus.len());
    for (id, mut vcpu) in vcpus.into_iter().enumerate() {
        let (machine, ended, wake) = (Arc::clone(machine), Arc::clone(&ended), Arc::clone(&wake));
        let pause = pause.cloned();
        let thread = thread::Builder::new().name(format!("vcpu{id}")).stack_size(VCPU_STACK);
        // The first one runs alone for now.
        let soon = std::mem::take(&mut soon);
        let run = move || {
            vcpu::map_ahead(&vcpu, &soon);
            // A second end is no news.
            let _ = ended.set(vcpu::run(id, &mut vcpu, &machine, pause.as_deref()));
            let _ = wake.write(1);
        };
        threads.push(thread.spawn(run).map_err(Error::host("start a vCPU's thread"))?);
    }
    Ok((ended, watch, threads))
}

fn serve(
    machine: &Machine,
    mut slots: Slots,
    mut recording: Option<Watch>,
    event_loop: &EventLoop,
    ended: &OnceLock<End>,
) -> Result<End, Error> {
    slots.listener.set_nonblocking(true).map_err(Error::host("listen for control"))?;
    let mut control = None;
    loop {
        // Nothing is plugged while a template is made: it would be in that.
        if recording.is_none() && control.is_none() {
            control = Some(event_loop.events(CONTROL).watch(&slots.listener, 0)?);
        }
        event_loop.wait(|device, source| {
            if device == CONTROL {
                slots.serve(machine);
            } else if device == RECORDED {
                recording = None;
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
