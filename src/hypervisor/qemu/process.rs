//! `rt qemu`: enters the jail and becomes QEMU.
//!
//! Its root holds the host's programs and libraries, the kernel and the initramfs, all read-only, and of devices
//! /dev/null, /dev/urandom and, with KVM, /dev/kvm. There QEMU is a user of its own without capabilities, and filters its own system
//! calls (`-sandbox`).

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::super::VmSpec;
use super::command_line::{self, Accelerator, INITRAMFS, KERNEL};
use crate::jail::{self, Bind, Device, Jail, Limits, Root, System, User};

/// QEMU's own, beside one for each vCPU: main loop, RCU, emulation, and its pool; and vhost's, one for each pair of queues.
const THREADS: u64 = 144;
/// QEMU's own, and for each queue of each network interface four: TAP, vhost, and two events.
const OPEN_FILES: u64 = 1024;
const NO_JAIL: u8 = 126;
const NO_QEMU: u8 = 127;

/// What [`main`] is started with: all that it needs before it is locked in, then QEMU's own arguments.
pub fn arguments(binary: &Path, accelerator: Accelerator, spec: &VmSpec) -> Vec<OsString> {
    let accelerator_name = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let mut arguments: Vec<OsString> = vec![
        (&spec.id).into(),
        binary.into(),
        accelerator_name.into(),
        (&spec.kernel).into(),
        (&spec.initramfs).into(),
        u64::from(spec.max_vcpus).to_string().into(),
    ];
    arguments.extend(command_line::arguments(accelerator, spec));
    arguments
}

/// The verb.
pub fn main(args: &[OsString]) -> ExitCode {
    let [_id, binary, accelerator, kernel, initramfs, vcpus, qemu @ ..] = args else {
        eprintln!("rt qemu: this verb is rt's own");
        return ExitCode::FAILURE;
    };
    let vcpus = vcpus.to_str().and_then(|count| count.parse::<u64>().ok()).unwrap_or(1);
    if let Err(error) = jail::enter(&jail_of(binary, accelerator, kernel, initramfs, vcpus)) {
        eprintln!("rt qemu: {:#}", anyhow::Error::from(error));
        return ExitCode::from(NO_JAIL);
    }
    eprintln!("@qemu.exec {}", crate::sys::clock::monotonic_ns());
    let error = Command::new(binary).args(qemu).exec();
    eprintln!("rt qemu: cannot execute {}: {error}", binary.display());
    ExitCode::from(NO_QEMU)
}

/// What QEMU's exit codes mean, for a message.
pub fn explain(code: i32) -> &'static str {
    match code {
        0 => "the guest ended by itself",
        1 => "QEMU could not start the machine",
        126 => "it could not be locked in",
        127 => "QEMU could not be executed",
        _ => "",
    }
}

fn jail_of(
    binary: &OsStr,
    accelerator: &OsStr,
    kernel: &OsStr,
    initramfs: &OsStr,
    vcpus: u64,
) -> Jail<'static> {
    let bind = |source: &OsStr, target: &Path| Bind {
        source: source.into(),
        target: target.into(),
        readonly: true,
        id_map: None,
    };
    let mut extra = vec![bind(kernel, Path::new(KERNEL)), bind(initramfs, Path::new(INITRAMFS))];
    extra.extend(own_tree(Path::new(binary)).map(|target| bind(binary, &target)));
    let devices = if accelerator == "kvm" { vec![Device::Kvm] } else { Vec::new() };
    Jail {
        root: Root::System(System { extra, devices }),
        user: User::Own,
        capabilities: &[],
        limits: Limits { open_files: OPEN_FILES, threads: THREADS + vcpus, file_size: None },
    }
}

/// Where a binary outside the system's directories is to appear.
fn own_tree(binary: &Path) -> Option<PathBuf> {
    let system = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"];
    (!system.iter().any(|directory| binary.starts_with(directory)))
        .then(|| binary.strip_prefix("/").unwrap_or(binary).to_owned())
}
