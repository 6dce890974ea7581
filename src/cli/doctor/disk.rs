//! Checks of the file systems and the memory on which the configuration relies.

use std::path::Path;

use super::finding::{Finding, or_sound};
use crate::config::{Settings, StoreSettings};
use crate::files::check_private_dir;
use crate::units::ByteSize;

/// Bytes that the data directory needs for its own small files.
const SMALL: u64 = 16 * 1024 * 1024;

pub(super) fn checks(settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![data_space(settings), memory(settings)];
    findings.extend(spool(settings));
    findings
}

/// Sizes of a file system in bytes.
struct FileSystem {
    size: u64,
    free: u64,
    is_read_only: bool,
}

impl FileSystem {
    /// Returns the file system of a directory, or of the nearest one above it that exists.
    fn of(dir: &Path) -> Option<Self> {
        let dir = std::path::absolute(dir).ok()?;
        let known = dir.ancestors().find(|dir| dir.exists())?;
        let stat = rustix::fs::statvfs(known).ok()?;
        Some(Self {
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }
}

/// Returns a size in whole MiB.
fn bytes(count: u64) -> String {
    ByteSize::from_bytes(count >> 20 << 20).to_string()
}

fn data_space(settings: &Settings) -> Finding {
    let (check, dir) = ("data_dir_space", &settings.data_dir);
    let Some(disk) = FileSystem::of(dir) else {
        return Finding::skipped(
            check,
            format!("the file system of {} is unknown", dir.display()),
        );
    };
    let free = bytes(disk.free);
    let detail = format!("{free} are free for {}", dir.display());
    if disk.is_read_only {
        let detail = format!("the file system of {} is read-only", dir.display());
        return Finding::fault(
            check,
            detail,
            "mount it writable, or set `data_dir` elsewhere",
        );
    }
    if disk.free < SMALL {
        return Finding::fault(
            check,
            detail,
            "free some space, or set `data_dir` elsewhere",
        );
    }
    let bodies = settings.keep.disk_total.as_bytes();
    if disk.free < bodies {
        let detail = format!(
            "{detail}, but held bodies may take {} of disk",
            bytes(bodies)
        );
        return Finding::warning(
            check,
            detail,
            "free some space, or lower `bodies.disk_total`",
        );
    }
    Finding::sound(check, detail)
}

/// Compares the memory of held bodies with that of the machine or of its control group.
fn memory(settings: &Settings) -> Finding {
    let check = "memory";
    let Some(memory) = machine_memory() else {
        return Finding::skipped(check, "the system does not tell its memory");
    };
    let held = settings.keep.memory_total.as_bytes();
    let detail = format!(
        "held requests may take {} of {} of memory",
        bytes(held),
        bytes(memory)
    );
    match held > memory / 2 {
        true => Finding::warning(
            check,
            detail,
            "lower `bodies.memory_total`, or allow more memory",
        ),
        false => Finding::sound(check, detail),
    }
}

fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    let machine = kib.saturating_mul(1024);
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    Some(group.map_or(machine, |group: u64| group.min(machine)))
}

/// Compares the bounds of the spool on disk with its file system.
fn spool(settings: &Settings) -> Vec<Finding> {
    let disk = settings.spool.as_ref().map(|spool| &spool.store);
    let disk = match disk {
        Some(StoreSettings::Disk(disk)) => disk,
        Some(StoreSettings::Postgres(_)) => {
            return vec![Finding::skipped("spool", "the spool is in the database")];
        }
        None => return vec![Finding::skipped("spool", "no spool is configured")],
    };
    let (dir, mut problems) = (disk.dir.display(), Vec::new());
    match check_private_dir(&disk.dir) {
        Err(fault) if !fault.is_missing() => {
            problems.push(Finding::of_message("spool", &fault.to_string()));
        }
        Ok(()) | Err(_) => {}
    }
    if let Some(system) = FileSystem::of(&disk.dir) {
        let (min_free, max) = (bytes(disk.min_free), bytes(disk.max));
        let (free, size) = (bytes(system.free), bytes(system.size));
        if disk.min_free >= system.size {
            let detail = format!(
                "`spool.min_free` is {min_free}, but the file system of {dir} has {size}, so every push is refused"
            );
            problems.push(Finding::fault(
                "spool",
                detail,
                "lower `spool.min_free`, or set `spool.dir` to a larger file system",
            ));
        } else if system.free < disk.min_free {
            let detail = format!(
                "{free} are free in {dir}, less than `spool.min_free` of {min_free}, so every push is refused"
            );
            problems.push(Finding::fault(
                "spool",
                detail,
                "free some space, or lower `spool.min_free`",
            ));
        } else if disk.max.saturating_add(disk.min_free) > system.size {
            let detail = format!(
                "`spool.max` of {max} and `spool.min_free` of {min_free} exceed the file system of {dir} with {size}"
            );
            problems.push(Finding::warning(
                "spool",
                detail,
                "lower `spool.max`, so that pushes are refused by it and not by the disk",
            ));
        }
    }
    or_sound(problems, "spool", format!("{dir} has room for the spool"))
}
