fn main() -> std::process::ExitCode {
    rt::cmd::main()
}
