//! The command line: flags to a request, one call, error to exit code. No logic of its own.

mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::hypervisor::Kind;
use crate::sandbox::Timeline;
use crate::{fsd, hypervisor, log, sys};

/// rt's own failures; a container's exit code is passed on.
const FAILURE: u8 = 1;
/// The runtime-spec version that rt follows.
const SPEC_VERSION: &str = "1.2.0";

#[derive(Debug, Parser)]
#[command(
    name = "rt",
    about = "Runs OCI containers, each in its own lightweight virtual machine",
    version = version(),
    disable_version_flag = true,
    subcommand_required = true
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags before the verb.
#[derive(Debug, clap::Args)]
struct Global {
    /// Log debugging information too
    #[arg(long)]
    debug: bool,
    /// Append the log to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text")]
    log_format: log::Format,
    /// Directory of the containers' state [default: /run/rt, or $XDG_RUNTIME_DIR/rt for other users than root]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What carries the virtual machine
    #[arg(long, value_enum, default_value = "auto")]
    hypervisor: HypervisorChoice,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HypervisorChoice {
    /// The configured one, else the best that works on this host
    Auto,
    /// rt's own VMM on KVM
    Kvm,
    /// QEMU
    Qemu,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Arguments),
}

impl Global {
    fn log(&self) -> log::Settings {
        log::Settings { file: self.log.clone(), format: self.log_format, debug: self.debug }
    }

    fn root(&self) -> PathBuf {
        match (&self.root, std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(root), _) => root.clone(),
            (None, Some(runtime)) if !nix::unistd::geteuid().is_root() => PathBuf::from(runtime).join("rt"),
            _ => "/run/rt".into(),
        }
    }

    fn hypervisor(&self) -> Option<Kind> {
        match self.hypervisor {
            HypervisorChoice::Auto => None,
            HypervisorChoice::Kvm => Some(Kind::Kvm),
            HypervisorChoice::Qemu => Some(Kind::Qemu),
        }
    }
}

/// Runs the verb that the arguments ask for.
pub fn main() -> ExitCode {
    let mut timeline = Timeline::default();
    timeline.mark("rt.start");
    restore_terminal_on_panic();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = hidden(&arguments) {
        return code;
    }
    match Arguments::try_parse_from(&arguments) {
        Ok(arguments) => dispatch(&arguments, timeline),
        Err(error) if error.use_stderr() => {
            println!("Incorrect Usage.\n\n{error}");
            ExitCode::from(FAILURE)
        }
        // Help or version, which were asked for.
        Err(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
    }
}

/// The verbs under which rt starts itself as a helper; `jail::Spawn` writes these arguments.
fn hidden(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = arguments.get(2..).unwrap_or_default();
    match arguments.get(1)?.to_str()? {
        "vmm" => Some(hypervisor::kvm::vmm_main(rest)),
        "fsd" => Some(fsd::main(rest)),
        "vsockd" => Some(hypervisor::qemu::vsockd::main(rest)),
        "qemu" => Some(hypervisor::qemu::process::main(rest)),
        _ => None,
    }
}

fn dispatch(arguments: &Arguments, timeline: Timeline) -> ExitCode {
    let global = &arguments.global;
    if let Err(error) = global.log().start() {
        let path = global.log.as_deref().unwrap_or(Path::new("")).display();
        eprintln!("cannot open the log file {path}: {error}");
        return ExitCode::from(FAILURE);
    }
    let (name, result) = match &arguments.verb {
        Verb::Run(run) => ("run", configured().and_then(|config| run.run(global, &config, timeline))),
    };
    sys::terminal::restore();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            global.log().failure(&format!("rt {name} failed: {}", log::chain(&*error)));
            ExitCode::from(FAILURE)
        }
    }
}

fn configured() -> anyhow::Result<Config> {
    Ok(Config::load()?)
}

fn version() -> &'static str {
    concat!("version ", env!("CARGO_PKG_VERSION"))
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        sys::terminal::restore();
        report(panic);
    }));
}
