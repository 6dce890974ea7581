//! `outpace spool verify` and `export`: read a spool on disk, while outpace is stopped.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Exit, Failure, block_on, print, print_error, progress_bar};
use crate::clock::Clock;
use crate::random::Random;
use crate::shutdown::Tasks;

use crate::spool::{
    DiskSettings, DiskStore, Item, ListQuery, SealedStore, Sealer, Store, StoreError, read_key,
};

#[derive(Debug, Args)]
pub(super) struct SpoolArgs {
    #[command(subcommand)]
    what: SpoolCommand,
}

#[derive(Debug, Subcommand)]
enum SpoolCommand {
    /// Read every item and verify its checksum, the sums of all clients, and the body files
    Verify {
        /// Directory that contains the file spool.db. The configuration sets it as `spool.dir`. The
        /// default is the directory `spool` inside `data_dir`
        dir: PathBuf,
    },
    /// Print every item as a line of JSON, with its header fields and body in clear text
    Export {
        /// File with the key that sealed the items (default: spool.key in the directory)
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Directory that contains the file spool.db. The configuration sets it as `spool.dir`. The
        /// default is the directory `spool` inside `data_dir`
        dir: PathBuf,
    },
}

/// Number of items that are read from the store in one query.
const PAGE: u32 = 500;

pub(super) fn run(args: &SpoolArgs) -> Result<Exit, Failure> {
    let (dir, key_file) = match &args.what {
        SpoolCommand::Verify { dir } => (dir, None),
        SpoolCommand::Export { dir, key_file } => (dir, Some(key_file)),
    };
    if !dir.join("spool.db").exists() {
        let dir = dir.display();
        let text = format!("there is no spool in {dir}; name the directory that contains spool.db");
        return Err(Failure(Exit::USAGE, text));
    }
    let settings = DiskSettings {
        dir: dir.clone(),
        max: u64::MAX,
        min_free: 0,
        ballast: 0,
        inline: u64::MAX,
        accept_loss: false,
    };
    let broken = |text: String| Failure(Exit::DATA_DIR, text);
    let key = match key_file {
        Some(Some(path)) => Some(std::fs::read_to_string(path)?),
        Some(None) => read_key(dir)?,
        None => None,
    };
    let sealer = Sealer::new(key.as_deref(), Random::from_entropy());
    block_on(async {
        let disk = DiskStore::open(settings, &Clock::system(), &Tasks::new()).await;
        let disk = disk.map_err(|error| broken(error.to_string()))?;
        let disk = Arc::new(disk);
        let inner = Arc::clone(&disk) as Arc<dyn Store>;
        let walked = match key_file {
            Some(_) => walk(&*SealedStore::new(inner, sealer), true).await,
            None => walk(&*inner, false).await,
        };
        let sums = match key_file {
            Some(_) => Ok(Vec::new()),
            None => check_sums(&disk).await,
        };
        disk.close().await;
        let walked = walked.map_err(|error| match error {
            StoreError::Sealed(_) => broken(
                "the items cannot be opened; name the file with their key with `--key-file`"
                    .to_owned(),
            ),
            error => broken(error.to_string()),
        });
        let sums = sums.map_err(|error| broken(error.to_string()))?;
        match walked? {
            0 if sums.is_empty() => Ok(Exit::OK),
            0 => Err(broken(format!(
                "the sums of the spool are wrong: {}",
                sums.join("; ")
            ))),
            damaged => Err(broken(format!(
                "{damaged} items are damaged; outpace will move them to the dead letters instead of sending them"
            ))),
        }
    })
}

/// Compares the sums with the items, and tells of body files without an item.
async fn check_sums(disk: &DiskStore) -> Result<Vec<String>, StoreError> {
    let orphans = disk.removed_orphans();
    if orphans.items > 0 {
        print(&format!(
            "{} files of {} bytes belonged to no item and were removed\n",
            orphans.items, orphans.bytes
        ));
    }
    disk.check_sums().await
}

/// Reads every item, prints it if `export` is set, and returns the number of damaged items.
async fn walk(disk: &dyn Store, export: bool) -> Result<u64, StoreError> {
    let buffers = disk.buffers();
    let mut all = 0;
    for buffer in &buffers {
        all += disk.counts(buffer.number).await?.iter().sum::<u64>();
    }
    let bar = progress_bar(all, "{bar:40} {pos}/{len} items, {eta}");
    let mut damaged = 0;
    for buffer in &buffers {
        let mut after = None;
        loop {
            let query = ListQuery {
                buffer: Some(buffer.number),
                after,
                limit: PAGE,
                ..ListQuery::default()
            };
            let items = disk.items(query).await?;
            let Some(last) = items.last() else { break };
            after = Some(last.seq);
            for item in &items {
                bar.inc(1);
                match disk.body(item.id.clone()).await {
                    Ok(body) if export => line(&buffer.name, item, &body),
                    Ok(_) => {}
                    Err(error @ StoreError::Damaged(_)) => {
                        damaged += 1;
                        bar.suspend(|| print_error(&error.to_string()));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    bar.finish_and_clear();
    if !export {
        let count = buffers.len();
        print(&format!(
            "{all} items in {count} buffers, {damaged} damaged\n"
        ));
    }
    Ok(damaged)
}

fn line(buffer: &str, item: &Item, body: &[u8]) {
    let line = json!({
        "buffer": buffer,
        "id": &*item.id,
        "seq": item.seq,
        "state": item.status.word(),
        "request": item.request,
        "body": String::from_utf8_lossy(body),
        "attempts": item.attempts,
        "last_status": item.last_status,
    });
    print(&format!("{line}\n"));
}
