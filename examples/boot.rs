//! Boots a kernel with an initramfs in the built-in VMM, without container or agent: to try it out, and to measure it.
//!
//! `boot KERNEL INITRAMFS [-c VCPUS] [-m MIB] [-s SHARE] [-a PARAMETERS] [-n RUNS] [-t SECONDS] [-v] [-e COMMAND]`
//!
//! SHARE is a directory, `share` in the guest's virtio-fs `rt`. -v shows the whole console. COMMAND is run by a shell once the
//! guest has connected to the beacon port, with PID and FSD (processes) and VSOCK (socket) set. Prints how the guest ended, its console, and its timeline in
//! milliseconds; with RUNS, medians only.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rt::config::{Cache, Snapshot};
use rt::fsd::{self, Entry, FsdSpec};
use rt::hypervisor::kvm::{Kvm, probe, vmm_main};
use rt::hypervisor::{Ending, Hypervisor, VmFds, VmSpec};
use rt::sys::clock::monotonic_ns;

struct Request {
    spec: VmSpec,
    share: PathBuf,
    runs: usize,
    timeout: Duration,
    command: Option<String>,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|verb| verb.to_str()) {
        Some("vmm") => vmm_main(&args.collect::<Vec<OsString>>()),
        Some("fsd") => fsd::main(&args.collect::<Vec<OsString>>()),
        Some("probe") => {
            let start = Instant::now();
            println!("{:?} in {:?}", probe(), start.elapsed());
            ExitCode::SUCCESS
        }
        _ => match boot() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("boot: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn boot() -> anyhow::Result<()> {
    let request = parse()?;
    if request.runs == 1 {
        let (ending, timeline) = run(&request)?;
        println!("{}{}{}", ending.console, ending.log, ending.status);
        for (name, ms) in timeline {
            println!("{ms:8.2}  {name}");
        }
        return Ok(());
    }
    let mut all: Vec<Vec<(String, f64)>> = Vec::new();
    for _ in 0..request.runs {
        all.push(run(&request)?.1);
    }
    for (index, (name, _)) in all[0].iter().enumerate() {
        let mut times: Vec<f64> = all.iter().filter_map(|run| run.get(index)).map(|mark| mark.1).collect();
        times.sort_by(f64::total_cmp);
        println!("{:8.2} {:8.2}  {name}", times[times.len() / 2], times[0]);
    }
    Ok(())
}

fn parse() -> anyhow::Result<Request> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &'static str| args.next().context(what);
    let state_dir = std::env::temp_dir().join(format!("rt-boot-{}", std::process::id()));
    let mut request = Request {
        spec: VmSpec {
            id: "boot".to_owned(),
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            kernel: next("KERNEL")?.into(),
            initramfs: next("INITRAMFS")?.into(),
            kernel_parameters: String::new(),
            entropy: true,
            page_reporting: true,
            console: false,
            state_dir,
            network: false,
            block_slots: 0,
            share_tag: "rt".to_owned(),
        },
        share: std::env::temp_dir(),
        runs: 1,
        timeout: Duration::from_secs(60),
        command: None,
    };
    while let Ok(flag) = next("") {
        match flag.as_str() {
            "-v" => request.spec.console = true,
            "-c" => {
                request.spec.vcpus = next("VCPUS")?.parse()?;
                request.spec.max_vcpus = request.spec.vcpus;
            }
            "-m" => {
                request.spec.memory_mib = next("MIB")?.parse()?;
                request.spec.max_memory_mib = request.spec.memory_mib;
            }
            "-s" => request.share = next("SHARE")?.into(),
            "-a" => request.spec.kernel_parameters = next("PARAMETERS")?,
            "-n" => request.runs = next("RUNS")?.parse()?,
            "-t" => request.timeout = Duration::from_secs_f64(next("SECONDS")?.parse()?),
            "-e" => request.command = Some(next("COMMAND")?),
            _ => bail!("what is {flag}?"),
        }
    }
    Ok(request)
}

/// One boot: how it ended, and marks in ms since its launch.
fn run(request: &Request) -> anyhow::Result<(Ending, Vec<(String, f64)>)> {
    std::fs::create_dir_all(&request.spec.state_dir)?;
    let entry = Entry { name: "share".into(), source: request.share.clone(), readonly: false, id_map: None };
    let (server, share) = fsd::socket()?;
    let (cache, limits) = (Cache::default(), rt::config::Jail::default());
    let spec = FsdSpec { id: "boot".to_owned(), entries: vec![entry], cache, grows: false, limits };
    let mut fsd = fsd::launch(&spec, server)?;
    let deadline = Instant::now() + request.timeout;
    let start = monotonic_ns();
    let mut marks = Vec::new();
    let mut mark = |name: &str| marks.push((name.to_owned(), monotonic_ns()));
    let snapshot = Snapshot { enabled: false, ..Snapshot::default() };
    let mut vm = Kvm { snapshot }.launch(&request.spec, VmFds { share })?;
    mark("launched");
    let ending = match vm.accept(deadline) {
        Ok(beacon) => {
            mark("beacon");
            drop(beacon);
            if let Some(command) = &request.command {
                let socket = vm.record().vsock;
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", command]).env("PID", vm.record().pid.to_string()).env("VSOCK", socket);
                shell.env("FSD", fsd.pid().to_string());
                shell.status()?;
            }
            match vm.accept(deadline) {
                Err(rt::hypervisor::Error::Ended(ending) | rt::hypervisor::Error::Deadline(ending)) => {
                    *ending
                }
                Err(error) => return Err(error.into()),
                Ok(_) => bail!("a second beacon"),
            }
        }
        Err(rt::hypervisor::Error::Ended(ending) | rt::hypervisor::Error::Deadline(ending)) => *ending,
        Err(error) => return Err(error.into()),
    };
    mark("ended");
    drop(vm);
    mark("reaped");
    fsd.end();
    std::fs::remove_dir_all(&request.spec.state_dir)?;
    marks.extend(ending.timeline.iter().cloned());
    marks.sort_by_key(|mark| mark.1);
    let since = |ns: u64| ns.saturating_sub(start) as f64 / 1e6;
    Ok((ending, marks.into_iter().map(|(name, ns)| (name, since(ns))).collect()))
}
