//! Machines that start from a template: the second of a kind does, is a machine of its own, and nothing goes wrong with a bad one.
//! Templates are of rt's own VMM; with software emulation every machine boots, and makes none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::network::netns::Pair;
use crate::shell::{Bundle, Ended, Input, Place, guest_file, host, patience, place, rt_binary};

const DIRECTORY: &str = "/run/rt-templates";

/// A bundle whose machine is like no other's: one parameter that nobody reads.
fn of_a_new_kind(settings: &str) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.settings = format!("[hypervisor]\nkernel_parameters = \"rt.test={}\"\n{settings}", bundle.id);
    bundle
}

fn templates() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What it printed, and whether it started from a template.
fn run(bundle: &mut Bundle, script: &str) -> (Ended, bool) {
    bundle.args(&["/bin/sh", "-c", script]);
    let trace = bundle.path("trace.json");
    let ended = bundle.call().flags(&["--trace", trace.to_str().unwrap()]).end();
    let marks: Vec<Value> = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    let resumed = marks.iter().any(|mark| mark["name"] == "vmm.resumed");
    (ended, resumed)
}

/// It serves others, too, and outlives the container.
#[test]
fn a_template_is_not_the_first_containers_to_pay_for() {
    let mut bundle = of_a_new_kind("");
    bundle.config["linux"]["cgroupsPath"] = format!("/rt-test/{}", bundle.id).into();
    bundle.args(&["/bin/sleep", "1000"]);
    let used = [0, 1].map(|_| {
        let container = bundle.create(&[]);
        let group = container.record()["cgroups"][0].as_str().unwrap().to_owned();
        let members = fs::read_to_string(format!("{group}/cgroup.procs")).unwrap();
        let vmm = container.record()["vm"]["pid"].to_string();
        assert!(members.lines().any(|pid| pid == vmm), "{vmm} is not in {members}");
        let memory = fs::read_to_string(format!("{group}/memory.current"));
        container.rt(&["delete", "--force"]).says(&[]);
        memory.map_or(0, |bytes| bytes.trim().parse::<u64>().unwrap() >> 20)
    });
    // Emulated machines make none, and have their memory in the group.
    if place() == Place::Kvm {
        assert!(used[0] < used[1] + 8, "{used:?} MiB");
    }
}

#[test]
fn the_second_of_a_kind_starts_from_the_firsts_template() {
    let mut bundle = of_a_new_kind("");
    let script = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; date +%s; free -m | awk '/Mem:/ { print $2 }'";
    let runs = [0, 1, 2].map(|_| run(&mut bundle, script));
    let resumed: Vec<bool> = runs.iter().map(|(_, resumed)| *resumed).collect();
    if place() == Place::Emulation {
        assert_eq!(resumed, [false; 3]);
        return;
    }
    assert_eq!(resumed, [false, true, true], "{}", runs[1].0);
    let lines: Vec<Vec<String>> = runs
        .iter()
        .map(|(ended, _)| {
            ended.code(0).stderr("");
            ended.text().lines().map(str::to_owned).collect()
        })
        .collect();
    // The same machine, but nobody's random numbers are another's.
    for line in [0, 1] {
        assert_eq!(lines.iter().map(|lines| &lines[line]).collect::<BTreeSet<_>>().len(), 3, "{lines:?}");
    }
    let of_first = lines[0][3].clone();
    let now: i64 = host("date +%s").parse().unwrap();
    for lines in &lines {
        assert!((now - lines[2].parse::<i64>().unwrap()).abs() < 60, "{lines:?}, now {now}");
        assert_eq!(lines[3], of_first);
    }
}

/// All processors, their clocks and timers go on; files, memory and streams work.
#[test]
fn it_works_as_one_that_booted() {
    let mut bundle = of_a_new_kind("vcpus = 2\nmemory_mib = 200\n");
    let script = "nproc; for cpu in 0 1; do taskset $((1 << cpu)) sh -c 'sleep 0.2; echo runs' || exit; done; \
         head -c 3000000 /dev/urandom >/big && wc -c </big; head -c 20000000 /dev/zero | tail -c 20000000 | wc -c; cat";
    for resumed in [false, place() == Place::Kvm] {
        bundle.args(&["/bin/sh", "-c", script]);
        let trace = bundle.path("trace.json");
        let call = bundle.call().flags(&["--trace", trace.to_str().unwrap()]);
        call.stdin(Input::Bytes(b"to its input\n".into()))
            .end()
            .code(0)
            .stderr("")
            .stdout("2\nruns\nruns\n3000000\n20000000\nto its input\n");
        let text = fs::read_to_string(trace).unwrap();
        assert_eq!(text.contains("vmm.resumed"), resumed);
    }
}

/// Its kernel's code and page structures are the template's own memory: of 256 MiB the latter take 4.
#[test]
fn what_never_changes_its_purpose_is_shared() {
    let mut bundle = of_a_new_kind("memory_mib = 256\n");
    assert!(!run(&mut bundle, "").1);
    bundle.args(&["/bin/sh", "-c", "echo ready; exec sleep 1000"]);
    let mut running = bundle.call().record_stays().start();
    running.says("ready\n");
    let maps = fs::read_to_string(format!("/proc/{}/maps", running.helper("vmm")));
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.end();
    let mib: u64 = maps.map_or(0, |maps| {
        let shared = maps.lines().filter(|line| line.contains(DIRECTORY));
        let bytes = shared.map(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
        });
        bytes.sum::<u64>() >> 20
    });
    match place() {
        Place::Emulation => assert_eq!(mib, 0),
        Place::Kvm => assert!((8 + 4..=24).contains(&mib), "{mib} MiB"),
    }
}

/// Known when the first machine ends, or when it has run for two seconds.
#[test]
fn what_machines_touch_is_in_the_template() {
    const MEMORY: u64 = 256 << 20;
    const PAGES: u32 = (MEMORY / 4096) as u32;
    let before = templates();
    let touched = || {
        let mut bits = vec![0; PAGES as usize / 8];
        let path = templates().difference(&before).next().expect("a template").clone();
        fs::File::open(path).unwrap().read_exact_at(&mut bits, MEMORY).unwrap();
        bits.iter().map(|byte| byte.count_ones()).sum::<u32>()
    };
    let is_known = |pages| (500..8000).contains(&pages);
    let mut bundle = of_a_new_kind("memory_mib = 256\n");
    run(&mut bundle, "").0.says(&[]);
    if place() == Place::Emulation {
        assert_eq!(templates(), before);
        return;
    }
    assert!(is_known(touched()), "{}", touched());
    templates().difference(&before).for_each(|path| fs::remove_file(path).unwrap());
    bundle.args(&["/bin/sleep", "1000"]);
    let _container = bundle.run_detached(&[]);
    assert_eq!(touched(), PAGES);
    let deadline = Instant::now() + patience(20);
    while touched() == PAGES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(is_known(touched()), "{}", touched());
}

/// One is there before the machine runs, which makes its template without it; whoever starts from that gets its own.
#[test]
fn interfaces_are_none_of_the_templates() {
    let settings = of_a_new_kind("").settings.clone();
    for resumed in [false, place() == Place::Kvm] {
        let pair = Pair::new("");
        let mut bundle = pair.bundle();
        bundle.settings = settings.clone();
        bundle.capabilities(&["CAP_NET_RAW"]);
        let (ended, from_template) =
            run(&mut bundle, "ping -c 2 -i 0.2 -W 5 10.9.0.1; cat /sys/class/net/eth0/address");
        ended.code(0);
        let mac = pair.pod.run("cat /sys/class/net/eth0/address");
        assert!(ended.text().contains(" 0% packet loss") && ended.text().contains(mac.trim()), "{ended}");
        assert_eq!(from_template, resumed);
        pair.is_clean();
    }
}

#[test]
fn whoever_wants_none_gets_none() {
    let mut bundle = of_a_new_kind("[snapshot]\nenabled = false\n");
    let before = templates();
    for _ in 0..2 {
        let (ended, resumed) = run(&mut bundle, "echo booted");
        ended.says(&["booted"]);
        assert!(!resumed);
    }
    assert!(templates().is_subset(&before));
}

/// It boots, and the next one has a new template.
#[test]
fn a_damaged_template_is_thrown_away() {
    let mut bundle = of_a_new_kind("");
    let before = templates();
    run(&mut bundle, "true").0.code(0);
    if place() == Place::Emulation {
        assert!(templates().is_subset(&before));
        return;
    }
    let made: Vec<PathBuf> = templates().difference(&before).cloned().collect();
    let [template] = &made[..] else { panic!("one template was to be made: {made:?}") };
    let length = fs::metadata(template).unwrap().len();
    let open = || fs::File::options().write(true).open(template).unwrap();
    let mut runs = || {
        [0, 1, 2].map(|_| {
            let (ended, resumed) = run(&mut bundle, "echo well");
            ended.code(0).stdout("well\n").stderr("");
            resumed
        })
    };
    for damaged in [0, length / 2, length - 100] {
        open().set_len(damaged).unwrap();
        assert_eq!(runs(), [false, true, true], "cut to {damaged} of {length}");
    }
    // Its end is whole, but not the machine's state before that: the VMM finds out, boots, and the next one has a new template.
    let length = fs::metadata(template).unwrap().len();
    let (mut tail, start) = (vec![0; 1 << 20], length - (1 << 20));
    fs::File::open(template).unwrap().read_exact_at(&mut tail, start).unwrap();
    let state = tail.windows(7).rposition(|window| window == b"rt snap").unwrap();
    open().write_all_at(b"no state", start + state as u64).unwrap();
    assert_eq!(runs(), [false, false, true]);
}

/// `rt gc` names those that are damaged, and those whose rt is another by now; not one that is of use.
#[test]
fn what_no_machine_starts_from_any_more_is_swept_up() {
    if place() == Place::Emulation {
        return;
    }
    let [kernel, initramfs] = ["vmlinux", "initramfs.cpio"].map(|name| guest_file("tuned", name));
    let mut bundle = of_a_new_kind(&format!("kernel = {kernel:?}\ninitramfs = {initramfs:?}\n"));
    let rt = bundle.path("rt");
    let copy = || host(&format!("cp {} {1}.new && mv {1}.new {1}", rt_binary().display(), rt.display()));
    copy();
    bundle.args(&["/bin/true"]);
    let before = templates();
    let make = || {
        let there = templates();
        bundle.call().through(&format!("shift; exec {} \"$@\"", rt.display())).end().code(0);
        let made: Vec<PathBuf> = templates().difference(&there).cloned().collect();
        made.into_iter().next().expect("it was made")
    };
    let gc = |flags: &[&str]| -> Vec<Value> {
        let ended = Bundle::new().rt(&[&["gc", "--format", "json"], flags].concat());
        let mut found: Vec<Value> = serde_json::from_slice(&ended.code(0).stdout).unwrap();
        found.retain(|one| {
            one["kind"] == "template" && !before.contains(Path::new(one["path"].as_str().unwrap()))
        });
        found
    };
    let old = make();
    assert_eq!(gc(&[]), [] as [Value; 0]);
    copy();
    let cut = make();
    fs::File::options().write(true).open(&cut).unwrap().set_len(1 << 20).unwrap();

    let mut seen = gc(&["--dry-run"]);
    seen.sort_by_key(|one| one["path"] != old.to_str().unwrap());
    let reasons: Vec<_> = seen.iter().map(|one| one["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(
        reasons,
        [format!("made of {}, which has been changed since", rt.display()), "damaged".into()]
    );
    assert!(old.exists() && cut.exists());
    assert!(gc(&[]).iter().all(|one| one["removed"] == true));
    assert!(!old.exists() && !cut.exists());
    assert_eq!(gc(&[]), [] as [Value; 0]);
}

#[test]
fn so_many_are_kept_as_configured() {
    if place() == Place::Emulation {
        assert!(!Path::new(DIRECTORY).exists() || templates().is_empty());
        return;
    }
    for _ in 0..3 {
        let mut bundle = of_a_new_kind("[snapshot]\nkeep = 2\n");
        run(&mut bundle, "true").0.code(0);
    }
    assert_eq!(templates().len(), 2);
}
