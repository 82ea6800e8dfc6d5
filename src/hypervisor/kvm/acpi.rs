//! ACPI tables (ACPI 6.4): how both kinds of kernel find processors, interrupts, devices, and the way to switch off.
//!
//! Hardware-reduced: no legacy timer, interrupt controller or event registers, so nothing of it has to be emulated or probed.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::Error;
use super::memory::{ACPI, ACPI_MAX, BARS, CONFIG_SPACES, CONFIG_SPACES_SIZE, IO_APIC, LOCAL_APIC};
use crate::devices::{Memory, serial};

const OEM: [u8; 6] = *b"RT    ";
const OEM_TABLE: [u8; 8] = *b"RTVM    ";
const OEM_REVISION: u32 = 1;

/// I/O port of the reset register and the sleep control register, §4.8.3.6, §4.8.3.7.
pub const POWER_PORT: u16 = 0x600;
pub const RESET: u8 = 1;
/// SLP_EN, and \_S5's sleep type in SLP_TYP.
pub const SLEEP_S5: u8 = 1 << 5 | S5 << 2;
const S5: u8 = 5;

/// §5.2.9.3: no VGA, no CMOS clock.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// What the tables describe.
pub struct Tables {
    pub vcpus: u8,
    pub serial: bool,
}

impl Tables {
    /// Writes the tables and returns where they start (RSDP).
    pub fn write(&self, memory: &Memory) -> Result<GuestAddress, Error> {
        let mut place = Place { memory, next: ACPI };
        let dsdt = place.put(&self.dsdt())?;
        let fadt = place.put(&fadt(dsdt))?;
        let madt = place.put(&self.madt())?;
        let mcfg = place.put(&mcfg())?;
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        xsdt.add_entry(fadt.raw_value());
        xsdt.add_entry(madt.raw_value());
        xsdt.add_entry(mcfg.raw_value());
        let xsdt = place.put(&xsdt)?;
        place.put(&Rsdp::new(OEM, xsdt.raw_value()))
    }

    fn dsdt(&self) -> Sdt {
        let mut aml = Vec::new();
        let s5: [&dyn Aml; 1] = [&S5];
        Name::new("_S5_".into(), &Package::new(s5.to_vec())).to_aml_bytes(&mut aml);
        bus(&mut aml);
        if self.serial {
            serial_port(&mut aml);
        }
        let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
        dsdt.append_slice(&aml);
        dsdt
    }

    fn madt(&self) -> MADT {
        let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
        for id in 0..self.vcpus {
            madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
        }
        madt.add_structure(IoApic::new(0, IO_APIC, 0));
        madt
    }
}

/// Segment 0, bus 0: the devices' configuration spaces (PCI Firmware Specification 3.2 §4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(CONFIG_SPACES, 0, 0, 0);
    mcfg
}

/// A PCI bus without interrupt lines, and beside it where its configuration spaces are: Linux wants them reserved.
fn bus(aml: &mut Vec<u8>) {
    let number = AddressSpace::new_bus_number(0u16, 0u16);
    let (first, last) = (BARS.start as u32, (BARS.end - 1) as u32);
    let bars = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    device("PCI0", &EISAName::new("PNP0A03"), &[&number, &bars], aml);
    let spaces = Memory32Fixed::new(true, CONFIG_SPACES as u32, CONFIG_SPACES_SIZE);
    device("PCFG", &EISAName::new("PNP0C02"), &[&spaces], aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    let ports = IO::new(serial::PORTS.start, serial::PORTS.start, 1, serial::PORTS.len() as u8);
    // Edge-triggered.
    let interrupt = Interrupt::new(true, true, false, false, serial::GSI);
    device("COM1", &EISAName::new("PNP0501"), &[&ports, &interrupt], aml);
}

fn device(path: &str, id: &dyn Aml, resources: &[&dyn Aml], aml: &mut Vec<u8>) {
    let id = Name::new("_HID".into(), id);
    let number = Name::new("_UID".into(), &ZERO);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()));
    let device = Device::new(path.into(), vec![&id, &number, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

fn fadt(dsdt: GuestAddress) -> impl Aml {
    let power = GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, POWER_PORT.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt.raw_value())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = power;
    fadt.reset_value = RESET;
    fadt.sleep_control_reg = power;
    fadt.sleep_status_reg = power;
    fadt.finalize()
}

/// Where tables go, one behind the other.
struct Place<'a> {
    memory: &'a Memory,
    next: GuestAddress,
}

impl Place<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<GuestAddress, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let place = self.next;
        let next = (place.raw_value() + bytes.len() as u64).next_multiple_of(16);
        if next > ACPI.raw_value() + ACPI_MAX {
            return Err(Error::memory(()));
        }
        self.memory.write_slice(&bytes, place).map_err(Error::memory)?;
        self.next = GuestAddress(next);
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_machine_has_room_and_right_sums() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let tables = Tables { vcpus: 32, serial: true };
        let rsdp = tables.write(&memory).expect("room");
        let mut bytes = [0u8; 36];
        memory.read_slice(&mut bytes, rsdp).expect("in memory");
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&bytes[..20]), sum(&bytes)), (0, 0));
        let dsdt = tables.dsdt();
        assert_eq!(sum(dsdt.as_slice()), 0);
    }
}
