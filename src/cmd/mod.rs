//! The command line: flags to a request, one call, error to exit code. No logic of its own.

mod checkpoint;
mod config;
mod create;
mod debug;
mod delete;
mod doctor;
mod events;
mod exec;
mod features;
mod gc;
mod install;
mod kata_check;
mod kill;
mod list;
mod logs;
#[cfg(test)]
mod messages;
mod metrics;
#[cfg(test)]
mod pages;
mod pause;
mod ps;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod stats;
mod trace;
mod update;
mod usage;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::{Config, Error as ConfigError, Flag};
use crate::container::{self, Store};
use crate::sandbox::Timeline;
use crate::{fsd, hypervisor, log, sys};

/// rt's own failures; a container's exit code is passed on.
const FAILURE: u8 = 1;
/// The runtime-spec version that rt follows.
const SPEC_VERSION: &str = "1.2.0";
/// What rt was built from, as the build says.
const COMMIT: &str = match option_env!("RT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

#[derive(Debug, Parser)]
#[command(
    name = "rt",
    about = "Open Container Initiative runtime, each container in its own lightweight virtual machine",
    version = usage::version(),
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
    /// Form of the log [default: text]
    #[arg(long, value_enum)]
    log_format: Option<log::Format>,
    /// Directory of the containers' state [default: /run/rt, or $XDG_RUNTIME_DIR/rt for other users than root]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// cgroupsPath has systemd's form, SLICE:PREFIX:NAME
    #[arg(long)]
    systemd_cgroup: bool,
    /// Go on without host cgroups where they are not allowed; auto: unless root
    #[arg(long, value_enum, default_value = "auto")]
    rootless: Rootless,
    /// Accepted for runc's sake: a virtual machine is not CRIU's to save
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// What carries the virtual machine
    #[arg(long, value_enum)]
    hypervisor: Option<HypervisorChoice>,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rootless {
    True,
    False,
    Auto,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HypervisorChoice {
    /// The best that works on this host
    Auto,
    /// rt's own VMM on KVM
    Kvm,
    /// QEMU
    Qemu,
}

/// Of a verb that is not called, clap makes no more than is here (`defer`): its flags would be a fifth of what `rt state` takes.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Verb {
    /// Not supported: the state of a container in a virtual machine is that of its machine
    Checkpoint(checkpoint::Checkpoint),
    /// Show the configuration that is in force, or convert one of Kata Containers
    Config(config::Arguments),
    /// Create a container; its process waits for `rt start`
    Create(create::Arguments),
    /// Open a shell in the guest itself, beside its agent
    ///
    /// It is root's, in the guest's own namespaces: it sees all containers of the sandbox, the guest's mounts, devices and kernel log. The
    /// guest has no programs: rt lends it the host's static busybox, or what hypervisor.debug_shell names. Needs
    /// hypervisor.debug_console.
    Debug(debug::Arguments),
    /// Delete a container that has stopped
    Delete(delete::Arguments),
    /// Show how this node's engines are wired to rt, what is wrong, and the line that mends it; exit code 1 if something is
    Doctor(doctor::Arguments),
    /// Show statistics and out-of-memory events of a container
    Events(events::Arguments),
    /// Run another process in a container
    Exec(Box<exec::Arguments>),
    /// Show what the runtime supports
    Features(features::Arguments),
    /// Remove what crashed sandboxes and older versions left
    Gc(gc::Arguments),
    /// Make an engine know this rt as the runtime "rt"; shows the change first
    Install(install::Arguments),
    /// Check whether this host can run containers in virtual machines: exit code 0 with hardware virtualisation, 1 without
    #[command(alias = "check")]
    KataCheck(kata_check::Check),
    /// Show what this rt and its host are made of, as Kata Containers does
    #[command(alias = "env")]
    KataEnv(kata_check::Environ),
    /// Send a signal to the container's process
    Kill(kill::Arguments),
    /// List containers
    List(list::Arguments),
    /// Show the log of a sandbox: its guest's kernel and agent
    Logs(logs::Arguments),
    /// Serve what containers use to Prometheus
    Metrics(metrics::Arguments),
    /// Suspend all processes of a container
    Pause(pause::Arguments),
    /// Show the processes of a container
    Ps(ps::Arguments),
    /// Not supported: the state of a container in a virtual machine is that of its machine
    Restore(checkpoint::Restore),
    /// Resume all processes of a paused container
    Resume(resume::Arguments),
    /// Create and run a container
    Run(run::Arguments),
    /// Create a new specification file
    Spec(spec::Arguments),
    /// Start a created container
    Start(start::Arguments),
    /// Show the state of a container
    State(state::Arguments),
    /// Show what containers use, in the guest and on the host
    Stats(stats::Arguments),
    /// Show the timeline of a container's start
    Trace(trace::Arguments),
    /// Change the resource limits of a container
    Update(Box<update::Arguments>),
}

impl Verb {
    fn run(
        &self,
        global: &Global,
        config: Result<Config, ConfigError>,
        timeline: Timeline,
    ) -> anyhow::Result<u8> {
        match self {
            Self::Checkpoint(arguments) => arguments.run(),
            Self::Restore(arguments) => arguments.run(),
            Self::Features(arguments) => arguments.run(),
            Self::Install(arguments) => arguments.run(),
            Self::Spec(arguments) => arguments.run(),
            Self::Doctor(arguments) => arguments.run(),
            Self::Config(arguments) => arguments.run(config),
            Self::KataCheck(arguments) => arguments.run(&config),
            Self::KataEnv(arguments) => arguments.run(config),
            // Of it they need only where the state is.
            Self::List(arguments) => global.knows_root(config).and_then(|()| arguments.run(global)),
            Self::State(arguments) => global.knows_root(config).and_then(|()| arguments.run(global)),
            Self::Create(arguments) => arguments.run(global, &config?),
            Self::Debug(arguments) => arguments.run(global, &config?),
            Self::Delete(arguments) => arguments.run(global, &config?),
            Self::Events(arguments) => arguments.run(global, &config?),
            Self::Exec(arguments) => arguments.run(global, &config?),
            Self::Kill(arguments) => arguments.run(global, &config?),
            Self::Pause(arguments) => arguments.run(global, &config?),
            Self::Ps(arguments) => arguments.run(global, &config?),
            Self::Resume(arguments) => arguments.run(global, &config?),
            Self::Run(arguments) => arguments.run(global, &config?, timeline),
            Self::Start(arguments) => arguments.run(global, &config?),
            Self::Update(arguments) => arguments.run(global, &config?),
            Self::Gc(arguments) => arguments.run(global, &config?),
            Self::Logs(arguments) => arguments.run(global, &config?),
            Self::Metrics(arguments) => arguments.run(global, &config?),
            Self::Stats(arguments) => arguments.run(global, &config?),
            Self::Trace(arguments) => global.knows_root(config).and_then(|()| arguments.run(global)),
        }
    }

    /// What a failure's text begins with, and its exit code, as runc has them.
    fn failure(&self) -> (&'static str, u8) {
        match self {
            Self::Create(_) => ("rt create failed: ", 1),
            Self::Run(_) => ("rt run failed: ", 1),
            Self::Exec(_) => ("exec failed: ", 255),
            _ => ("", 1),
        }
    }
}

impl Global {
    /// The settings that flags give.
    fn flags(&self) -> Vec<Flag> {
        let path =
            |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string();
        let mut flags = Vec::new();
        let mut add = |key, name, value: Option<toml::Value>| {
            flags.extend(value.map(|value| Flag { key, value, name }));
        };
        add("runtime.debug", "--debug", self.debug.then(|| true.into()));
        add("runtime.log", "--log", self.log.as_deref().map(|log| path(log).into()));
        add("runtime.log_format", "--log-format", self.log_format.map(word));
        add("runtime.root", "--root", self.root.as_deref().map(|root| path(root).into()));
        add("cgroup.systemd", "--systemd-cgroup", self.systemd_cgroup.then(|| true.into()));
        add("hypervisor.kind", "--hypervisor", self.hypervisor.map(word));
        flags
    }

    /// Takes over what the configuration says, flags included.
    fn settle(&mut self, config: &Config) {
        let runtime = &config.runtime;
        self.debug = runtime.debug;
        self.log = self.log.take().or_else(|| runtime.log.clone());
        self.log_format = Some(runtime.log_format);
        self.root = self.root.take().or_else(|| runtime.root.clone());
        self.systemd_cgroup = config.cgroup.systemd;
    }

    /// Fails where the state may lie where only an unusable configuration says.
    fn knows_root(&self, config: Result<Config, ConfigError>) -> anyhow::Result<()> {
        match (&self.root, config) {
            (None, Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn log(&self) -> log::Settings {
        let format = self.log_format.unwrap_or(log::Format::Text);
        log::Settings { file: self.log.clone(), format, debug: self.debug }
    }

    fn store(&self) -> Store {
        Store::new(self.root())
    }

    fn root(&self) -> PathBuf {
        match (&self.root, std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(root), _) => root.clone(),
            (None, Some(runtime)) if !nix::unistd::geteuid().is_root() => PathBuf::from(runtime).join("rt"),
            _ => "/run/rt".into(),
        }
    }

    /// Whether rt goes on without host cgroups where they are not allowed.
    fn rootless(&self) -> bool {
        match self.rootless {
            Rootless::True => true,
            Rootless::False => false,
            Rootless::Auto => !nix::unistd::geteuid().is_root(),
        }
    }
}

/// A choice as it is written.
fn word(choice: impl ValueEnum) -> toml::Value {
    choice.to_possible_value().expect("no choice is hidden from the command line").get_name().into()
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
        Ok(arguments) => dispatch(arguments, timeline),
        Err(answer) => usage::answer(&arguments, &answer),
    }
}

/// The verbs under which rt starts itself as a helper; `jail::Spawn` writes these arguments.
fn hidden(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = arguments.get(2..).unwrap_or_default();
    match arguments.get(1)?.to_str()? {
        "vmm" => Some(hypervisor::kvm::vmm_main(rest)),
        "monitor" => Some(container::monitor_main(rest)),
        "fsd" => Some(fsd::main(rest)),
        "vsockd" => Some(hypervisor::qemu::vsockd::main(rest)),
        "qemu" => Some(hypervisor::qemu::process::main(rest)),
        _ => None,
    }
}

fn dispatch(mut arguments: Arguments, timeline: Timeline) -> ExitCode {
    let config = Config::load(&arguments.global.flags());
    if let Ok(config) = &config {
        arguments.global.settle(config);
    }
    let global = &arguments.global;
    if let Err(error) = global.log().start() {
        let path = global.log.as_deref().unwrap_or(Path::new("")).display();
        eprintln!("cannot open the log file {path}: {error}");
        return ExitCode::from(FAILURE);
    }
    let result = arguments.verb.run(global, config, timeline);
    sys::terminal::restore();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (prefix, code) = arguments.verb.failure();
            global.log().failure(&format!("{prefix}{}", log::chain(&*error)));
            ExitCode::from(code)
        }
    }
}

/// Writes what a verb was asked for. Not println!, which panics when nobody reads.
fn write_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        sys::terminal::restore();
        report(panic);
    }));
}
