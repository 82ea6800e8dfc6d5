//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(2).collect();
    match std::env::args().nth(1).as_deref() {
        Some("vsockd") => crate::devices::vsock::vhost_user::vsockd_main(&args),
        Some("vmm") => crate::hypervisor::kvm::vmm_main(&args),
        _ => ExitCode::FAILURE,
    }
}
