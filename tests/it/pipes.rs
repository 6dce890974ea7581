//! P10 (closed by default): a pipe, socket or directory in place of a private file stops the start,
//! and no command waits for it.

use std::fs;
use std::path::Path;

use crate::files::{ended, make_dir, outpace, place, set_mode};

/// Name of a kind of file, and the function that makes one.
type Kind<'a> = (&'a str, &'a dyn Fn(&Path));

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_pipe_socket_or_directory_in_place_of_a_private_file_stops_the_start() {
    let fifo = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    };
    let socket = |path: &Path| {
        std::os::unix::net::UnixListener::bind(path).unwrap();
    };
    let directory = |path: &Path| {
        make_dir(path, 0o700);
    };
    let kinds: [Kind<'_>; 3] = [
        ("fifo", &fifo),
        ("socket", &socket),
        ("directory", &directory),
    ];
    for name in [
        "admin-token",
        "ca.lock",
        "ca.key",
        "ca.pem",
        "spool/spool.key",
        "spool/lock",
    ] {
        for (kind, make) in kinds {
            if name.starts_with("ca.") && name != "ca.lock" && kind == "directory" {
                continue;
            }
            let dir = place();
            let spool = make_dir(&dir.path().join("data"), 0o700).join("spool");
            make_dir(&spool, 0o700);
            if name == "ca.pem" {
                // A CA with a certificate needs its key, too.
                fs::write(dir.path().join("data/ca.key"), "planted").unwrap();
                set_mode(&dir.path().join("data/ca.key"), 0o600);
            }
            let path = dir.path().join("data").join(name);
            make(&path);
            set_mode(&path, if kind == "directory" { 0o700 } else { 0o600 });
            let serve = &["serve", "--config", "outpace.yaml"];
            let (code, told) = ended(&mut outpace(dir.path(), serve)).await;
            // The store of the spool itself reads its key.
            let by_spool = name == "spool/spool.key" && kind == "directory";
            let expected = if by_spool { 74 } else { 73 };
            assert_eq!(code, Some(expected), "{name} as {kind}: {told}");
            let expected = format!("{} is not a regular file", path.display());
            assert!(told.contains(&expected), "{name} as {kind}: {told}");
            if name == "admin-token" {
                // Other commands read it without checking the directory.
                let status = &["status", "-c", "outpace.yaml"];
                let (code, told) = ended(&mut outpace(dir.path(), status)).await;
                assert_ne!(code, Some(0), "{kind}: {told}");
            }
        }
    }
}
