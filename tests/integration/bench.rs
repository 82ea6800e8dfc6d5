//! Measurements (`make bench`): what a start costs, where the time goes, and what runc and crun take for the same bundle.
//!
//! A figure here is printed beside its bound and never asserted: it depends on the machine, and on what else runs there.
//! The table goes to standard output; `RT_BENCH_JSON` names a file for the same as JSON.

#[path = "bench_verbs.rs"]
mod verbs;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use self::verbs::Runtime;
use crate::shell::{Bundle, Place, Processes, guest_file, host, place, rt_binary};

/// How often a start is measured; medians are taken.
const ROUNDS: usize = 7;
const FILE_MIB: usize = 256;
/// What a link below /proc/PID/fd to one begins with.
const MEMORY_FILE: &str = "/memfd:";
/// After a container's start.
const SETTLED: Duration = Duration::from_secs(1);

/// Within what a figure should be; without a bound it is for comparison.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// The lines of a report, printed as they are measured: what fails later takes none of them away.
#[derive(Default)]
pub struct Table {
    rows: Vec<Value>,
    failed: Vec<String>,
}

impl Table {
    /// `bound` is the most that the figure should be.
    pub fn row(&mut self, what: impl Into<String>, value: f64, unit: &str, bound: Option<f64>) {
        self.bounded(what.into(), value, unit, bound.map(Bound::AtMost));
    }

    /// `bound` is the least that the figure should be.
    pub fn row_at_least(&mut self, what: impl Into<String>, value: f64, unit: &str, bound: Option<f64>) {
        self.bounded(what.into(), value, unit, bound.map(Bound::AtLeast));
    }

    fn bounded(&mut self, what: String, value: f64, unit: &str, bound: Option<Bound>) {
        let pass = bound.map(|bound| bound.holds(value));
        let text = match bound {
            None => String::new(),
            Some(Bound::AtMost(bound)) => format!("≤ {bound:.1}"),
            Some(Bound::AtLeast(bound)) => format!("≥ {bound:.1}"),
        };
        let verdict = pass.map_or("", |pass| if pass { "  pass" } else { "  miss" });
        println!("{what:<60} {value:>10.1} {unit:<5} {text}{verdict}");
        self.rows.push(json!({"what": what, "value": value, "unit": unit, "bound": text, "pass": pass}));
    }

    /// Measures one part, if `RT_BENCH_PART` names none or this. One that fails is a row that says so, and fails the whole in the end.
    pub fn part(&mut self, what: &str, measure: impl FnOnce(&mut Self)) {
        if std::env::var("RT_BENCH_PART").is_ok_and(|part| part != what) {
            return;
        }
        // What it has measured before stays; nothing else of the table is touched by it.
        if catch_unwind(AssertUnwindSafe(|| measure(self))).is_err() {
            println!("{what:<60} {:>10}", "failed");
            self.rows.push(json!({"what": what, "value": null, "pass": false}));
            self.failed.push(what.to_owned());
        }
    }

    /// Leaves the table as JSON beside `RT_BENCH_JSON`, in a file with this ending, and fails when a part has failed.
    pub fn end(self, ending: &str) {
        if let Some(path) = std::env::var_os("RT_BENCH_JSON") {
            let report = json!({"place": format!("{:?}", place()), "load": load(), "rows": self.rows});
            fs::write(Path::new(&path).with_extension(ending), format!("{report:#}\n")).unwrap();
        }
        println!();
        assert!(self.failed.is_empty(), "not measured: {}", self.failed.join(", "));
    }
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

#[test]
#[ignore = "a measurement: make bench"]
fn all() {
    println!("\n{:?}, load average {}", place(), load());
    let mut table = Table::default();
    table.part("starts", starts);
    table.part("first entry", first_entry);
    table.part("memory", memory);
    table.part("pods", pods);
    table.part("memory of pods", memory_of_pods);
    table.part("sizes", sizes);
    table.part("instructions", instructions);
    table.part("throughput of files", throughput);
    table.end("json");
}

fn monotonic_ms() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length => (values[(length - 1) / 2] + values[length / 2]) / 2.0,
    }
}

/// From fork to the exit that the caller sees, in ms of CLOCK_MONOTONIC.
struct Run {
    begin: f64,
    end: f64,
}

/// Without the harness around it.
fn run(program: &Path, args: &[&str]) -> Result<Run, String> {
    let begin = monotonic_ms();
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let end = monotonic_ms();
    match output.status.success() {
        true => Ok(Run { begin, end }),
        false => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned()),
    }
}

/// rt and its peers in turn, round by round, so that whatever else the machine does falls on all of them.
fn starts(table: &mut Table) {
    let bundle = Bundle::new();
    drop(bundle.call());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (dir, trace, root) =
        (text(bundle.dir()), text(&bundle.path("trace.json")), text(&bundle.path("run")));
    let mut peers: Vec<Peer> = ["runc", "crun"].into_iter().filter_map(Peer::find).collect();
    let mut wall = Vec::new();
    let mut split = Split::default();
    for round in 0..ROUNDS {
        let args = ["--root", &root, "run", "--trace", &trace, "-b", &dir];
        let run = run(&rt_binary(), &args).unwrap_or_else(|error| panic!("rt: {error}"));
        wall.push(run.end - run.begin);
        split.add(&run, &fs::read(&trace).unwrap());
        peers.retain_mut(|peer| peer.run(&format!("{}-{round}", bundle.id), &root, &dir));
    }
    let peers: Vec<(&str, f64)> = peers.iter_mut().map(|peer| (peer.name, median(&mut peer.times))).collect();
    let runc = peers.iter().find(|(name, _)| *name == "runc").map(|(_, ms)| *ms);
    let bound = match place() {
        Place::Emulation => Some(2000.0),
        Place::Kvm => runc.map(|ms| 1.6 * ms),
    };
    if place() == Place::Kvm {
        table.row("rt run /bin/true, the first of its kind, which boots", wall[0], "ms", None);
    }
    table.row("rt run /bin/true, whole process", median(&mut wall), "ms", bound);
    split.tell(table);
    for (name, ms) in peers {
        table.row(format!("{name} run /bin/true"), ms, "ms", None);
    }
}

/// Another runtime, for comparison.
struct Peer {
    name: &'static str,
    program: PathBuf,
    times: Vec<f64>,
}

impl Peer {
    fn find(name: &'static str) -> Option<Self> {
        let places = ["/usr/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
        let program = places.into_iter().find(|path| path.exists());
        if program.is_none() {
            println!("{name} is not here");
        }
        Some(Self { name, program: program?, times: Vec::new() })
    }

    /// False when it does not run here.
    fn run(&mut self, id: &str, root: &str, dir: &str) -> bool {
        let root = format!("{root}-{}", self.name);
        let program = &self.program;
        let run = thread::scope(|scope| {
            let run = || {
                hide_second_cgroups();
                run(program, &["--root", &root, "run", "-b", dir, id])
            };
            scope.spawn(run).join().unwrap()
        });
        match run {
            Ok(run) => self.times.push(run.end - run.begin),
            Err(error) => println!("{} does not run here: {error}", self.name),
        }
        !self.times.is_empty()
    }
}

/// crun refuses a host whose cgroups are of version 1 and, beside it, 2. This thread, and what it starts, see the first alone.
fn hide_second_cgroups() {
    let second = Path::new("/sys/fs/cgroup/unified");
    if second.exists() {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        umount2(second, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Parts of a start and end, each from one mark of the timeline to another.
const PARTS: [(&str, &str, &str); 10] = [
    ("process start", "", "rt.start"),
    ("plan and choice of the backend", "rt.start", "rt.backend-selected"),
    ("VMM and file server started", "rt.backend-selected", "rt.vmm-started"),
    ("kernel entered, since the VMM's exec", "vmm.exec", "vmm.run"),
    ("agent up, since the VMM was started", "rt.vmm-started", "agent.hello"),
    ("container created", "agent.hello", "container.created"),
    ("container started", "container.created", "container.started"),
    ("container's exit seen and its output drained", "container.started", "container.drained"),
    ("guest shut down, VMM and file server ended", "container.drained", "rt.vm-ended"),
    ("cleanup and exit", "rt.vm-ended", ""),
];

/// Where the time of several runs went.
#[derive(Default)]
struct Split {
    parts: [Vec<f64>; PARTS.len()],
    /// From each mark to the next.
    steps: Vec<(String, Vec<f64>)>,
}

impl Split {
    fn add(&mut self, run: &Run, trace: &[u8]) {
        let marks: Vec<Value> = serde_json::from_slice(trace).unwrap();
        // The others name the rows of a viewer.
        let marks = marks.iter().filter(|mark| mark["ph"] == "X");
        let marks: Vec<(&str, f64)> = marks
            .map(|mark| (mark["name"].as_str().unwrap(), mark["ns"].as_u64().unwrap() as f64 / 1e6))
            .collect();
        let at = |name: &str| marks.iter().find(|mark| mark.0 == name).map(|mark| mark.1);
        for ((_, from, to), times) in PARTS.iter().zip(&mut self.parts) {
            let from = if from.is_empty() { Some(run.begin) } else { at(from) };
            let to = if to.is_empty() { Some(run.end) } else { at(to) };
            // A mark that the other backend does not set.
            times.extend(from.zip(to).map(|(from, to)| to - from));
        }
        let mut last = ("caller", run.begin);
        for (name, ms) in marks.iter().copied().chain([("exit seen", run.end)]) {
            let step = format!("{} → {name}", last.0);
            match self.steps.iter_mut().find(|(known, _)| *known == step) {
                Some((_, times)) => times.push(ms - last.1),
                None => self.steps.push((step, vec![ms - last.1])),
            }
            last = (name, ms);
        }
    }

    fn tell(self, table: &mut Table) {
        for ((what, ..), mut times) in PARTS.iter().zip(self.parts) {
            if !times.is_empty() {
                table.row(format!("  {what}"), median(&mut times), "ms", None);
            }
        }
        // Those that come now and then, since two processes' marks have no order, say nothing.
        for (step, mut times) in self.steps.into_iter().filter(|(_, times)| times.len() > ROUNDS / 2) {
            table.row(format!("    {step}"), median(&mut times), "ms", None);
        }
    }
}

/// Launch to first KVM_RUN, also where KVM gets no further: at native speed, without container and agent.
fn first_entry(table: &mut Table) {
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test/boot");
    if place() == Place::Kvm || !boot.exists() || !Path::new("/dev/kvm").exists() {
        return println!(
            "launch to first KVM_RUN is measured natively, by `make bench`, where there is a /dev/kvm"
        );
    }
    let output = Command::new(boot)
        .args([guest_file("tuned", "vmlinux"), guest_file("tuned", "initramfs.cpio")])
        .args(["-n", "20", "-t", "2"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // MEDIAN LEAST NAME
    let text = String::from_utf8_lossy(&output.stdout);
    let ms =
        text.lines().find(|line| line.ends_with("  vmm.run")).and_then(|line| line.split_whitespace().next());
    match ms.and_then(|ms| ms.parse().ok()) {
        Some(ms) => table.row("VMM, launch to first KVM_RUN", ms, "ms", Some(20.0)),
        None => println!("no first KVM_RUN: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The sum of the fields of /proc/PID/smaps that begin so, in kB, over those mappings that count.
fn smaps_kb(pid: i32, field: &str, counts: impl Fn(&str) -> bool) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut counted, mut sum) = (false, 0.0);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if !first.ends_with(':') {
            counted = counts(line);
        } else if counted && first.starts_with(field) {
            sum += line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    sum
}

fn memory(table: &mut Table) {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nmemory_mib = 128\n".into();
    bundle.args(&["/bin/sh", "-c", "echo ready; exec sleep 1000"]);
    let mut running = bundle.call().no_log().record_stays().start();
    running.says("ready\n");
    thread::sleep(std::time::Duration::from_secs(2));
    let (vmm, fsd) = (running.helper("vmm"), running.helper("fsd"));
    // What is a template's is the guest's too.
    let guest = |line: &str| line.contains("memfd:") || line.contains("rt-templates");
    let mib = |pid| smaps_kb(pid, "Private_", |line| !guest(line)) / 1024.0;
    let vmm_bound = (place() == Place::Kvm).then_some(4.0);
    table.row("VMM, private memory without the guest's", mib(vmm), "MiB", vmm_bound);
    table.row("file server and monitor, private memory", mib(fsd) + mib(running.pid()), "MiB", Some(6.0));
    match memory_files_mib(&[vmm]) {
        Some(mib) => {
            let bound = (place() == Place::Kvm).then_some(36.0);
            table.row("guest memory touched, idle, of 128 MiB", mib, "MiB", bound);
        }
        None => println!("the VMM holds no memfd: guest memory is not told apart"),
    }
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.end();
}

/// Bundles of a pod: its sandbox, and so many containers more.
fn pod_bundles(members: usize) -> Vec<Bundle> {
    let (kind, pod) = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id");
    let mut bundles: Vec<Bundle> = (0..=members).map(|_| Bundle::new()).collect();
    let (id, root) = (bundles[0].id.clone(), bundles[0].root.clone());
    for (number, bundle) in bundles.iter_mut().enumerate() {
        bundle.root = root.clone();
        bundle.config["annotations"] =
            json!({kind: if number == 0 { "sandbox" } else { "container" }, pod: id});
        bundle.args(&["/bin/sleep", "100000"]);
    }
    bundles
}

fn processes_of(bundles: &[Bundle]) -> Vec<i32> {
    bundles.iter().flat_map(|bundle| Processes::of(&bundle.id).pids().collect::<Vec<_>>()).collect()
}

/// What processes hold of the host's memory, in MiB: what several share in parts, and memory files whole, whether their pages are mapped or not.
fn held_mib(pids: &[i32]) -> f64 {
    let mapped = pids.iter().map(|pid| smaps_kb(*pid, "Pss:", |line| !line.contains(MEMORY_FILE)));
    mapped.sum::<f64>() / 1024.0 + memory_files_mib(pids).unwrap_or(0.0)
}

/// Of memory files that processes have open, a guest's memory above all, what has been touched, in MiB; none where there is no such file.
fn memory_files_mib(pids: &[i32]) -> Option<f64> {
    let mut files = BTreeMap::new();
    for fd in pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap()).flatten() {
        if fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().starts_with(MEMORY_FILE)) {
            let file = fs::metadata(fd.path()).unwrap();
            files.insert((file.dev(), file.ino()), file.blocks() as f64 * 512.0 / 1048576.0);
        }
    }
    (!files.is_empty()).then(|| files.into_values().sum())
}

/// What the second container of a pod costs beside the first, which on KVM starts from a template most often, and boots else.
fn pods(table: &mut Table) {
    let bundles = pod_bundles(1);
    bundles.iter().for_each(|bundle| drop(bundle.call()));
    let dirs = [0, 1].map(|number| bundles[number].dir().to_str().expect("a path of ours"));
    let booting = bundles[0].path("booting.toml");
    fs::write(&booting, "[snapshot]\nenabled = false\n").unwrap();
    let first = |rt: &Runtime| create_and_start(rt, dirs[0], &bundles[0].id);
    let delete = |rt: &Runtime, bundle: &Bundle| {
        rt.time(&["delete", "--force", &bundle.id]).unwrap_or_else(|error| panic!("{error}"));
    };
    let rt = Runtime::rt(bundles[0].root.clone(), None);
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        took[0].push(first(&rt));
        // What the first still has to do when its start has returned is not the second's.
        thread::sleep(SETTLED);
        took[1].push(create_and_start(&rt, dirs[1], &bundles[1].id));
        if round == 0 {
            let pids = processes_of(&bundles);
            // VMM, file server, a monitor for each container; under QEMU a server of vsock, where the host's kernel has none.
            let bound = 4 + usize::from(Processes::of(&bundles[0].id).with_role("vsockd").is_some());
            table.row("processes of a pod of two containers", pids.len() as f64, "", Some(bound as f64));
            let pss: f64 = pids.iter().map(|pid| smaps_kb(*pid, "Pss:", |_| true)).sum();
            table.row("  their Pss, guest and all", pss / 1024.0, "MiB", None);
        }
        bundles.iter().rev().for_each(|bundle| delete(&rt, bundle));
    }
    let [mut from_template, mut second] = took;
    let (from_template, second) = (median(&mut from_template), median(&mut second));
    if place() == Place::Emulation {
        table.row("first container of a pod, create + start", from_template, "ms", None);
        table.row("second container of a pod, create + start", second, "ms", Some(from_template / 4.0));
        return;
    }
    let rt = Runtime::rt(bundles[0].root.clone(), Some(booting));
    let boot = first(&rt);
    delete(&rt, &bundles[0]);
    table.row("first container of a pod, create + start, boots", boot, "ms", None);
    table.row("  from a template", from_template, "ms", None);
    table.row("second container of a pod, create + start", second, "ms", Some(boot / 4.0));
    table.row("  as a share of a first one from a template", 100.0 * second / from_template, "%", Some(25.0));
}

fn create_and_start(rt: &Runtime, dir: &str, id: &str) -> f64 {
    let must = |args: &[&str]| rt.time(args).unwrap_or_else(|error| panic!("{error}"));
    must(&["create", "-b", dir, id]) + must(&["start", id])
}

/// What each of several idle pods adds to what the host's memory holds.
fn memory_of_pods(table: &mut Table) {
    let mut pods: Vec<Vec<Bundle>> = (0..10).map(|_| pod_bundles(0)).collect();
    for bundle in pods.iter_mut().flatten() {
        bundle.settings = "[hypervisor]\nmemory_mib = 128\n".into();
    }
    let mut containers = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        containers.push(pod[0].run_detached(&[]));
        let count = number + 1;
        if ![1, 5, 10].contains(&count) {
            continue;
        }
        thread::sleep(std::time::Duration::from_secs(2));
        let all: Vec<i32> = pods[..count].iter().flat_map(|pod| processes_of(pod)).collect();
        let vmms = pods[..count].iter().filter_map(|pod| Processes::of(&pod[0].id).with_role("vmm"));
        let guests: Option<f64> = vmms.map(|vmm| memory_files_mib(&[vmm])).sum();
        // QEMU, which emulates, keeps what it has translated.
        let bound = guests.filter(|_| place() == Place::Kvm).map(|guests| guests / count as f64 + 20.0);
        table.row(
            format!("host memory of an idle pod, of {count}"),
            held_mib(&all) / count as f64,
            "MiB",
            bound,
        );
    }
}

fn sizes(table: &mut Table) {
    let size = |kind, name| fs::metadata(guest_file(kind, name)).unwrap().len() as f64 / 1048576.0;
    for kind in ["tuned", "quick"] {
        table.row(format!("initramfs (the agent), {kind}"), size(kind, "initramfs.cpio"), "MiB", Some(5.0));
    }
    table.row("kernel, tuned", size("tuned", "vmlinux"), "MiB", None);
    table.row("rt", fs::metadata(rt_binary()).unwrap().len() as f64 / 1048576.0, "MiB", None);
}

fn instructions(table: &mut Table) {
    if place() == Place::Emulation {
        table.row("start → /init, virtual time", crate::budget::start_to_init_ms(), "ms", Some(320.0));
    }
}

/// MB/s from the first byte to the last, and whether they are the right ones.
fn pour(mut command: Command, expected: &[u8]) -> f64 {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 18];
    let (mut at, mut begin, mut same) = (0, None, true);
    loop {
        match pipe.read(&mut buffer).unwrap() {
            0 => break,
            count => {
                begin.get_or_insert_with(Instant::now);
                same &= expected.get(at..at + count) == Some(&buffer[..count]);
                at += count;
            }
        }
    }
    let seconds = begin.expect("something was read").elapsed().as_secs_f64();
    assert!(child.wait().unwrap().success() && same && at == expected.len(), "bytes were lost: {at}");
    at as f64 / 1e6 / seconds
}

fn throughput(table: &mut Table) {
    let mut bundle = Bundle::new();
    let file = bundle.rootfs("tmp/large");
    host(&format!("head -c {} /dev/urandom >{}", FILE_MIB << 20, file.display()));
    let expected = fs::read(&file).unwrap();
    bundle.args(&["/bin/cat", "/tmp/large"]);
    drop(bundle.call());
    let mut plain = Command::new("/bin/cat");
    plain.arg(&file);
    let mut rt = Command::new(rt_binary());
    rt.arg("--root").arg(bundle.path("run")).args(["run", "-b"]).arg(bundle.dir());
    table.row(format!("cat of {FILE_MIB} MiB from the root file system"), pour(rt, &expected), "MB/s", None);
    table.row("plain cat of the same file", pour(plain, &expected), "MB/s", None);
}
