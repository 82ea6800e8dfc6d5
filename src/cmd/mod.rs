//! The command line.

use std::process::ExitCode;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    match args.get(1).and_then(|verb| verb.to_str()) {
        Some("fsd") => crate::fsd::main(&args[2..]),
        _ => ExitCode::FAILURE,
    }
}
