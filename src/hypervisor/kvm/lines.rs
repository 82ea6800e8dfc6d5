//! What connects a device with its guest in KVM: an ioeventfd for each kick, an irqfd for each interrupt, and the VM's table of where interrupts
//! go (Documentation/virt/kvm/api.rst §4.59, §4.75, §4.52).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1 as Target, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use crate::devices::pci::{Lines, MAX_VECTORS, Message, NOTIFY_MULTIPLIER};
use crate::devices::{self, Interrupt, serial};

/// Number of the first interrupt that is no pin of the I/O APIC's.
const FIRST_MESSAGE: u32 = 24;

/// Where a VM's interrupts go. KVM takes the whole table at once, and waits for all who read the old one.
#[derive(Clone)]
pub struct Routes {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Table>>,
}

struct Table {
    messages: BTreeMap<u32, Message>,
    /// Whether KVM is told of each change.
    live: bool,
}

impl Routes {
    /// KVM is not told of them before they [go live](Self::go_live).
    pub fn new(vm: Arc<VmFd>) -> Self {
        let table = Table { messages: BTreeMap::new(), live: false };
        Self { vm, table: Arc::new(table.into()) }
    }

    /// # Errors
    /// KVM's
    pub fn go_live(&self) -> Result<(), Error> {
        let mut table = self.lock();
        table.live = true;
        self.tell(&table).map_err(Error::kvm("route interrupts"))
    }

    fn set(&self, number: u32, message: Message) -> Result<(), kvm_ioctls::Error> {
        let mut table = self.lock();
        if table.messages.insert(number, message) != Some(message) && table.live {
            self.tell(&table)?;
        }
        Ok(())
    }

    fn tell(&self, table: &Table) -> Result<(), kvm_ioctls::Error> {
        let messages = table.messages.iter().map(|(number, message)| message_entry(*number, *message));
        let entries: Vec<_> = [serial_entry()].into_iter().chain(messages).collect();
        let routing = KvmIrqRouting::from_entries(&entries).expect("far fewer than KVM takes");
        self.vm.set_gsi_routing(&routing)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The only pin of the I/O APIC's that is used.
fn serial_entry() -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: serial::GSI };
    kvm_irq_routing_entry {
        gsi: serial::GSI,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: Target { irqchip },
        ..Default::default()
    }
}

fn message_entry(number: u32, Message { address, data }: Message) -> kvm_irq_routing_entry {
    let mut msi = kvm_irq_routing_msi { address_lo: address as u32, data, ..Default::default() };
    msi.address_hi = (address >> 32) as u32;
    kvm_irq_routing_entry { gsi: number, type_: KVM_IRQ_ROUTING_MSI, u: Target { msi }, ..Default::default() }
}

/// Those of one device.
pub struct DeviceLines {
    routes: Routes,
    /// The device's number.
    device: usize,
    kicks: Vec<Arc<EventFd>>,
    interrupts: Vec<Interrupt>,
    /// Where kicks are taken now.
    kicked_at: Option<u64>,
    /// By vector, whether it reaches the guest now.
    sent: [bool; MAX_VECTORS],
}

impl DeviceLines {
    pub fn new(routes: Routes, device: usize, kicks: Vec<Arc<EventFd>>, interrupts: Vec<Interrupt>) -> Self {
        Self { routes, device, kicks, interrupts, kicked_at: None, sent: [false; MAX_VECTORS] }
    }
}

impl Lines for DeviceLines {
    fn take_kicks(&mut self, first: Option<u64>) -> Result<(), devices::Error> {
        let places = |first: u64| {
            (0..).map(move |queue| IoEventAddress::Mmio(first + queue * NOTIFY_MULTIPLIER)).zip(&self.kicks)
        };
        // Whatever is written, and however much: KVM then need not look at the instruction where the processor tells the address.
        for (place, kick) in self.kicked_at.into_iter().flat_map(places) {
            // It fails for what was not taken.
            let _ = self.routes.vm.unregister_ioevent(kick, &place, NoDatamatch);
        }
        for (place, kick) in first.into_iter().flat_map(places) {
            match self.routes.vm.register_ioevent(kick, &place, NoDatamatch) {
                // The guest has laid this device over another one, whose kick it is.
                Err(error) if error.errno() == libc::EEXIST => {}
                other => other.map_err(failed("wire a queue"))?,
            }
        }
        self.kicked_at = first;
        Ok(())
    }

    fn send(&mut self, vector: usize, message: Option<Message>) -> Result<(), devices::Error> {
        let number = FIRST_MESSAGE + (self.device * MAX_VECTORS + vector) as u32;
        let (vm, interrupt) = (&self.routes.vm, &self.interrupts[vector].0);
        if let Some(message) = message {
            self.routes.set(number, message).map_err(failed("route an interrupt"))?;
        }
        match (self.sent[vector], message.is_some()) {
            (false, true) => vm.register_irqfd(interrupt, number),
            // What comes meanwhile stays in the eventfd.
            (true, false) => vm.unregister_irqfd(interrupt, number),
            _ => Ok(()),
        }
        .map_err(failed("wire an interrupt"))?;
        self.sent[vector] = message.is_some();
        Ok(())
    }
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> devices::Error {
    move |error| devices::Error::host(what)(std::io::Error::from_raw_os_error(error.errno()))
}
