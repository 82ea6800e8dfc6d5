fn main() -> std::process::ExitCode {
    match rt::shim::is_called() {
        true => rt::shim::main(),
        false => rt::cmd::main(),
    }
}
