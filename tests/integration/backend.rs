//! Which hypervisor carries the guest, that rt says so, and that both do the same.

use serde_json::Value;

use crate::shell::{Bundle, Input, Place, guest_file, host, place, skipped};

/// The run has the place that it was started for: an unusable KVM machine must not pass as a tested one.
#[test]
fn this_is_the_place_it_is_said_to_be() {
    let forced = Bundle::new().call().global(&["--hypervisor", "kvm"]).end();
    match place() {
        Place::Kvm => {
            forced.code(0).stderr("");
        }
        Place::Emulation => {
            forced.fails(&["kvm"]);
        }
    }
}

/// Emulation is chosen by itself, and said once, with the reason, through the log.
#[test]
fn emulation_is_logged_and_kvm_is_not() {
    let bundle = Bundle::new();
    let ended = bundle.call().end();
    ended.code(0).stderr("");
    let warnings: Vec<String> =
        ended.log().lines().filter(|line| line.contains("level=warning")).map(str::to_owned).collect();
    match place() {
        Place::Kvm => assert_eq!(warnings, Vec::<String>::new(), "{ended}"),
        Place::Emulation => {
            assert_eq!(warnings.len(), 1, "{ended}");
            assert!(
                warnings[0].contains("emulation") && warnings[0].to_lowercase().contains("kvm"),
                "{ended}"
            );
        }
    }
}

#[test]
fn the_log_may_be_json() {
    let bundle = Bundle::new();
    let call = bundle.call().global(&["--log-format", "json"]);
    let ended = call.id(Some("no/good")).end();
    let line = ended.log();
    let line: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("invalid container ID format"));
    assert!(line["time"].as_str().unwrap().contains('T'));
}

#[test]
fn qemu_does_the_same() {
    let mut bundle = Bundle::new();
    bundle.file("volume/x", "x\n");
    let source = bundle.path("volume").to_str().unwrap().to_owned();
    bundle.mount("/v", "bind", &source, &["bind"]);
    bundle.args(&["/bin/sh", "-c", "cat /v/x; cat; echo err >&2; echo y >/v/y; exit 9"]);
    let bytes: Vec<u8> = (0..=255).cycle().take(8 << 20).collect();
    let call = bundle.call().global(&["--hypervisor", "qemu"]).stdin(Input::Bytes(bytes.clone()));
    let ended = call.end();
    ended.code(9).stderr("err\n").stdout([b"x\n", &bytes[..]].concat());
    assert_eq!(host(&format!("cat {source}/y")), "y");
}

#[test]
fn qemu_with_kvm_where_kvm_works() {
    if place() != Place::Kvm {
        return skipped("backend::qemu_with_kvm_where_kvm_works", "no KVM here runs a guest");
    }
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/echo", "fine"]);
    let mut running = bundle.call().global(&["--hypervisor", "qemu"]).start();
    let arguments = std::fs::read(format!("/proc/{}/cmdline", running.helper("vmm"))).unwrap();
    running.says("fine\n");
    running.end().code(0);
    assert!(String::from_utf8_lossy(&arguments).contains("kvm"), "{:?}", String::from_utf8_lossy(&arguments));
}

/// The distribution's kernel, with modules: what `make run` uses until the tuned one is built.
#[test]
fn the_quick_kernel_works() {
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("quick", "vmlinux"), guest_file("quick", "initramfs.cpio"));
    bundle.settings = format!("[hypervisor]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}\n");
    bundle.args(&["/bin/sh", "-c", "uname -r; cat; echo x >/tmp/x; exit 3"]);
    let ended = bundle.call().stdin(Input::Bytes(b"through\n".into())).end();
    ended.code(3).stderr("");
    let lines: Vec<String> = ended.text().lines().map(str::to_owned).collect();
    assert!(lines[0].contains("cloud-amd64") && lines[1] == "through", "{ended}");
    assert_eq!(std::fs::read_to_string(bundle.rootfs("tmp/x")).unwrap(), "x\n");
}

/// And with the other backend, where there are two.
#[test]
fn the_quick_kernel_works_in_qemu() {
    if place() != Place::Kvm {
        return skipped("backend::the_quick_kernel_works_in_qemu", "QEMU is the only backend here");
    }
    let mut bundle = Bundle::new();
    let (kernel, initramfs) = (guest_file("quick", "vmlinux"), guest_file("quick", "initramfs.cpio"));
    bundle.settings = format!("[hypervisor]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}\n");
    bundle.args(&["/bin/echo", "fine"]);
    bundle.call().global(&["--hypervisor", "qemu"]).end().says(&["fine"]);
}

#[test]
fn the_tuned_kernel_is_preferred() {
    guest_file("tuned", "vmlinux");
    let ended = Bundle::new().run(&["/bin/uname", "-r"]);
    ended.code(0);
    assert!(!ended.text().contains("cloud"), "{ended}");
}

#[test]
fn the_timeline_is_written() {
    let bundle = Bundle::new();
    let trace = bundle.path("trace.json");
    bundle.call().flags(&["--trace", trace.to_str().unwrap()]).end().code(0);
    let mut marks: Vec<Value> = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    // The tracks' names come last.
    marks.retain(|mark| mark["ph"] == "X");
    let names: Vec<&str> = marks.iter().map(|mark| mark["name"].as_str().unwrap()).collect();
    for name in [
        "rt.start",
        "rt.vmm-started",
        "agent.hello",
        "container.started",
        "container.exited",
        "rt.cleaned-up",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let times: Vec<f64> = marks.iter().map(|mark| mark["ms"].as_f64().unwrap()).collect();
    assert!(times[0] == 0.0 && times.is_sorted(), "{times:?}");
}

/// Of a container that runs, too, and as a picture.
#[test]
fn the_timeline_of_a_running_container_is_shown() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let picture = container.rt(&["trace"]);
    assert!(
        picture.code == 0 && picture.text().starts_with("<svg ") && picture.text().contains("agent.hello"),
        "{picture}"
    );
    let events = container.rt(&["trace", "--format", "json"]);
    let events: Vec<Value> = serde_json::from_slice(&events.stdout).unwrap();
    assert!(
        events.iter().any(|event| event["ph"] == "X" && event["name"] == "container.started"),
        "{events:?}"
    );
    assert!(events.iter().any(|event| event["ph"] == "M" && event["args"]["name"] == "agent"), "{events:?}");
}

#[test]
fn version_and_usage() {
    let rt = crate::shell::rt_binary();
    let version = host(&format!("{} --version", rt.display()));
    assert!(version.starts_with("rt version ") && version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let usage = host(&format!("{} run --no-such-flag && exit 9; test $? -eq 1", rt.display()));
    assert!(usage.starts_with("Incorrect Usage."), "{usage}");
}

/// Several at once: nothing of one is in the way of another.
#[test]
fn containers_at_the_same_time() {
    let mut bundles: Vec<Bundle> = (0..3).map(|_| Bundle::new()).collect();
    let mut all: Vec<_> = bundles
        .iter_mut()
        .enumerate()
        .map(|(number, bundle)| {
            bundle.args(&["/bin/sh", "-c", &format!("echo ready; read line; echo $line; exit {number}")]);
            bundle.call().stdin(Input::Open).start()
        })
        .collect();
    all.iter_mut().for_each(|running| running.says("ready\n"));
    for (number, mut running) in all.into_iter().enumerate() {
        running.write(format!("I am {number}\n"));
        running.end().code(number as i32).stdout(format!("ready\nI am {number}\n"));
    }
}
