//! The command line: one file per subcommand.

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
    /// Run the proxy
    Serve(serve::ServeArgs),
    /// Run a command whose requests go through the proxy
    Run(run::RunArgs),
    /// Check a configuration file and exit
    Check(check::CheckArgs),
    /// Print the variables that make programs use the proxy and trust its CA
    Env(env::EnvArgs),
    /// Print where the CA is, its fingerprint and until when it is valid
    Ca(ca::CaArgs),
    /// Show targets, the rates in force, who waits, and the last refusals
    Status(status::StatusArgs),
    /// Tell what a request would meet: its target, limits, keys, lane, and when it could leave
    Explain(status::ExplainArgs),
    /// Ask whether a running outpace is alive, or ready
    Health(status::HealthArgs),
    /// Bring the schema of the shared ledger up to date and exit
    Migrate(ConfigArgs),
    /// Run a command when its turn comes
    Acquire(acquire::AcquireArgs),
    /// Look at buffers, make them wait, go on, forget, send again
    Buffers(buffers::BuffersArgs),
    /// Look at items, take them back, hurry them, skip them
    Items(buffers::ItemsArgs),
    /// Look at what was sent and what came of it
    Attempts(buffers::AttemptsArgs),
    /// Check or export a spool that no outpace uses at the moment
    Spool(spool::SpoolArgs),
    /// Show pacing against an origin that ships with the program
    Demo(demo::DemoArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the program; what it returns is the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            // Nowhere left to tell.
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

/// Runs a subcommand that does one thing after the other.
fn block_on(work: impl Future<Output = Exit>) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            print_error(&format!("no thread could be started: {error}"));
            Exit::Internal
        }
    }
}

/// Prints for a person or a pipe; a closed pipe is no error of ours.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Tells what went wrong.
fn print_error(text: &str) {
    let _ = std::io::stderr().write_all(format!("outpace: {text}\n").as_bytes());
}
