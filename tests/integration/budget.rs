//! Budgets that do not depend on the machine: instructions and sizes. What depends on it is in `bench`.

use std::path::Path;
use std::process::Command;

use crate::shell::{Place, guest_file, place, skipped};

/// From the machine's start to /init in virtual milliseconds: one instruction is one nanosecond.
const START_TO_INIT_MS: f64 = 320.0;
/// Agent and initramfs, which is the agent and, for the quick kernel, its modules.
const INITRAMFS_BYTES: u64 = 5 << 20;

#[test]
fn start_to_init() {
    // It is the same number everywhere; emulation within emulation only takes long.
    if place() == Place::Kvm {
        return skipped("budget::start_to_init", "measured where the guests are emulated");
    }
    let ms = start_to_init_ms();
    assert!(ms <= START_TO_INIT_MS, "start to /init takes {ms} virtual ms, {START_TO_INIT_MS} are allowed");
}

#[test]
fn agent_and_initramfs() {
    for kind in ["tuned", "quick"] {
        let bytes = std::fs::metadata(guest_file(kind, "initramfs.cpio")).unwrap().len();
        assert!(bytes <= INITRAMFS_BYTES, "{kind}: {bytes} bytes, {INITRAMFS_BYTES} are allowed");
    }
}

pub fn start_to_init_ms() -> f64 {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/kernel/measure.sh");
    let measure = Command::new(script)
        .args([guest_file("tuned", "vmlinux"), guest_file("tuned", "initramfs.cpio")])
        .args(["no_timer_check", "noreplace-smp"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&measure.stdout);
    text.trim().parse().unwrap_or_else(|_| {
        panic!("no number from measure.sh: {text:?} {}", String::from_utf8_lossy(&measure.stderr))
    })
}
