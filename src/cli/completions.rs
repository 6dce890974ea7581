//! `outpace completions` and `man`: completions for shells and manual pages, from the definition of the
//! command line.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Exit, Failure, print};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace completions bash > /etc/bash_completion.d/outpace\n  outpace completions zsh > ~/.zfunc/_outpace"
)]
pub(super) struct CompletionsArgs {
    /// Shell that reads the completions
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace man run | man -l -\n  outpace man --dir /usr/local/share/man/man1"
)]
pub(super) struct ManArgs {
    /// Subcommand whose page is printed (default: the page of outpace itself)
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "outpace", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let mut all = Cli::command();
    all.build();
    if let Some(dir) = &args.dir {
        return pages(&all, dir).map_err(|error| {
            let text = format!(
                "the manual pages cannot be written to {}: {error}; create the directory",
                dir.display()
            );
            Failure(Exit::DATA_DIR, text)
        });
    }
    let mut page = &all;
    for name in &args.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            Failure(
                Exit::USAGE,
                format!("there is no command `{name}`; `outpace --help` lists the commands"),
            )
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone()).render(&mut text)?;
    Ok(print(&String::from_utf8_lossy(&text)))
}

/// Writes one page per command, with names such as `outpace-run.1`.
fn pages(command: &clap::Command, dir: &Path) -> std::io::Result<Exit> {
    clap_mangen::generate_to(command.clone(), dir)?;
    Ok(Exit::OK)
}
