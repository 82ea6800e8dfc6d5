//! Measurements (`make bench`): what a start costs, where the time goes, and what runc and crun take for the same bundle.
//!
//! A figure here is printed beside its bound and never asserted: it depends on the machine, and on what else runs there.
//! The table goes to standard output; `RT_BENCH_JSON` names a file for the same as JSON.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::shell::{Bundle, Place, guest_file, host, place, rt_binary};

/// How often a start is measured; medians are taken.
const ROUNDS: usize = 7;
const FILE_MIB: usize = 256;

/// One line of the table.
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    /// At most; without one the figure is for comparison.
    bound: Option<f64>,
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn row(&mut self, what: impl Into<String>, value: f64, unit: &'static str, bound: Option<f64>) {
        self.0.push(Row { what: what.into(), value, unit, bound });
    }

    fn print(&self) {
        let mut text = String::from("\n");
        for Row { what, value, unit, bound } in &self.0 {
            let verdict = match bound {
                None => String::new(),
                Some(bound) if value <= bound => format!("≤ {bound:.1}  pass"),
                Some(bound) => format!("≤ {bound:.1}  miss"),
            };
            let _ = writeln!(text, "{what:<60} {value:>10.1} {unit:<5} {verdict}");
        }
        println!("{text}");
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let pass = row.bound.map(|bound| row.value <= bound);
            json!({"what": row.what, "value": row.value, "unit": row.unit, "bound": row.bound, "pass": pass})
        };
        self.0.iter().map(row).collect()
    }
}

#[test]
#[ignore = "a measurement: make bench"]
fn all() {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{:?}, load average {}", place(), load.trim());
    let mut table = Table::default();
    starts(&mut table);
    memory(&mut table);
    pods(&mut table);
    sizes(&mut table);
    instructions(&mut table);
    throughput(&mut table);
    table.print();
    if let Some(path) = std::env::var_os("RT_BENCH_JSON") {
        let report = json!({"place": format!("{:?}", place()), "load": load.trim(), "rows": table.json()});
        fs::write(path, format!("{report:#}\n")).unwrap();
    }
}

fn monotonic_ms() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length => (values[(length - 1) / 2] + values[length / 2]) / 2.0,
    }
}

/// A run without the harness around it: wall time in ms, from fork to the exit that the caller sees.
fn run(program: &Path, args: &[&str]) -> Result<(f64, f64, f64), String> {
    let begin = monotonic_ms();
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let end = monotonic_ms();
    match output.status.success() {
        true => Ok((begin, end, end - begin)),
        false => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned()),
    }
}

fn starts(table: &mut Table) {
    let bundle = Bundle::new();
    drop(bundle.call());
    let (dir, trace, root) = (bundle.dir().to_owned(), bundle.path("trace.json"), bundle.path("run"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (dir, trace, root) = (text(&dir), text(&trace), text(&root));

    let mut peers = Vec::new();
    for peer in ["/usr/sbin/runc", "/usr/bin/crun"] {
        let name = Path::new(peer).file_name().unwrap().to_str().unwrap();
        if !Path::new(peer).exists() {
            println!("{name} is not here");
            continue;
        }
        let peer_root = format!("{root}-{name}");
        let times: Result<Vec<f64>, String> = (0..ROUNDS)
            .map(|round| {
                let id = format!("{}-{name}-{round}", bundle.id);
                run(Path::new(peer), &["--root", &peer_root, "run", "-b", &dir, &id]).map(|run| run.2)
            })
            .collect();
        match times {
            Ok(mut times) => peers.push((name, median(&mut times))),
            Err(error) => println!("{name} does not run here: {error}"),
        }
    }

    let mut wall = Vec::new();
    let mut splits: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..ROUNDS {
        let args = ["--root", &root, "run", "--trace", &trace, "-b", &dir];
        let (begin, end, took) = run(&rt_binary(), &args).unwrap_or_else(|error| panic!("rt: {error}"));
        wall.push(took);
        let mut marks: Vec<Value> = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
        marks.retain(|mark| mark["ph"] == "X");
        let mut last = ("caller".to_owned(), begin);
        let marks = marks.iter().map(|mark| {
            (mark["name"].as_str().unwrap().to_owned(), mark["ns"].as_u64().unwrap() as f64 / 1e6)
        });
        for (name, ms) in marks.chain([("exit seen".to_owned(), end)]) {
            let step = format!("  {} → {name}", last.0);
            match splits.iter_mut().find(|(known, _)| *known == step) {
                Some((_, values)) => values.push(ms - last.1),
                None => splits.push((step, vec![ms - last.1])),
            }
            last = (name, ms);
        }
    }
    let runc = peers.iter().find(|(name, _)| *name == "runc").map(|(_, ms)| *ms);
    let bound = match place() {
        Place::Emulation => Some(2000.0),
        Place::Kvm => runc.map(|ms| 1.6 * ms),
    };
    table.row("rt run /bin/true, whole process", median(&mut wall), "ms", bound);
    for (step, mut values) in splits {
        let odd =
            if values.len() < ROUNDS { format!(" ({} of {ROUNDS})", values.len()) } else { String::new() };
        table.row(format!("{step}{odd}"), median(&mut values), "ms", None);
    }
    for (name, ms) in peers {
        table.row(format!("{name} run /bin/true"), ms, "ms", None);
    }
}

/// Of one mapping in /proc/PID/smaps or the sum of all: kB that this process alone holds.
fn private_kb(pid: i32, counts: impl Fn(&str) -> bool) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut counted, mut sum) = (false, 0.0);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if !first.ends_with(':') {
            counted = counts(line);
        } else if counted && first.starts_with("Private_") {
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
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (vmm, fsd) = (running.helper("vmm"), running.helper("fsd"));
    let guest = |line: &str| line.contains("memfd:");
    let mib = |pid| private_kb(pid, |line| !guest(line)) / 1024.0;
    let vmm_bound = (place() == Place::Kvm).then_some(4.0);
    table.row("VMM, private memory without the guest's", mib(vmm), "MiB", vmm_bound);
    table.row("file server and monitor, private memory", mib(fsd) + mib(running.pid()), "MiB", Some(6.0));
    let blocks = host(&format!(
        "for fd in /proc/{vmm}/fd/*; do case $(readlink $fd) in /memfd:*) stat -L -c '%b' $fd; break;; esac; done"
    ));
    match blocks.parse::<f64>() {
        Ok(blocks) => {
            let bound = (place() == Place::Kvm).then_some(36.0);
            table.row("guest memory touched, idle, of 128 MiB", blocks * 512.0 / 1048576.0, "MiB", bound);
        }
        Err(_) => println!("the VMM holds no memfd: guest memory is not told apart"),
    }
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.end();
}

/// What the second container of a pod costs beside the first.
fn pods(table: &mut Table) {
    let (kind, pod) = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id");
    let mut first = Bundle::new();
    first.config["annotations"] = json!({kind: "sandbox", pod: first.id});
    let mut second = Bundle::new();
    second.root = first.root.clone();
    second.config["annotations"] = json!({kind: "container", pod: first.id});
    let bundles = [&mut first, &mut second].map(|bundle| {
        bundle.args(&["/bin/sleep", "1000"]);
        &*bundle
    });
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let containers = [0, 1].map(|number| {
            let begin = monotonic_ms();
            let container = bundles[number].create(&[]);
            container.start();
            took[number].push(monotonic_ms() - begin);
            container
        });
        if round == 0 {
            let processes = host(&format!("pgrep -f '{}|{}' | wc -l", bundles[0].id, bundles[1].id));
            table.row("processes of a pod of two containers", processes.parse().unwrap(), "", None);
        }
        let [sandbox, member] = containers;
        drop(member);
        drop(sandbox);
    }
    let [mut first, mut second] = took;
    let (first, second) = (median(&mut first), median(&mut second));
    table.row("first container of a pod, create + start", first, "ms", None);
    table.row("second container of a pod, create + start", second, "ms", Some(first / 4.0));
}

fn sizes(table: &mut Table) {
    let size = |kind, name| fs::metadata(guest_file(kind, name)).unwrap().len() as f64 / 1048576.0;
    table.row("initramfs (the agent), tuned", size("tuned", "initramfs.cpio"), "MiB", Some(5.0));
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
