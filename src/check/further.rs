//! What Kata 1.0 did not look at: whether a guest runs on this KVM, and all that rt needs beside.

use super::host::Cgroups;
use super::{Finding, Host, Level, Live};
use crate::hypervisor::Kind;

const CHECK: (&str, &str) = ("check-type", "full");

/// As root: what KVM does beyond making a VM, and the host's own accelerators.
pub fn kvm(live: &Live) -> Vec<Finding> {
    let mut findings = Vec::new();
    for step in live.kvm.iter().filter(|step| !["open", "create-vm"].contains(&step.name)) {
        let feature = ("feature", step.name);
        findings.push(match &step.result {
            Ok(()) => Finding::new(Level::Info, "feature available", &[CHECK, feature]),
            // The guest's timer then takes more exits, no more.
            Err(error) if step.name == "tsc-deadline" => Finding::new(
                Level::Warning,
                "feature not available",
                &[CHECK, feature, ("reason", &error.reason)],
            ),
            Err(error) => Finding::new(
                Level::Error,
                "feature not available",
                &[CHECK, feature, ("reason", &error.reason)],
            ),
        });
    }
    if let Some(bits) = live.address_bits {
        let bits = bits.to_string();
        let fields = [
            CHECK,
            ("feature", "KVM_CAP_ARM_VM_IPA_SIZE"),
            ("description", "IPA limit size"),
            ("bits", &bits),
        ];
        findings.push(Finding::new(Level::Info, "feature available", &fields));
    }
    for (device, result) in &live.accelerators {
        let device = ("device", *device);
        findings.push(match result {
            Ok(()) => Finding::new(Level::Info, "device available", &[CHECK, device]),
            // rt's devices do without.
            Err(reason) => Finding::new(
                Level::Info,
                "optional device not available",
                &[CHECK, device, ("reason", reason)],
            ),
        });
    }
    findings
}

/// The host's kernel, QEMU, the guest's files, memory and configuration.
pub fn host(host: &Host, live: &Live) -> Vec<Finding> {
    let mut findings =
        vec![cgroups(host), overlay(host), nesting(host), qemu(live), guest(live), memory(host, live)];
    if let Some(reason) = &live.configuration {
        findings.push(Finding::new(Level::Error, "configuration not usable", &[("reason", reason)]));
    }
    findings
}

fn cgroups(host: &Host) -> Finding {
    let version = |version| Finding::new(Level::Info, "cgroups found", &[("version", version)]);
    match host.cgroups() {
        Cgroups::V1 => version("1"),
        Cgroups::V2 => version("2"),
        Cgroups::Hybrid => version("1 and 2 beside it"),
        Cgroups::None => {
            let reason = "no cgroup file system is mounted: limits hold in the guest only";
            Finding::new(Level::Warning, "cgroups not found", &[("reason", reason)])
        }
    }
}

fn overlay(host: &Host) -> Finding {
    let there = host.knows_file_system("overlay") || host.has_module("overlay") || host.can_load("overlay");
    let fields = [("name", "overlay"), ("description", "Overlay file system"), ("type", "module")];
    match there {
        true => Finding::new(Level::Info, "kernel property found", &fields),
        false => Finding::new(Level::Warning, "kernel property not found", &fields),
    }
}

fn nesting(host: &Host) -> Finding {
    match host.is_virtual() {
        true => Finding::new(Level::Info, "host is a virtual machine itself", &[("nested", "Y")]),
        false => Finding::new(Level::Info, "host is no virtual machine", &[("nested", "N")]),
    }
}

fn qemu(live: &Live) -> Finding {
    match &live.qemu {
        Ok(qemu) => {
            let accelerators = qemu.accelerators.join(",");
            let fields =
                [("path", qemu.path.as_str()), ("version", &qemu.version), ("accelerators", &accelerators)];
            let level = if qemu.is_old { Level::Warning } else { Level::Info };
            let message =
                if qemu.is_old { "QEMU is too old, 7.2 is the oldest that works" } else { "QEMU found" };
            Finding::new(level, message, &fields)
        }
        // Who needs it is told so by the backend.
        Err(reason) => Finding::new(Level::Info, "QEMU not found", &[("reason", reason)]),
    }
}

fn guest(live: &Live) -> Finding {
    match &live.guest {
        Ok(guest) => {
            let fields = [
                ("kernel", guest.kernel.as_str()),
                ("initramfs", &guest.initramfs),
                ("release", &guest.release),
                ("kind", guest.kind),
            ];
            match &guest.mismatch {
                None => Finding::new(Level::Info, "guest found", &fields),
                Some((level, reason)) => {
                    let fields = [&fields[..], &[("reason", reason)]].concat();
                    Finding::new(*level, "guest kernel and initramfs do not match", &fields)
                }
            }
        }
        Err(reason) => Finding::new(Level::Error, "guest not found", &[("reason", reason)]),
    }
}

fn memory(host: &Host, live: &Live) -> Finding {
    let Some(memory) = host.memory() else {
        return Finding::new(
            Level::Warning,
            "free memory unknown",
            &[("reason", "/proc/meminfo cannot be read")],
        );
    };
    let available = memory.mem_available.unwrap_or(memory.mem_free) >> 20;
    let needed = u64::from(live.memory_mib);
    let (available_text, needed_text) = (available.to_string(), needed.to_string());
    let fields = [("available-mib", available_text.as_str()), ("needed-mib", &needed_text)];
    match available >= needed {
        true => Finding::new(Level::Info, "memory for a guest found", &fields),
        false => Finding::new(Level::Warning, "memory for a guest not found", &fields),
    }
}

/// What `--hypervisor auto` uses here, and why.
pub fn backend(live: &Live) -> Finding {
    match &live.backend {
        Ok(backend) => {
            let kind = match backend.kind {
                Kind::Kvm => "kvm",
                Kind::Qemu => "qemu",
            };
            let mut fields =
                vec![("backend", kind), ("accelerator", backend.accelerator), ("reason", &backend.reason)];
            if let Some(configured) = &backend.configured {
                fields.push(("configured", configured));
            }
            match backend.is_slow {
                true => Finding::new(Level::Warning, "guests run in software emulation, slower", &fields),
                false => Finding::new(Level::Info, "backend that auto uses", &fields),
            }
        }
        Err(reason) => Finding::new(Level::Error, "no backend can carry a guest", &[("reason", reason)]),
    }
}
