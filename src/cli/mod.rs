//! Command line of the program, with one file per subcommand. Each subcommand returns an [`Exit`].

mod acquire;
mod buffers;
mod ca;
mod check;
mod client;
mod demo;
mod env;
mod exit;
mod migrate;
mod run;
mod serve;
mod spool;
mod status;
mod table;
mod variables;

pub use exit::Exit;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// An egress proxy that paces what you send to other people's APIs.
#[derive(Debug, Parser)]
#[command(name = "outpace", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT
    Serve(serve::ServeArgs),
    /// Start a proxy or join a running one, then run a command that uses it
    Run(run::RunArgs),
    /// Validate a configuration file and print the resulting policy
    Check(check::CheckArgs),
    /// Print the environment variables with which programs use the proxy and trust its CA
    Env(env::EnvArgs),
    /// Print the file paths, the fingerprint and the expiry date of outpace's CA
    Ca(ca::CaArgs),
    /// Show targets, limits in force, queue lengths and recent refusals
    Status(status::StatusArgs),
    /// Explain how a request would be paced: its target, limits, keys, lane and expected wait
    Explain(status::ExplainArgs),
    /// Check that outpace responds, or with --ready that it accepts work
    Health(status::HealthArgs),
    /// Create or update the schema `outpace` in the configured Postgres database
    Migrate(ConfigArgs),
    /// Wait for a turn at a target, then run a command once
    Acquire(acquire::AcquireArgs),
    /// List, pause and resume buffers, and remove or resend their items
    Buffers(buffers::BuffersArgs),
    /// List the items of a buffer, and show, cancel, retry or skip one item
    Items(buffers::ItemsArgs),
    /// List delivery attempts and their outcomes, the latest first
    Attempts(buffers::AttemptsArgs),
    /// Verify or export a spool on disk, while outpace is stopped
    Spool(spool::SpoolArgs),
    /// Send requests to a built-in rate-limited origin, directly and through outpace, and compare
    Demo(demo::DemoArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Path of the configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// Parses the arguments, runs the subcommand and returns the exit code of the process.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            // The message could not be printed, and no other channel is left to report that.
            let _ = error.print();
            return exit;
        }
    };
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Ca(args) => ca::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Explain(args) => status::explained(&args),
        Command::Health(args) => status::health(&args),
        Command::Migrate(args) => migrate::run(&args.config),
        Command::Acquire(args) => acquire::run(&args),
        Command::Buffers(args) => buffers::buffers(&args),
        Command::Items(args) => buffers::items(&args),
        Command::Attempts(args) => buffers::attempts(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

/// Runs a subcommand to its end on a runtime with a single thread.
fn block_on(work: impl Future<Output = Exit>) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            print_error(&format!(
                "the runtime could not be started: {error}; raise the limits on open files and threads"
            ));
            Exit::Internal
        }
    }
}

/// Writes text to standard output. Errors are ignored because a closed pipe is not a failure.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes an error message to standard error, with the prefix `outpace: ` and a line break.
fn print_error(text: &str) {
    let _ = std::io::stderr().write_all(format!("outpace: {text}\n").as_bytes());
}
