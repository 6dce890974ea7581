//! The `outpace` program: passes the arguments to the library and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(outpace::cli::run(std::env::args_os()).0)
}
