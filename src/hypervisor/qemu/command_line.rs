//! QEMU's command line: a pure function of [`VmSpec`] and accelerator.
//!
//! The machine is a q35 without what a container's guest never touches, and with qboot for firmware, which jumps straight to
//! the kernel's PVH entry. It starts as fast as microvm and, unlike it, serves a distribution's kernel too, which finds devices by PCI
//! and interrupts by ACPI only (docs/decisions/0004-qemu-machine.md has the figures).

use std::ffi::OsString;

use super::super::{MEMORY_BLOCK_MIB, VmSpec};

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

/// Where the jail has the kernel; relative to its root.
pub const KERNEL: &str = "kernel";
/// Where the jail has the initramfs.
pub const INITRAMFS: &str = "initramfs";
/// Descriptor: vhost-user to the file server.
const SHARE_FD: u32 = 3;
/// Descriptor: vhost-user to vsockd.
const VSOCK_FD: u32 = 4;
/// Descriptor: the socket on which QMP listens.
const MONITOR_FD: u32 = 5;

/// On every machine that QEMU makes here.
///
/// - `reboot=t`: a guest that resets, or panics, does so by a triple fault, which `-no-reboot` makes the end of QEMU.
/// - `earlyprintk`: with `quiet` only what comes before the end of a broken guest. It writes to the port by itself, so the
///   serial driver, which would take the console over and takes 20 ms to find it, is told to look for none.
const REBOOT: &str = "reboot=t";
const QUIET: &str = "quiet earlyprintk=serial,ttyS0,115200,keep 8250.nr_uarts=0";
const VERBOSE: &str = "console=ttyS0 loglevel=7";
const MACHINE: &str = "q35,memory-backend=memory,smm=off,sata=off,smbus=off,vmport=off,hpet=off";
/// The bridge behind which network interfaces and block devices are plugged, and where it is on the root bus. It costs the guest's start 0.1 ms, whatever its
/// number of slots; the agent tells the kernel when to look behind it, so no driver of hot-plugging is needed (pcie_ports).
const NETWORK_BRIDGE: &str = "pcie-pci-bridge,id=network,bus=pcie.0,addr=0x1c";
pub const NETWORK_BUS: &str = "network";
pub const NETWORK_BRIDGE_NUMBER: &str = "1c";
const NETWORK_PARAMETERS: &str = "pcie_ports=compat";
/// The device that memory is plugged by.
pub const PLUGGED: &str = "plugged";
/// No hot-plug slots and sleep states for the kernel to interpret.
const PROPERTIES: [&str; 3] =
    ["ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off", "ICH9-LPC.disable_s3=1", "ICH9-LPC.disable_s4=1"];

/// The guest kernel's command line.
fn kernel_parameters(spec: &VmSpec) -> String {
    let network = if plugs(spec) { NETWORK_PARAMETERS } else { "" };
    let console = if spec.console { VERBOSE } else { QUIET };
    let words = [REBOOT, &spec.parameters(), network, console, &spec.kernel_parameters];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether anything is to be plugged behind the bridge.
fn plugs(spec: &VmSpec) -> bool {
    spec.network || spec.block_slots > 0
}

/// QEMU's arguments, without argv[0].
pub fn arguments(accelerator: Accelerator, spec: &VmSpec) -> Vec<OsString> {
    let mut line = Line::default();
    line.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot").option("-display", "none");
    line.option("-name", format!("rt-{}", spec.id.replace(',', ",,")));
    line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    line.option("-machine", MACHINE);
    for property in PROPERTIES {
        line.option("-global", property);
    }
    line.option("-bios", "qboot.rom");
    match accelerator {
        Accelerator::Kvm => line.option("-accel", "kvm").option("-cpu", "host"),
        // One thread for all vCPUs where there are several: the emulation of kernels that patch their own code while another
        // vCPU runs it is not sound ("Oops: int3").
        Accelerator::Tcg if spec.max_vcpus > 1 => {
            line.option("-accel", "tcg,thread=single").option("-cpu", "max")
        }
        Accelerator::Tcg => line.option("-accel", "tcg").option("-cpu", "max"),
    };
    line.option("-smp", spec.max_vcpus.to_string());
    let more_mib = (spec.max_memory_mib - spec.memory_mib).next_multiple_of(MEMORY_BLOCK_MIB);
    let later = if more_mib > 0 { format!(",maxmem={}M", spec.memory_mib + more_mib) } else { String::new() };
    line.option("-m", format!("{}M{later}", spec.memory_mib));
    line.option("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", spec.memory_mib));
    if more_mib > 0 {
        // Not a page of it is there yet, nor set aside.
        line.option(
            "-object",
            format!("memory-backend-memfd,id=later,size={more_mib}M,share=on,reserve=off"),
        );
    }

    line.option("-kernel", format!("/{KERNEL}")).option("-initrd", format!("/{INITRAMFS}"));
    line.option("-append", kernel_parameters(spec));

    line.option("-chardev", "stdio,id=console,signal=off").option("-serial", "chardev:console");
    line.option("-chardev", format!("socket,id=monitor,fd={MONITOR_FD},server=on,wait=off"));
    line.option("-mon", "chardev=monitor,mode=control");
    line.option("-chardev", format!("socket,id=vsock,fd={VSOCK_FD}"));
    line.option("-device", "vhost-user-vsock-pci,chardev=vsock");
    line.option("-chardev", format!("socket,id=share,fd={SHARE_FD}"));
    let tag = spec.share_tag.replace(',', ",,");
    line.option("-device", format!("vhost-user-fs-pci,chardev=share,tag={tag},queue-size=128"));
    if spec.entropy {
        line.option("-device", "virtio-rng-pci");
    }
    if spec.page_reporting {
        line.option("-device", "virtio-balloon-pci,free-page-reporting=on");
    }
    if more_mib > 0 {
        line.option("-device", format!("virtio-mem-pci,id={PLUGGED},memdev=later,requested-size=0"));
    }
    if plugs(spec) {
        line.option("-device", NETWORK_BRIDGE);
    }
    line.0
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            id: "web,1".into(),
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 256,
            max_memory_mib: 256,
            kernel: "/guest/vmlinux".into(),
            initramfs: "/guest/initramfs.cpio".into(),
            kernel_parameters: String::new(),
            entropy: true,
            page_reporting: true,
            console: false,
            state_dir: "/run/rt/web".into(),
            network: false,
            block_slots: 0,
            share_tag: "rt".into(),
        }
    }

    /// One option and its value in a line.
    fn lines(accelerator: Accelerator, spec: &VmSpec) -> String {
        let words = arguments(accelerator, spec).into_iter().map(|word| word.into_string().unwrap());
        words.fold(String::new(), |text, word| match word.starts_with('-') {
            true => text + "\n" + &word,
            false => text + " " + &word,
        }) + "\n"
    }

    #[test]
    fn emulated() {
        assert_eq!(lines(Accelerator::Tcg, &spec()), include_str!("golden/tcg.txt"));
    }

    #[test]
    fn with_kvm() {
        let spec = VmSpec {
            vcpus: 4,
            max_vcpus: 4,
            memory_mib: 65_536,
            max_memory_mib: 65_536,
            kernel_parameters: "audit=0 x=y,z".into(),
            console: true,
            network: true,
            share_tag: "a,b".into(),
            ..spec()
        };
        assert_eq!(lines(Accelerator::Kvm, &spec), include_str!("golden/kvm.txt"));
    }

    #[test]
    fn without_entropy_there_is_no_device_for_it() {
        let line = lines(Accelerator::Tcg, &VmSpec { entropy: false, ..spec() });
        assert!(!line.contains("virtio-rng"), "{line}");
    }

    #[test]
    fn processors_for_later_are_there_and_not_started() {
        let line = lines(Accelerator::Kvm, &VmSpec { max_vcpus: 3, ..spec() });
        assert!(line.contains("-smp 3\n") && line.contains(" maxcpus=1 "), "{line}");
        assert!(!lines(Accelerator::Kvm, &spec()).contains("maxcpus"));
    }

    #[test]
    fn memory_for_later_has_its_place() {
        let line = lines(Accelerator::Kvm, &VmSpec { max_memory_mib: 1000, ..spec() });
        for words in [
            "-m 256M,maxmem=1024M\n",
            "id=later,size=768M,share=on,reserve=off\n",
            "-device virtio-mem-pci",
            "auto-movable",
        ] {
            assert!(line.contains(words), "{words}: {line}");
        }
    }

    #[test]
    fn several_emulated_processors_take_turns() {
        let line = lines(Accelerator::Tcg, &VmSpec { vcpus: 2, max_vcpus: 2, ..spec() });
        assert!(line.contains("-accel tcg,thread=single\n"), "{line}");
    }
}
