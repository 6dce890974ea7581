//! Command line of the program, with one file per subcommand. Each subcommand returns an [`Exit`].

mod acquire;
mod blocks;
mod buffers;
mod ca;
mod check;
mod client;
mod closing;
mod completions;
mod demo;
mod doctor;
mod endpoint;
mod env;
mod exit;
mod fleet;
mod gateway;
mod init;
mod migrate;
mod pins;
mod reload;
mod run;
mod serve;
mod spool;
mod status;
mod table;
mod trust_files;
mod variables;

pub use exit::Exit;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{self, Loaded, Purpose};
use exit::Failure;

/// An egress proxy that paces what you send to other people's APIs.
#[derive(Debug, Parser)]
#[command(name = "outpace", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first configuration file for one host and one rate
    Init(init::InitArgs),
    /// Run the proxy until SIGTERM or SIGINT
    Serve(serve::ServeArgs),
    /// Run a command with outpace as its proxy. If no outpace with this configuration runs, start one
    Run(run::RunArgs),
    /// Validate a configuration file and print the resulting policy
    Check(check::CheckArgs),
    /// Print the JSON Schema of the configuration file
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Check the configuration, this machine, the origins and the database, and print remedies
    Doctor(doctor::DoctorArgs),
    /// Print the environment variables that make programs use the proxy and trust its CA
    Env(env::EnvArgs),
    /// Print the files, the fingerprint and the expiry date of outpace's CA, or replace the CA
    Ca(ca::CaArgs),
    /// Show targets, limits in force, queue lengths and recent refusals
    Status(status::StatusArgs),
    /// Show the target, limits, limit keys, lane and earliest start that a request would get
    Explain(status::ExplainArgs),
    /// Check that a running outpace responds, or with --ready that it is ready for requests
    Health(status::HealthArgs),
    /// Make a running outpace read its configuration file now, and print the changes
    Reload(reload::ReloadArgs),
    /// List the blocks that origins have caused by refusals, with their scopes and times
    Blocks(blocks::BlocksArgs),
    /// Lift blocks of a target on all replicas, so that requests are sent again at once
    Unblock(blocks::UnblockArgs),
    /// Change a limit on all replicas at once, until it is unpinned
    Pin(pins::PinArgs),
    /// Return a limit to the value of the configuration file, on all replicas
    Unpin(pins::UnpinArgs),
    /// Bring outpace's Postgres schema up to date and exit
    Migrate(client::ConfigArgs),
    /// Wait for a turn at a target, then run a command once
    Acquire(acquire::AcquireArgs),
    /// Manage buffers (durable queues of requests). Without a subcommand, list all buffers
    Buffers(buffers::BuffersArgs),
    /// List the items of a buffer, and show, cancel, retry or skip one item
    Items(buffers::ItemsArgs),
    /// List delivery attempts and their outcomes, the latest first
    Attempts(buffers::AttemptsArgs),
    /// Verify or export the items stored on disk. Stop outpace before you use this command
    Spool(spool::SpoolArgs),
    /// Show the effect of pacing: send requests to a built-in limited origin, first directly and then
    /// through outpace, and compare the results
    Demo(demo::DemoArgs),
    /// Print the completions for a shell
    Completions(completions::CompletionsArgs),
    /// Print a manual page, or write all pages into a directory
    Man(completions::ManArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of the configuration file, with which editors complete and check it
    Schema,
}

/// Parses the arguments, runs the subcommand and returns the exit code of the process.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // The message could not be printed, and no other channel is left to report that.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::USAGE
            } else {
                Exit::OK
            };
        }
    };
    let done = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Config {
            what: ConfigCommand::Schema,
        } => Ok(print(&format!("{:#}\n", config::json_schema()))),
        Command::Doctor(args) => doctor::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Ca(args) => ca::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Explain(args) => status::explained(&args),
        Command::Health(args) => status::health(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Blocks(args) => blocks::blocks(&args),
        Command::Unblock(args) => blocks::unblock(&args),
        Command::Pin(args) => pins::pin(&args),
        Command::Unpin(args) => pins::unpin(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Acquire(args) => acquire::run(&args),
        Command::Buffers(args) => buffers::buffers(&args),
        Command::Items(args) => buffers::items(&args),
        Command::Attempts(args) => buffers::attempts(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => Ok(completions::completions(&args)),
        Command::Man(args) => completions::man(&args),
    };
    done.unwrap_or_else(|Failure(exit, text)| {
        print_error(&text);
        exit
    })
}

/// Runs a subcommand to its end on a runtime with a single thread.
fn block_on(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    started(&mut tokio::runtime::Builder::new_current_thread())?.block_on(work)
}

/// Starts a runtime with all its drivers.
fn started(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Failure> {
    builder.enable_all().build().map_err(|error| {
        let text = format!(
            "the runtime could not be started: {error}; raise the limits on open files and threads"
        );
        Failure(Exit::INTERNAL, text)
    })
}

/// Reads and validates the configuration file at `path`.
fn load_config(path: &Path) -> Result<Loaded, Failure> {
    config::load(path, &config::process_environment, 0).map_err(|error| {
        let text = format!("the configuration is invalid:\n{error}");
        Failure(Exit::USAGE, text)
    })
}

/// Reads and validates the part of the configuration file that this purpose needs.
fn load_for(path: &Path, purpose: Purpose<'_>) -> Result<Loaded, Failure> {
    config::load_for(path, purpose, &config::process_environment).map_err(|error| {
        let text = format!("the configuration is invalid:\n{error}");
        Failure(Exit::USAGE, text)
    })
}

/// Reads a configuration file like [`load_config`], but takes an empty one as all defaults.
fn load_config_or_empty(path: &Path) -> Result<Loaded, Failure> {
    let text = config::read(path).map_err(|error| Failure(Exit::USAGE, error.to_string()))?;
    if !config::is_empty(&text) {
        return load_config(path);
    }
    let defaults = config::parse(path, "{}", &config::process_environment, 0);
    defaults.map_err(|error| Failure(Exit::USAGE, error.to_string()))
}

/// Creates a progress bar of this length. An invalid template is ignored.
fn progress_bar(length: u64, template: &str) -> ProgressBar {
    ProgressBar::new(length).with_style(bar_style(template))
}

/// Returns the style of a progress bar. An invalid template is ignored.
fn bar_style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Writes text to standard output and returns [`Exit::OK`]. Errors are ignored because a closed
/// pipe is not a failure.
fn print(text: &str) -> Exit {
    let _ = std::io::stdout().write_all(text.as_bytes());
    Exit::OK
}

/// Writes an error message to standard error, with the prefix `outpace: ` and a line break.
fn print_error(text: &str) {
    let _ = std::io::stderr().write_all(format!("outpace: {text}\n").as_bytes());
}
