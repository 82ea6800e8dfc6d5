//! Something dies while the container runs: a clear error, and nothing is left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, Input, Running, guest_file};

fn running(bundle: &mut Bundle) -> Running {
    bundle.args(&["/bin/sh", "-c", "echo ready; read line"]);
    let mut running = bundle.call().stdin(Input::Open).start();
    running.says("ready\n");
    running
}

fn kill_it(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn one_line(stderr: &[u8], words: &[&str]) {
    let text = String::from_utf8_lossy(stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "the error does not say {words:?}: {text}");
}

#[test]
fn the_vmm_is_killed() {
    let mut bundle = Bundle::new();
    let running = running(&mut bundle);
    kill_it(running.helper("vmm"));
    let ended = running.end();
    ended.code(1).stdout("ready\n");
    one_line(&ended.stderr, &["virtual machine", "SIGKILL"]);
}

#[test]
fn the_file_server_is_killed() {
    let mut bundle = Bundle::new();
    let running = running(&mut bundle);
    kill_it(running.helper("fsd"));
    let ended = running.end();
    ended.code(1).stdout("ready\n");
    one_line(&ended.stderr, &["file server"]);
}

/// What is left is the record, for `rt delete --force`; no process and no mount.
#[test]
fn rt_is_killed() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "echo ready; sleep 1000"]);
    let mut running = bundle.call().record_stays().start();
    running.says("ready\n");
    running.signal(Signal::SIGKILL);
    running.end().code(128 + 9).stdout("ready\n");
}

/// In the middle of the start.
#[test]
fn rt_is_killed_while_the_guest_boots() {
    let bundle = Bundle::new();
    let running = bundle.call().record_stays().start();
    running.helper("vmm");
    running.signal(Signal::SIGKILL);
    running.end().code(128 + 9);
}

#[test]
fn the_vmm_is_killed_while_the_guest_boots() {
    let bundle = Bundle::new();
    let running = bundle.call().start();
    kill_it(running.helper("vmm"));
    running.end().fails(&["virtual machine"]);
}

/// In the distribution's kernel, since the tuned one has no such key.
#[test]
fn the_guest_panics() {
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("quick", "vmlinux"), guest_file("quick", "initramfs.cpio"));
    bundle.settings = format!("[hypervisor]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}\n");
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_BOOT"]);
    bundle.args(&[
        "/bin/sh",
        "-c",
        "echo before; read line; echo c >/proc/sysrq-trigger; sleep 20; echo after",
    ]);
    let mut running = bundle.call().stdin(Input::Open).start();
    // What it said a moment ago may be lost with it.
    running.says("before\n");
    running.write("\n");
    let ended = running.end();
    ended.code(1).stdout("before\n");
    one_line(&ended.stderr, &["virtual machine", "sysrq triggered crash"]);
}

/// The guest's own affair: a container may not end the machine.
#[test]
fn a_reboot_is_not_the_containers() {
    let mut bundle = Bundle::new();
    let ended = bundle.sh("reboot -f; poweroff -f; echo still here");
    assert!(ended.code == 0 && ended.text().ends_with("still here\n"), "{ended}");
}
