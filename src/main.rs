//! The program: arguments in, exit code out.

use std::process::ExitCode;

/// Much of a request's own cost is allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(outpace::cli::run(std::env::args_os()) as u8)
}
