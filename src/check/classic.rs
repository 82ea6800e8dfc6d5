//! The checks of `kata-runtime kata-check` 1.0: same messages, same fields, same order.

use super::{Finding, Host, Level};
use crate::hypervisor::kvm::{self, Step};

/// A kernel module, and what its parameters should be.
struct Module {
    name: &'static str,
    description: &'static str,
    parameters: &'static [(&'static str, &'static str)],
}

/// What one kind of processor takes.
struct Kind {
    /// Name and description of `vendor_id`.
    attribute: Option<(&'static str, &'static str)>,
    flags: &'static [(&'static str, &'static str)],
    modules: &'static [Module],
}

const LONG_MODE: (&str, &str) = ("lm", "64Bit CPU");
const SSE: (&str, &str) = ("sse4_1", "SSE4.1");
const VHOST_NET: Module =
    Module { name: "vhost_net", description: "Host kernel accelerator for virtio network", parameters: &[] };
const VHOST: Module =
    Module { name: "vhost", description: "Host kernel accelerator for virtio", parameters: &[] };
const KVM: Module = Module { name: "kvm", description: "Kernel-based Virtual Machine", parameters: &[] };

const INTEL: Kind = Kind {
    attribute: Some(("GenuineIntel", "Intel Architecture CPU")),
    flags: &[("vmx", "Virtualization support"), LONG_MODE, SSE],
    modules: &[
        VHOST_NET,
        KVM,
        Module {
            name: "kvm_intel",
            description: "Intel KVM",
            parameters: &[("nested", "Y"), ("unrestricted_guest", "Y")],
        },
        VHOST,
    ],
};

const AMD: Kind = Kind {
    attribute: Some(("AuthenticAMD", "AMD Architecture CPU")),
    flags: &[("svm", "Virtualization support"), LONG_MODE, SSE],
    modules: &[VHOST_NET, KVM, Module { name: "kvm_amd", description: "AMD KVM", parameters: &[] }, VHOST],
};

const ARM: Kind = Kind { attribute: None, flags: &[], modules: &[VHOST_NET, KVM, VHOST] };

/// Processor and modules.
pub fn host(host: &Host) -> Vec<Finding> {
    let vendor = host.processor("vendor_id").unwrap_or_default();
    let kind = match (host.machine.as_str(), vendor.as_str()) {
        ("aarch64", _) => ARM,
        (_, "AuthenticAMD") => AMD,
        // Any other is missing what Kata 1.0 asked for.
        _ => INTEL,
    };
    let mut findings = Vec::new();
    let property = |is_there, name: &str, description: &str, kind: &str| {
        let (level, message) = match is_there {
            true => (Level::Info, "CPU property found"),
            false => (Level::Error, "CPU property not found"),
        };
        Finding::new(level, message, &[("name", name), ("description", description), ("type", kind)])
    };
    if let Some((name, description)) = kind.attribute {
        findings.push(property(vendor == name, name, description, "attribute"));
    }
    let flags = host.processor("flags").unwrap_or_default();
    for (name, description) in kind.flags {
        let is_there = flags.split_whitespace().any(|flag| flag == *name);
        findings.push(property(is_there, name, description, "flag"));
    }
    for module in kind.modules {
        findings.extend(check_module(host, module));
    }
    findings.into_iter().map(Finding::classic).collect()
}

fn check_module(host: &Host, module: &Module) -> Vec<Finding> {
    let fields = vec![("name", module.name), ("description", module.description), ("type", "module")];
    // Opening their device loads these; nothing loads KVM, whose device is not there without it.
    let on_demand = module.name.starts_with("vhost") && host.can_load(module.name);
    if !host.has_module(module.name) && !on_demand {
        return vec![Finding::new(Level::Error, "kernel property not found", &fields)];
    }
    let mut findings = vec![Finding::new(Level::Info, "kernel property found", &fields)];
    let mut leaked = None;
    for (parameter, expected) in module.parameters {
        // A module that is built in may keep its parameters to itself.
        let Some(value) = host.parameter(module.name, parameter) else { continue };
        let is_right = value == *expected;
        if !is_right {
            // Kata 1.0 keeps this field for the parameters that follow.
            leaked = Some(("expected", *expected));
        }
        let mut fields = fields.clone();
        fields.extend([("parameter", *parameter), ("value", value.as_str())]);
        fields.extend(leaked);
        const CORRECT: &str = "Kernel property value correct";
        const UNEXPECTED: &str = "kernel module parameter has unexpected value";
        let (level, message) = match (is_right, *parameter) {
            (true, _) => (Level::Info, CORRECT),
            // Whoever runs this host does what is asked for in its place.
            (false, "unrestricted_guest") if host.is_virtual() => (Level::Warning, CORRECT),
            (false, "nested") => (Level::Warning, UNEXPECTED),
            (false, _) => (Level::Error, UNEXPECTED),
        };
        findings.push(Finding::new(level, message, &fields));
    }
    findings
}

/// As root: the device, and a VM.
pub fn full(steps: &[Step]) -> Vec<Finding> {
    let full = ("check-type", "full");
    let mut findings = Vec::new();
    for step in steps {
        let finding = match (step.name, &step.result) {
            ("open", Ok(())) => {
                Finding::new(Level::Info, "device available", &[full, ("device", kvm::DEVICE)])
            }
            ("open", Err(error)) => {
                let fields = [full, ("device", kvm::DEVICE), ("reason", &error.reason)];
                Finding::new(Level::Error, "device not available", &fields)
            }
            ("create-vm", Ok(())) => {
                Finding::new(Level::Info, "feature available", &[full, ("feature", step.name)])
            }
            ("create-vm", Err(error)) => {
                let reason = if error.is_busy() { "another hypervisor running" } else { &error.reason };
                Finding::new(Level::Error, "cannot create VM", &[full, ("reason", reason)])
            }
            _ => continue,
        };
        findings.push(finding.classic());
    }
    findings
}
