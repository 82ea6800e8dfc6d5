//! Whatever is wrong with what rt is given: one clear line, exit code 1, nothing left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::shell::{Bundle, Place, guest_file, host, patience, place, rt_binary, skipped};

#[test]
fn the_bundle_is_missing() {
    let bundle = Bundle::new();
    let missing = bundle.path("nowhere");
    bundle.call().bundle(Some(&missing)).end().fails(&["nowhere", "No such file or directory"]);
    let file = bundle.file("file", "");
    bundle.call().bundle(Some(&file)).end().fails(&["file"]);
}

#[test]
fn the_configuration_is_missing() {
    let bundle = Bundle::new();
    let call = bundle.call();
    fs::remove_file(bundle.path("config.json")).unwrap();
    call.end().fails(&["JSON specification file config.json not found"]);
}

#[test]
fn the_configuration_is_no_json() {
    let bundle = Bundle::new();
    for text in ["", "{", "[]", "\"text\"", "{\"ociVersion\": 1}", "\0\u{1}", "{}"] {
        let call = bundle.call();
        bundle.file("config.json", text);
        call.end().fails(&["config.json"]);
    }
}

#[test]
fn the_version_is_unknown() {
    let mut bundle = Bundle::new();
    for version in ["2.0.0", "0.9.0", "", "latest"] {
        bundle.config["ociVersion"] = json!(version);
        bundle.call().end().fails(&["config.json", "ociVersion"]);
    }
}

#[test]
fn a_field_is_missing_or_wrong() {
    let changes: [(&str, &[&str]); 5] = [
        ("/process", &["process"]),
        ("/process/args", &["process.args"]),
        ("/root", &["root"]),
        ("/root/path", &["config.json"]),
        ("/process/cwd", &["config.json"]),
    ];
    for (pointer, words) in changes {
        let mut bundle = Bundle::new();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
        bundle.call().end().fails(words);
    }
    let mut bundle = Bundle::new();
    bundle.config["process"]["args"] = json!([]);
    bundle.call().end().fails(&["process.args"]);
    bundle.args(&["/bin/true"]).config["process"]["cwd"] = json!("relative");
    bundle.call().end().fails(&["process.cwd"]);
}

#[test]
fn the_root_file_system_is_missing() {
    let mut bundle = Bundle::new();
    bundle.config["root"]["path"] = json!("gone");
    bundle.call().end().fails(&["rootfs", "gone", "does not exist"]);
    bundle.config["root"]["path"] = json!("config.json");
    bundle.call().end().fails(&["config.json", "not a directory"]);
}

#[test]
fn the_program_is_missing() {
    let mut bundle = Bundle::new();
    bundle.run(&["/no/such/program"]).fails(&["/no/such/program", "no such file or directory"]);
    bundle.run(&["nosuchprogram"]).fails(&["nosuchprogram", "executable file not found in $PATH"]);
}

#[test]
fn the_program_cannot_be_run() {
    let mut bundle = Bundle::new();
    fs::write(bundle.rootfs("tmp/data"), "data").unwrap();
    bundle.run(&["/tmp/data"]).fails(&["/tmp/data", "permission denied"]);
    bundle.run(&["/tmp"]).code(1).stdout("");
    fs::set_permissions(bundle.rootfs("tmp/data"), fs::Permissions::from_mode(0o755)).unwrap();
    // As runc has it: only exec itself finds out, when the container has started already.
    bundle.run(&["/tmp/data"]).code(255).stdout("").stderr("exec /tmp/data: exec format error\n");
}

#[test]
fn the_working_directory_is_no_directory() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["cwd"] = json!("/etc/passwd");
    let ended = bundle.run(&["/bin/true"]);
    ended.code(1).stdout("");
}

#[test]
fn kernel_and_initramfs_are_missing() {
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("quick", "vmlinux"), guest_file("quick", "initramfs.cpio"));
    let missing = bundle.path("nothing");
    bundle.settings = settings(&missing, &initramfs);
    bundle.call().end().fails(&["kernel", "nothing", "No such file or directory"]);
    bundle.settings = settings(&kernel, &missing);
    bundle.call().end().fails(&["initramfs", "nothing", "No such file or directory"]);
    bundle.settings = format!("[hypervisor]\nkernel = {kernel:?}\n");
    bundle.call().end().fails(&["hypervisor.kernel", "hypervisor.initramfs"]);
}

fn settings(kernel: &Path, initramfs: &Path) -> String {
    answers_within(patience(8), kernel, initramfs)
}

fn answers_within(limit: Duration, kernel: &Path, initramfs: &Path) -> String {
    let boot_timeout_ms = limit.as_millis();
    format!(
        "[agent]\nboot_timeout_ms = {boot_timeout_ms}\n[hypervisor]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}\n"
    )
}

#[test]
fn without_any_guest_the_places_are_named() {
    let bundle = Bundle::new();
    let alone = bundle.path("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(rt_binary(), alone.join("rt")).unwrap();
    let script = format!("shift; exec {}/rt \"$@\"", alone.display());
    bundle.call().through(&script).end().fails(&["no guest kernel", "alone/guest", "make build"]);
}

#[test]
fn the_kernel_is_damaged() {
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("tuned", "vmlinux"), guest_file("tuned", "initramfs.cpio"));
    let whole = fs::read(kernel).unwrap();
    let mut no_note = whole[..4096].to_vec();
    no_note.resize(1 << 20, 0);
    let damaged: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("text", b"#!/bin/sh\nexit 0\n"),
        ("noise", &[0x5a; 100_000]),
        ("half", &whole[..whole.len() / 2]),
        ("header", &no_note),
    ];
    for (name, bytes) in damaged {
        let path = bundle.file(&format!("kernel-{name}"), bytes);
        bundle.settings = settings(&path, &initramfs);
        bundle.call().end().fails(&["kernel", &format!("kernel-{name}")]);
    }
}

#[test]
fn the_initramfs_is_damaged() {
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("tuned", "vmlinux"), guest_file("tuned", "initramfs.cpio"));
    let whole = fs::read(initramfs).unwrap();
    for (name, bytes) in [("noise", &[0x5a; 100_000][..]), ("half", &whole[..whole.len() / 2])] {
        let path = bundle.file(&format!("initramfs-{name}"), bytes);
        bundle.settings = settings(&kernel, &path);
        // The guest's kernel finds it out, so its last words are part of the line.
        let ended = bundle.call().end();
        ended.code(1).stdout("");
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(
            text.starts_with("rt run failed: ") && text.contains("virtual machine") && text.contains("panic"),
            "{ended}"
        );
    }
    let path = bundle.file("initramfs-empty", "");
    bundle.settings = settings(&kernel, &path);
    bundle.call().end().code(1).stdout("");
}

/// Its init is a busybox that waits for a user.
#[test]
fn the_guest_never_answers() {
    let mut bundle = Bundle::new();
    host(&format!(
        "cd {}; mkdir -p silent/dev; cp rootfs/bin/busybox silent/init; cd silent; find . | cpio -o -H newc --quiet >../silent.cpio",
        bundle.dir().display()
    ));
    let (kernel, initramfs) = (guest_file("tuned", "vmlinux"), bundle.path("silent.cpio"));
    bundle.settings = answers_within(Duration::from_secs(2), &kernel, &initramfs);
    let started = Instant::now();
    bundle.call().end().fails(&["guest did not answer"]);
    assert!(started.elapsed() >= Duration::from_secs(2), "it was not waited for");
}

/// In the namespace of this script QEMU cannot be executed.
const WITHOUT_QEMU: &str = "exec unshare -m sh -c 'mount --make-rprivate / && \
    mount --bind /dev/null $(readlink -f $(command -v qemu-system-x86_64)) && exec \"$@\"' sh \"$@\"";

#[test]
fn qemu_is_missing() {
    let mut bundle = Bundle::new();
    let call = bundle.call().global(&["--hypervisor", "qemu"]).through(WITHOUT_QEMU);
    call.end().fails(&["qemu-system-x86_64 is not installed", "package qemu-system-x86"]);
    bundle.settings = "[hypervisor]\nqemu = '/no/such/qemu'\n".into();
    bundle.call().global(&["--hypervisor", "qemu"]).end().fails(&["/no/such/qemu"]);
    bundle.settings.clear();
    match place() {
        Place::Kvm => bundle.call().through(WITHOUT_QEMU).end().code(0),
        Place::Emulation => bundle.call().through(WITHOUT_QEMU).end().fails(&["qemu-system-x86_64", "kvm"]),
    };
}

#[test]
fn kvm_is_refused() {
    if !Path::new("/dev/kvm").exists() {
        return skipped("bad_input::kvm_is_refused", "there is no /dev/kvm");
    }
    let bundle = Bundle::new();
    let script = as_nobody(&bundle);
    let call = bundle.call().no_log().global(&["--hypervisor", "kvm"]).through(&script);
    let ended = call.end();
    ended.code(1).stdout("");
    let text = String::from_utf8_lossy(&ended.stderr).to_lowercase();
    assert!(text.contains("/dev/kvm") && text.contains("permission"), "{ended}");
}

#[test]
fn the_user_is_not_root() {
    let bundle = Bundle::new();
    let script = as_nobody(&bundle);
    let ended = bundle.call().no_log().through(&script).end();
    ended.code(1).stdout("");
    assert!(String::from_utf8_lossy(&ended.stderr).trim_end().contains("run rt as root"), "{ended}");
    let root = bundle.path("roots");
    fs::create_dir(&root).unwrap();
    let ended = bundle.call().no_log().root(Some(&root)).through(&script).end();
    ended.fails(&["state directory in", "roots", "run rt as root", "--root", "permission denied"]);
}

/// A script by which rt is started as another user; a copy of it, which that user can reach wherever the tests' own lies.
fn as_nobody(bundle: &Bundle) -> String {
    let folder = bundle.path("bin");
    fs::create_dir(&folder).unwrap();
    fs::copy(rt_binary(), folder.join("rt")).unwrap();
    host(&format!(
        "chmod -R a+rX {0}; chmod 777 {0} {0}/tmp; cp -rL $(dirname {1})/guest {0}/bin/guest; chmod -R a+rX {0}/bin",
        bundle.dir().display(),
        rt_binary().display()
    ));
    let setpriv = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    format!("shift; exec {setpriv} {}/rt \"$@\"", folder.display())
}

#[test]
fn kvm_is_missing() {
    let bundle = Bundle::new();
    let script = "exec unshare -m sh -c 'mount --make-rprivate / && { [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; } && exec \"$@\"' sh \"$@\"";
    bundle.call().global(&["--hypervisor", "kvm"]).through(script).end().fails(&["/dev/kvm"]);
    // What is asked for by nobody is done without.
    match place() {
        Place::Emulation => drop(bundle.call().through(script).end().code(0)),
        Place::Kvm => {
            // It is seen what is chosen; emulation within emulation takes minutes to boot the guest.
            let running = bundle.call().through(script).start();
            let vmm = running.helper("vmm");
            let arguments = fs::read_to_string(format!("/proc/{vmm}/cmdline")).unwrap();
            assert!(arguments.contains("\0tcg"), "{arguments:?}");
            running.signal(Signal::SIGTERM);
            running.end().code(128 + 15).stderr("");
        }
    }
}

#[test]
fn there_is_no_memory_for_the_guest() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nmemory_mib = 65536\n".into();
    let ended = bundle.call().through("ulimit -v 4000000; exec \"$@\"").end();
    ended.code(1).stdout("");
    let text = String::from_utf8_lossy(&ended.stderr).to_lowercase();
    assert!(text.contains("memory") && text.lines().count() == 1, "{ended}");
}

#[test]
fn settings_are_checked() {
    let mut bundle = Bundle::new();
    for (text, words) in [
        ("[hypervisor]\nvcpus = 0\n", &["hypervisor.vcpus", "rt.toml"][..]),
        ("[hypervisor]\nmemory_mib = 1\n", &["hypervisor.memory_mib"]),
        ("[hypervisor]\nmemory = 1\n", &["rt.toml:2: ", "hypervisor.memory;", "hypervisor.memory_mib"]),
        ("no toml", &["rt.toml:1:", "no TOML"]),
        ("[hypervisor]\nvcpus = 4\nmax_vcpus = 2\n", &["rt.toml:2", "rt.toml:3", "lower the first"]),
    ] {
        bundle.settings = text.into();
        let ended = bundle.call().end();
        ended.code(1).stdout("");
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(words.iter().all(|word| text.contains(word)), "{ended}");
    }
}

#[test]
fn the_state_directory_cannot_be_made() {
    let bundle = Bundle::new();
    let file = bundle.file("file", "");
    bundle.call().root(Some(&file.join("root"))).end().fails(&["file/root"]);
}

#[test]
fn the_log_cannot_be_written() {
    let bundle = Bundle::new();
    bundle.call().no_log().global(&["--log", "/no/such/folder/log"]).end().fails(&["/no/such/folder/log"]);
}
