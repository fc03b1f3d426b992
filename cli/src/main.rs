//! `caisson`.

fn main() -> std::process::ExitCode {
    caisson_cli::main()
}
