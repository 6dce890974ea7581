//! Files and directories that belong to this user alone: creation with private modes, and checks of
//! owner, mode and links before the content is trusted.
//!
//! A directory of another user is refused, because its owner could plant keys, addresses and links.
//! A path that only this user can change needs these checks only once.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

/// Reason why a file or directory is not used. Each message names the path and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// The path belongs to another user, who can replace its content.
    #[error(
        "{path} belongs to the user with the id {owner}, not to this user or root; run outpace as that user, or set `data_dir` (for the spool `spool.dir`) to a directory of your own"
    )]
    Owner {
        /// File or directory that was checked.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
    },
    /// The mode of the path lets other users change it.
    #[error(
        "{path} has mode {mode:04o}, so other users can change it; check its content, then run `chmod go-w {path}`"
    )]
    Writable {
        /// File or directory that was checked.
        path: PathBuf,
        /// Permission bits of the path.
        mode: u32,
    },
    /// The path is a symbolic link, and its target could be a file of another program.
    #[error(
        "{path} is a symbolic link, and outpace follows none here; remove it, or set `data_dir` (for the spool `spool.dir`) to the real directory"
    )]
    Link {
        /// Path of the link.
        path: PathBuf,
    },
    /// The path is neither a directory nor a regular file, as it should be.
    #[error("{path} is not {wanted}; remove it, or set `data_dir` elsewhere")]
    Kind {
        /// Path that was checked.
        path: PathBuf,
        /// Kind of file that belongs there, with its article.
        wanted: &'static str,
    },
    /// The operating system refused the access.
    #[error(
        "{path} cannot be used: {cause}; make it readable and writable for this user, or set `data_dir` elsewhere"
    )]
    Io {
        /// File or directory that the operation was for.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
}

impl FileFault {
    /// Returns true if the file does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == ErrorKind::NotFound)
    }
}

impl From<FileFault> for io::Error {
    fn from(fault: FileFault) -> Self {
        match fault {
            FileFault::Io { cause, .. } => cause,
            fault => Self::other(fault),
        }
    }
}

/// Permission bits by which other users read, write or enter.
const OTHERS: u32 = 0o077;
const STICKY: u32 = 0o1000;

/// Creates a directory with mode 0700, or checks an existing one, with all directories above it.
/// A mode that lets other users read is narrowed.
///
/// # Errors
/// Returns a [`FileFault`] if the directory is a link or belongs to another user, or if another
/// user can change it or a directory above it.
pub fn make_private_dir(dir: &Path) -> Result<(), FileFault> {
    // `x/` would follow a link `x`, and its components do not.
    let dir: PathBuf = dir.components().collect();
    if let Err(cause) = fs::symlink_metadata(&dir) {
        if cause.kind() != ErrorKind::NotFound {
            return Err(at(&dir)(cause));
        }
        check_above(&dir)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(at(&dir))?;
    }
    check_private_dir(&dir)
}

/// Checks an existing directory like [`make_private_dir`], but does not create it.
///
/// # Errors
/// Returns the same faults as [`make_private_dir`].
pub fn check_private_dir(dir: &Path) -> Result<(), FileFault> {
    let dir: PathBuf = dir.components().collect();
    check_above(&dir)?;
    let known = fs::symlink_metadata(&dir).map_err(at(&dir))?;
    check_kind(&dir, &known, true)?;
    check_owner(&dir, &known, false)?;
    if !is_mounted_by_root(&dir, &known) {
        check_mode(&dir, &known)?;
    }
    // A directory with other files, such as the root of a project, keeps its mode.
    let mut entries = fs::read_dir(&dir).map_err(at(&dir))?;
    let is_ours =
        |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| is_known(&entry.file_name()));
    match entries.all(is_ours) {
        true => narrow(&dir, &known),
        false => Ok(()),
    }
}

/// Beginnings of the names in `data_dir` and `spool.dir`. A temporary file begins with a dot.
const NAMES: [&str; 17] = [
    ".",
    "admin-token",
    "ballast",
    "bodies",
    "ca-",
    "ca.",
    "instance-",
    "key-secret",
    "lock",
    "lost+found",
    "run.",
    "schedules",
    "serving.json",
    "spool",
    "tmp",
    "trust",
    "wgetrc",
];

/// Returns true if a file of this name may be one of outpace.
fn is_known(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    NAMES.iter().any(|begin| name.starts_with(begin))
}

/// Checks the entries of a private directory with outpace's names, and all entries of the
/// directories among them, up to `depth` levels below. Links, pipes, sockets, devices and entries of
/// other users are refused. A mode that lets other users read is narrowed, except that of certificates (`*.pem`),
/// which are public, and of keys (`*.key`) and tokens (`*-token`), which their reader refuses.
///
/// # Errors
/// Returns a [`FileFault`] for the first entry that must not be used.
pub fn check_entries(dir: &Path, depth: usize) -> Result<(), FileFault> {
    entries(dir, depth, is_known)
}

fn entries(dir: &Path, depth: usize, is_known: fn(&OsStr) -> bool) -> Result<(), FileFault> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let path = entry.path();
        if !is_known(&entry.file_name()) {
            continue;
        }
        let known = match fs::symlink_metadata(&path) {
            Ok(known) => known,
            // Another process removed its temporary file in the meantime.
            Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
            Err(cause) => return Err(at(&path)(cause)),
        };
        if !known.is_dir() {
            check_kind(&path, &known, false)?;
        }
        check_owner(&path, &known, false)?;
        check_mode(&path, &known)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let keeps = |end: &&str| name.ends_with(*end);
        if known.is_dir() || ![".pem", ".key", "-token"].iter().any(keeps) {
            narrow(&path, &known)?;
        }
        // A volume has a directory `lost+found`, which only root can read.
        if known.is_dir() && depth > 0 && is_own(&known) {
            entries(&path, depth - 1, |_| true)?;
        }
    }
    Ok(())
}

/// Opens a file for reading and writing, and creates it with mode 0600 if it is missing. A link is
/// not followed, and a mode that lets other users read is narrowed.
///
/// # Errors
/// Returns a [`FileFault`] if the path is a link, no regular file, or a file that another user can
/// change.
pub fn open_private(path: &Path) -> Result<File, FileFault> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let file = open(path, options.mode(0o600))?;
    let known = file.metadata().map_err(at(path))?;
    if is_own(&known) && known.mode() & OTHERS != 0 {
        let private = Permissions::from_mode(known.mode() & 0o700);
        file.set_permissions(private).map_err(at(path))?;
    }
    Ok(file)
}

/// Opens a file like [`open_private`] and removes its content.
///
/// # Errors
/// Returns the same faults as [`open_private`].
pub fn create_private(path: &Path) -> Result<File, FileFault> {
    let file = open_private(path)?;
    file.set_len(0).map_err(at(path))?;
    Ok(file)
}

/// Reads a file of this user or of root as text. A named pipe or device is not read, because a read
/// could wait forever.
///
/// # Errors
/// Returns a [`FileFault`] if the file is missing, a link, no regular file, no UTF-8 text, or a file
/// that another user can change.
pub fn read_private(path: &Path) -> Result<String, FileFault> {
    let mut file = open(path, OpenOptions::new().read(true))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(at(path))?;
    Ok(text)
}

/// Reads a file that this user wrote. A file that another user owns or could have changed is not
/// read.
///
/// # Errors
/// Returns a [`FileFault`] if the file is missing, a link, or not of this user alone.
pub fn read_own(path: &Path) -> Result<Vec<u8>, FileFault> {
    let mut file = open(path, OpenOptions::new().read(true))?;
    let known = file.metadata().map_err(at(path))?;
    if !is_own(&known) {
        let (path, owner) = (path.to_owned(), known.uid());
        return Err(FileFault::Owner { path, owner });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(at(path))?;
    Ok(bytes)
}

/// Checks a file that the operator or a platform supplied, such as a key. Links to it may lead
/// through directories that only this user or root can change.
///
/// # Errors
/// Returns a [`FileFault`] if another user owns the file, or can change it or a directory above it.
pub fn check_supplied(path: &Path) -> Result<(), FileFault> {
    check_above(path)?;
    let real = fs::canonicalize(path).map_err(at(path))?;
    check_above(&real)?;
    let known = fs::metadata(&real).map_err(at(path))?;
    check_kind(path, &known, false)?;
    check_owner(path, &known, false)?;
    check_mode(path, &known)
}

/// Reads a regular file as text, and follows links to it. A named pipe or device is not read, because
/// a read could wait forever.
///
/// # Errors
/// Returns a [`FileFault`] if the file is missing, of another kind or no UTF-8 text.
pub fn read_regular(path: &Path) -> Result<String, FileFault> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut file = opened.map_err(at(path))?;
    check_kind(path, &file.metadata().map_err(at(path))?, false)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(at(path))?;
    Ok(text)
}

/// Checks that a path leads to a regular file. A read of a named pipe could wait forever.
///
/// # Errors
/// Returns a [`FileFault`] if the file is missing or of another kind.
pub fn check_regular(path: &Path) -> Result<(), FileFault> {
    let known = fs::metadata(path).map_err(at(path))?;
    check_kind(path, &known, false)
}

/// Opens a file without following a link, and checks its kind, owner and mode.
fn open(path: &Path, options: &mut OpenOptions) -> Result<File, FileFault> {
    // Without `NONBLOCK`, opening a named pipe would wait for its other end.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let opened = options.custom_flags(flags).open(path);
    let file = opened.map_err(|cause| {
        // A link, a socket and a directory have errors of their own.
        let known = fs::symlink_metadata(path).ok();
        let fault = known.and_then(|known| check_kind(path, &known, false).err());
        fault.unwrap_or_else(|| at(path)(cause))
    })?;
    let known = file.metadata().map_err(at(path))?;
    check_kind(path, &known, false)?;
    check_owner(path, &known, false)?;
    check_mode(path, &known)?;
    Ok(file)
}

/// Checks that no other user can replace a directory above `path`, nor a link in its place. Each
/// one belongs to this user or root, and either only they can write to it or it is sticky.
fn check_above(path: &Path) -> Result<(), FileFault> {
    let path = std::path::absolute(path).map_err(at(path))?;
    let above = path.ancestors().skip(1).find(|above| above.exists());
    let real = above.map(fs::canonicalize).transpose().map_err(at(&path))?;
    let real = real.iter().flat_map(|real| real.ancestors());
    for above in path.ancestors().skip(1).chain(real) {
        let Ok(known) = fs::symlink_metadata(above) else {
            continue;
        };
        check_owner(above, &known, true)?;
        let is_sticky = known.mode() & STICKY != 0;
        if !known.is_symlink() && !is_sticky && !is_mounted_by_root(above, &known) {
            check_mode(above, &known)?;
        }
    }
    Ok(())
}

fn check_link(path: &Path, known: &Metadata) -> Result<(), FileFault> {
    match known.is_symlink() {
        true => Err(FileFault::Link {
            path: path.to_owned(),
        }),
        false => Ok(()),
    }
}

fn check_kind(path: &Path, known: &Metadata, dir: bool) -> Result<(), FileFault> {
    check_link(path, known)?;
    let (is_right, wanted) = match dir {
        true => (known.is_dir(), "a directory"),
        false => (known.is_file(), "a regular file"),
    };
    match is_right {
        true => Ok(()),
        false => Err(FileFault::Kind {
            path: path.to_owned(),
            wanted,
        }),
    }
}

fn check_owner(path: &Path, known: &Metadata, above: bool) -> Result<(), FileFault> {
    let owner = known.uid();
    if is_own(known) || owner == 0 || above && is_unmapped(owner) {
        return Ok(());
    }
    let path = path.to_owned();
    Err(FileFault::Owner { path, owner })
}

/// Refuses a mode by which other users can write. The group of the same number as the user is the
/// user's own group, which many systems and Kubernetes (`fsGroup`) give write access.
fn check_mode(path: &Path, known: &Metadata) -> Result<(), FileFault> {
    let mode = known.mode() & 0o7777;
    let private_group = is_own(known) && known.gid() == known.uid();
    let others = if private_group { 0o002 } else { 0o022 };
    if known.is_symlink() || mode & others == 0 {
        return Ok(());
    }
    let path = path.to_owned();
    Err(FileFault::Writable { path, mode })
}

/// Removes the permissions of other users from a file or directory of this user.
fn narrow(path: &Path, known: &Metadata) -> Result<(), FileFault> {
    if !is_own(known) || known.mode() & OTHERS == 0 || is_mounted_by_root(path, known) {
        return Ok(());
    }
    let mode = known.mode() & 0o7777 & !OTHERS;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path))?;
    tracing::info!(path = %path.display(), "other users could read this; its mode is private now");
    Ok(())
}

/// Returns true for the root of a volume that root mounted. Kubernetes gives an `emptyDir` mode
/// 0777, and only the containers of the pod see it.
fn is_mounted_by_root(dir: &Path, known: &Metadata) -> bool {
    let above = dir.parent().and_then(|above| fs::metadata(above).ok());
    let is_mount = above.is_some_and(|above| above.dev() != known.dev());
    known.is_dir() && known.uid() == 0 && is_mount
}

fn is_own(known: &Metadata) -> bool {
    known.uid() == rustix::process::geteuid().as_raw()
}

/// Returns true if this user namespace does not know the owner, as it does not know root outside of
/// it. Such an owner appears as the overflow user.
fn is_unmapped(owner: u32) -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let overflow = read("/proc/sys/kernel/overflowuid").trim().parse() == Ok(owner);
    let map = read("/proc/self/uid_map");
    overflow && !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn at(path: &Path) -> impl Fn(io::Error) -> FileFault {
    let path = path.to_owned();
    move |cause| FileFault::Io {
        path: path.clone(),
        cause,
    }
}

/// Returns the permission bits of a file with a secret if they let other users read it.
///
/// # Errors
/// Returns the error of the operating system if the file cannot be examined.
pub fn exposed_mode(path: &Path) -> io::Result<Option<u32>> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    // In Kubernetes a secret's file belongs to root and is readable by the pod through its group.
    let is_lent = metadata.uid() != rustix::process::geteuid().as_raw();
    let private = if is_lent { 0o037 } else { 0o077 };
    Ok((mode & private != 0).then_some(mode))
}
