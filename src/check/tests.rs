//! Hosts of every kind, by their files (fixtures/NAME.txt: `== path` before each file's text) and what would come of trying.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::*;
use crate::hypervisor::Kind;
use crate::hypervisor::kvm::{Step, Unusable};

/// Lays a fixture's files out.
fn files(fixture: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in fixture.split("== ").skip(1) {
        let (path, text) = file.split_once('\n').unwrap();
        put(root.path(), path, text.as_bytes());
    }
    root
}

fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn steps(good: &[&'static str], bad: Option<(&'static str, Unusable)>) -> Vec<Step> {
    let good = good.iter().map(|name| Step { name, result: Ok(()) });
    good.chain(bad.map(|(name, error)| Step { name, result: Err(error) })).collect()
}

/// A host on which all that is tried works.
fn live() -> Live {
    let all =
        ["open", "create-vm", "create-vcpu", "run-guest", "irqchip", "irqfd", "ioeventfd", "tsc-deadline"];
    Live {
        kvm: steps(&all, None),
        address_bits: None,
        accelerators: vec![("/dev/vhost-net", Ok(())), ("/dev/vhost-vsock", Err("No such file".into()))],
        qemu: Ok(QemuFacts {
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: "7.2".into(),
            is_old: false,
            accelerators: vec!["tcg".into(), "kvm".into()],
        }),
        guest: Ok(GuestFacts {
            kind: "tuned",
            kernel: "/g/vmlinux".into(),
            initramfs: "/g/initramfs.cpio".into(),
            release: "6.12.1".into(),
            mismatch: None,
        }),
        backend: Ok(Backend {
            kind: Kind::Kvm,
            accelerator: "kvm",
            reason: "it works".into(),
            is_slow: false,
            configured: None,
        }),
        configuration: None,
        memory_mib: 256,
    }
}

fn emulated(mut live: Live, reason: &str) -> Live {
    live.backend = Ok(Backend {
        kind: Kind::Qemu,
        accelerator: "tcg",
        reason: reason.into(),
        is_slow: true,
        configured: None,
    });
    live
}

fn report(fixture: &str, machine: &str, live: &Live) -> Report {
    let root = files(fixture);
    check(&Host::at(root.path(), machine, true), live, Voice::Rt, false)
}

/// What is told without being asked for, in short: level, message, and what it is about.
fn told(report: &Report) -> Vec<String> {
    let about = |finding: &Finding| {
        let keys = ["parameter", "feature", "device", "name"];
        keys.iter().find_map(|key| finding.fields.get(key)).cloned().unwrap_or_default()
    };
    report
        .findings
        .iter()
        .filter(|finding| finding.level > Level::Info)
        .map(|finding| format!("{:?}: {}: {}", finding.level, finding.message, about(finding)))
        .collect()
}

const INTEL: &str = include_str!("fixtures/intel.txt");
const AMD: &str = include_str!("fixtures/amd.txt");

#[test]
fn an_intel_host_is_told_of_as_kata_1_0_did() {
    let root = files(INTEL);
    let report = check(&Host::at(root.path(), "x86_64", true), &live(), Voice::Kata, false);
    let text = lines(&report, Some(Colours::No), false);
    let pid = format!("pid={} ", std::process::id());
    assert_eq!(text.replace(&pid, "pid=156730 "), include_str!("fixtures/intel.golden"));
    assert!(report.capable);
    // In a file the same, in logrus' other form.
    let text = lines(&report, None, false).replace(&pid, "pid=156730 ");
    let timeless: Vec<String> = text
        .lines()
        .map(|line| {
            let (_, rest) = line.strip_prefix("time=\"20").unwrap().split_once("\" ").unwrap();
            rest.to_owned()
        })
        .collect();
    let golden = include_str!("fixtures/intel.golden").lines().map(|line| {
        let (level, rest) = line.split_once("[0000] ").unwrap();
        let (message, fields) = rest.split_at(44);
        let level = if level == "WARN" { "warning" } else { "info" };
        format!("level={level} msg=\"{}\" {}", message.trim_end(), fields.trim_start())
    });
    assert_eq!(timeless, golden.collect::<Vec<_>>());
    // Others than root see the theory only.
    let report = check(&Host::at(root.path(), "x86_64", false), &live(), Voice::Kata, false);
    let golden: Vec<&str> = include_str!("fixtures/intel.golden").lines().take(11).collect();
    let text = lines(&report, Some(Colours::No), false).replace(&pid, "pid=156730 ");
    assert_eq!(text.lines().collect::<Vec<_>>(), golden);
}

#[test]
fn in_its_own_name_rt_speaks_of_itself() {
    let text = lines(&report(INTEL, "x86_64", &live()), Some(Colours::No), true);
    assert!(text.contains("System is capable of running rt ") && !text.contains("ata"), "{text}");
    assert!(text.contains(" name=rt "));
    assert!(text.contains("backend that auto uses") && text.contains("reason=\"it works\""), "{text}");
    for feature in ["create-vcpu", "run-guest", "irqfd", "ioeventfd", "tsc-deadline"] {
        assert!(text.contains(&format!("feature={feature} ")), "{feature} is not in {text}");
    }
    for words in [
        "device=/dev/vhost-net ",
        "optional device not available",
        "version=\"1 and 2 beside it\"",
        "overlay",
        "nested=N",
        "accelerators=\"tcg,kvm\"",
        "release=6.12.1",
        "needed-mib=256",
    ] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}

#[test]
fn amd_with_what_it_needs_built_in_or_at_hand() {
    let report = report(AMD, "x86_64", &live());
    assert!(report.capable, "{report:?}");
    let names: Vec<&str> =
        report.findings.iter().take(8).map(|finding| finding.fields["name"].as_str()).collect();
    assert_eq!(names, ["AuthenticAMD", "svm", "lm", "sse4_1", "vhost_net", "kvm", "kvm_amd", "vhost"]);
    assert_eq!(told(&report), ["Warning: memory for a guest not found: rt"]);
}

#[test]
fn arm64_has_no_flags_but_an_address_size() {
    let report =
        report(include_str!("fixtures/arm64.txt"), "aarch64", &Live { address_bits: Some(44), ..live() });
    assert!(report.capable && told(&report).is_empty(), "{report:?}");
    let names: Vec<&str> =
        report.findings.iter().take(3).map(|finding| finding.fields["name"].as_str()).collect();
    assert_eq!(names, ["vhost_net", "kvm", "vhost"]);
    let size = report.findings.iter().find(|finding| finding.fields.contains_key("bits")).unwrap();
    assert_eq!(size.fields["bits"], "44");
}

#[test]
fn a_vm_without_nesting_is_not_capable_but_is_told_what_carries_its_guests() {
    let kvm = steps(&[], Some(("open", Unusable::new("there is no /dev/kvm"))));
    let report = report(
        include_str!("fixtures/vm-without-nesting.txt"),
        "x86_64",
        &emulated(Live { kvm, ..live() }, "there is no /dev/kvm"),
    );
    assert!(!report.capable);
    assert_eq!(
        told(&report),
        [
            "Error: CPU property not found: vmx",
            "Error: kernel property not found: kvm",
            "Error: kernel property not found: kvm_intel",
            "Error: device not available: /dev/kvm",
            "Warning: guests run in software emulation, slower: rt",
        ]
    );
    assert!(report.findings.iter().all(|finding| !finding.message.starts_with("System")));
}

#[test]
fn a_container_without_the_device() {
    let kvm = steps(&[], Some(("open", Unusable::new("there is no /dev/kvm"))));
    let report = report(
        include_str!("fixtures/container.txt"),
        "x86_64",
        &emulated(Live { kvm, ..live() }, "there is no /dev/kvm"),
    );
    assert!(!report.capable);
    assert_eq!(
        told(&report),
        [
            "Error: device not available: /dev/kvm",
            "Warning: cgroups not found: rt",
            "Warning: guests run in software emulation, slower: rt",
        ]
    );
    // In theory it can.
    assert!(report.findings.iter().any(|finding| finding.message == "System is capable of running rt"));
    assert!(!report.findings.iter().any(|finding| finding.message.starts_with("System can currently")));
}

#[test]
fn a_para_virtual_kvm_is_unmasked() {
    let kvm = steps(
        &["open", "create-vm", "create-vcpu"],
        Some(("run-guest", Unusable::new("it is para-virtual"))),
    );
    let report = report(
        include_str!("fixtures/para-virtual.txt"),
        "x86_64",
        &emulated(Live { kvm, ..live() }, "it is para-virtual"),
    );
    assert!(!report.capable);
    assert_eq!(
        told(&report),
        [
            "Error: CPU property not found: svm",
            "Error: kernel property not found: vhost_net",
            "Error: kernel property not found: kvm_amd",
            "Error: kernel property not found: vhost",
            "Error: feature not available: run-guest",
            "Warning: guests run in software emulation, slower: rt",
        ]
    );
}

#[test]
fn another_hypervisor_has_the_processor() {
    let kvm = steps(&["open"], Some(("create-vm", Unusable::busy())));
    let report = report(INTEL, "x86_64", &Live { kvm, ..live() });
    assert!(!report.capable);
    let text = lines(&report, Some(Colours::No), false);
    let line = text.lines().find(|line| line.starts_with("ERRO")).unwrap();
    assert!(
        line.contains("cannot create VM ") && line.contains("reason=\"another hypervisor running\""),
        "{line}"
    );
}

#[test]
fn under_a_hypervisor_an_unrestricted_guest_is_not_demanded() {
    let nested = INTEL
        .replace("rdrand ", "rdrand hypervisor")
        .replace("unrestricted_guest\nY", "unrestricted_guest\nN");
    let report = report(&nested, "x86_64", &live());
    assert!(report.capable);
    assert_eq!(
        told(&report),
        [
            "Warning: kernel module parameter has unexpected value: nested",
            "Warning: Kernel property value correct: unrestricted_guest",
        ]
    );
    let bare = INTEL.replace("unrestricted_guest\nY", "unrestricted_guest\nN");
    assert!(!self::report(&bare, "x86_64", &live()).capable);
}

#[test]
fn warnings_count_when_asked_for() {
    let root = files(INTEL);
    assert!(!check(&Host::at(root.path(), "x86_64", true), &live(), Voice::Rt, true).capable);
}

#[test]
fn a_module_is_there_when_the_kernel_was_configured_with_it() {
    let root = files(&AMD.replace("modules.builtin", "other").replace("modules.dep", "another"));
    let mut config = GzEncoder::new(Vec::new(), Compression::fast());
    config.write_all(b"# text\nCONFIG_KVM=y\nCONFIG_KVM_AMD=y\nCONFIG_VHOST=m\n").unwrap();
    put(root.path(), "proc/config.gz", &config.finish().unwrap());
    let host = Host::at(root.path(), "x86_64", true);
    assert!(host.has_module("kvm") && host.has_module("kvm_amd"));
    assert!(!host.has_module("vhost") && !host.can_load("vhost"));
    put(root.path(), "proc/config.gz", b"no archive");
    assert!(!host.has_module("kvm"));
}

#[test]
fn what_rt_itself_lacks_is_told() {
    let lacking = Live {
        guest: Err("no guest kernel".into()),
        qemu: Err("not installed".into()),
        backend: Err("none".into()),
        configuration: Some("c.toml:1: bad".into()),
        ..live()
    };
    let report = report(INTEL, "x86_64", &lacking);
    assert!(!report.capable);
    let told = told(&report).join("\n");
    for message in
        ["Error: guest not found", "Error: configuration not usable", "Error: no backend can carry a guest"]
    {
        assert!(told.contains(message), "{message} is not in {told}");
    }
    let mut unmatched = live();
    unmatched.guest.as_mut().unwrap().mismatch = Some((Level::Error, "other modules".into()));
    assert!(!self::report(INTEL, "x86_64", &unmatched).capable);
}

/// Nothing there, nothing readable: findings, no panic.
#[test]
fn an_empty_host() {
    let root = tempfile::tempdir().unwrap();
    let report = check(&Host::at(root.path(), "x86_64", true), &live(), Voice::Rt, false);
    assert!(!report.capable);
    for name in ["proc/cpuinfo", "proc/meminfo", "proc/self/mountinfo", "proc/filesystems"] {
        for content in [&b""[..], b"\n\n", b"\xff\0:::", b"processor"] {
            put(root.path(), name, content);
            check(&Host::at(root.path(), "x86_64", true), &live(), Voice::Rt, false);
        }
    }
}

#[test]
fn programs_get_json_and_people_a_table() {
    let report = report(INTEL, "x86_64", &live());
    let json: Value = serde_json::from_str(&json(&report)).unwrap();
    assert_eq!(json["capable"], true);
    assert_eq!(json["findings"][1]["name"], "vmx");
    assert_eq!(json["findings"][1]["level"], "info");
    assert_eq!(json["findings"][1]["message"], "CPU property found");
    let last = json["findings"].as_array().unwrap().last().unwrap();
    assert_eq!((last["backend"].as_str(), last["accelerator"].as_str()), (Some("kvm"), Some("kvm")));
    let table = table(&report, Voice::Rt);
    assert!(table.starts_with("STATUS   CHECK "), "{table}");
    assert!(
        table.contains("ok       CPU property found                            (Virtualization support) vmx"),
        "{table}"
    );
    assert_eq!(table.lines().count(), report.findings.len() + 1);
}

#[test]
fn the_environment_has_katas_sections() {
    let root = files(INTEL);
    put(root.path(), "etc/os-release", b"NAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\n");
    let build = environment::Build { version: "1.2.3", commit: "abc", oci: "1.2.0" };
    let host = Host::at(root.path(), "x86_64", true);
    let environment =
        environment::Environment::new(build, &crate::config::Config::default(), &host, &live(), true);
    let toml: toml::Table = environment.toml().parse().unwrap();
    let json: Value = serde_json::from_str(&environment.json()).unwrap();
    for section in [
        "Meta",
        "Runtime",
        "Hypervisor",
        "Image",
        "Kernel",
        "Initrd",
        "Proxy",
        "Shim",
        "Agent",
        "Host",
        "Netmon",
    ] {
        assert!(toml.contains_key(section) && json[section].is_object(), "{section}");
    }
    assert_eq!(json["Host"]["Distro"]["Name"], "Debian GNU/Linux");
    assert_eq!(json["Host"]["Distro"]["Version"], "12");
    assert_eq!(json["Host"]["CPU"]["CPUs"], 2);
    assert_eq!(json["Host"]["Memory"]["Total"], 16_000_000);
    assert_eq!(json["Runtime"]["Version"]["Semver"], "1.2.3");
    assert_eq!(json["Kernel"]["Version"], "6.12.1");
}
