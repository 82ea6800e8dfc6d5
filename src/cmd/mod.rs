//! The command line.

mod vmtest;

use std::ffi::OsString;
use std::process::ExitCode;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(2).collect();
    match std::env::args().nth(1).as_deref() {
        Some("vsockd") => crate::hypervisor::qemu::vsockd::main(&args),
        Some("qemu") => crate::hypervisor::qemu::process::main(&args),
        Some("vmtest") => vmtest::main(&args),
        _ => ExitCode::FAILURE,
    }
}
