//! P10 (closed by default): the files of outpace belong to its user alone. A directory, link or
//! file that another user could have planted stops the start.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::TcpListener;
use tokio::process::Command;

use crate::harness::{Origin, Program, free_port, program, raw, soon};

/// User and group that own nothing else in these tests.
const OTHER: u32 = 61_234;
const SPOOL: &str = "spool: { inline: 1KiB, ballast: 1MiB, min_free: 1MiB }\n";

/// Returns true if this process may change owners. Tests of other owners need it.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Returns a directory with an `outpace.yaml` whose data directory is `data` beside it.
pub(crate) fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), &dir.path().join("data").display().to_string());
    dir
}

fn write_config(dir: &Path, data_dir: &str) {
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {data_dir}\n{SPOOL}"
    );
    fs::write(dir.join("outpace.yaml"), config).unwrap();
}

pub(crate) fn make_dir(path: &Path, mode: u32) -> PathBuf {
    fs::create_dir_all(path).unwrap();
    set_mode(path, mode);
    path.to_owned()
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// Runs a command to its end and returns its exit code and what it wrote.
pub(crate) async fn ended(command: &mut Command) -> (Option<i32>, String) {
    let output = soon("the end", command.output()).await.unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

/// Returns a command for the program in `dir`, without a home or state directory.
pub(crate) fn outpace(dir: &Path, args: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(dir).args(args);
    command.env_remove("XDG_STATE_HOME").env_remove("HOME");
    command
}

/// Expects that `serve`, `run` and `ca` refuse the data directory of `dir` with code 73 and `text`.
async fn all_refuse(dir: &Path, text: &[&str]) {
    for args in [
        &["serve", "--config", "outpace.yaml"][..],
        &["run", "--", "true"],
        &["ca", "--config", "outpace.yaml"],
    ] {
        let (code, told) = ended(&mut outpace(dir, args)).await;
        assert_eq!(code, Some(73), "{args:?}: {told}");
        for text in text {
            assert!(told.contains(text), "{args:?}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_data_directory_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let other = "belongs to the user with the id 61234";
    for owned in ["data", ".", "data/ca.key", "data/trust", "data/trust/x.pem"] {
        let dir = place();
        make_dir(&dir.path().join("data"), 0o700);
        make_dir(&dir.path().join("data/trust"), 0o700);
        for file in ["data/ca.key", "data/trust/x.pem"] {
            fs::write(dir.path().join(file), "planted").unwrap();
            set_mode(&dir.path().join(file), 0o600);
        }
        chown(dir.path().join(owned), Some(OTHER), None).unwrap();
        all_refuse(dir.path(), &[other, "set `data_dir`"]).await;
        let planted = fs::read_to_string(dir.path().join("data/ca.key")).unwrap();
        assert_eq!(planted, "planted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_data_directory_that_others_can_change_is_refused() {
    for bits in [0o777, 0o707, 0o702, 0o1777] {
        let dir = place();
        let data = make_dir(&dir.path().join("data"), bits);
        let expected = format!("has mode {bits:04o}");
        let remedy = format!("chmod go-w {}", data.display());
        all_refuse(dir.path(), &[&expected, &remedy]).await;
        assert_eq!(mode(&data), bits & 0o777);
    }
    // The parent decides, too, because its writers can replace the directory.
    for (bits, code) in [(0o777, 73), (0o757, 73), (0o1777, 0), (0o755, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let parent = make_dir(&dir.path().join("parent"), bits);
        write_config(dir.path(), &parent.join("data").display().to_string());
        let (ended, told) = ended(&mut outpace(dir.path(), &["ca", "-c", "outpace.yaml"])).await;
        assert_eq!(ended, Some(code), "{bits:o}: {told}");
    }
    for file in [
        "data/serving.json",
        "data/trust/bundle.pem",
        "data/spool/spool.db",
    ] {
        let dir = place();
        make_dir(&dir.path().join("data"), 0o700);
        for below in ["data/trust", "data/spool"] {
            make_dir(&dir.path().join(below), 0o700);
        }
        fs::write(dir.path().join(file), "").unwrap();
        set_mode(&dir.path().join(file), 0o606);
        all_refuse(dir.path(), &["has mode 0606", file]).await;
    }
    if !is_root() {
        return;
    }
    for (group, code) in [(OTHER, 73), (OTHER + 1, 73), (0, 0)] {
        let dir = place();
        let data = make_dir(&dir.path().join("data"), 0o770);
        chown(&data, None, Some(group)).unwrap();
        set_mode(&data, 0o770);
        let (ended, told) = ended(&mut outpace(dir.path(), &["ca", "-c", "outpace.yaml"])).await;
        assert_eq!(ended, Some(code), "group {group}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_links_are_not_followed() {
    // The data directory itself, written in several ways.
    for written in ["link", "link/", "./link/."] {
        let dir = tempfile::tempdir().unwrap();
        let real = make_dir(&dir.path().join("real"), 0o700);
        symlink(&real, dir.path().join("link")).unwrap();
        write_config(dir.path(), written);
        all_refuse(dir.path(), &["is a symbolic link", "set `data_dir`"]).await;
        assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
    }
    // A file or directory in it. The link's target is not touched.
    for name in [
        "ca.key",
        "ca.pem",
        "ca.lock",
        "run.log",
        "run.lock",
        "serving.json",
        "admin-token",
        "spool/spool.db",
        "spool/lock",
        "trust/wgetrc",
    ] {
        let dir = place();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let link = dir.path().join("data").join(name);
        make_dir(link.parent().unwrap(), 0o700);
        set_mode(&dir.path().join("data"), 0o700);
        symlink(&victim, &link).unwrap();
        all_refuse(dir.path(), &["is a symbolic link", name]).await;
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{name}");
    }
    for name in ["tmp", "spool", "trust"] {
        let dir = place();
        let victim = make_dir(&dir.path().join("victim"), 0o755);
        make_dir(&dir.path().join("data"), 0o700);
        symlink(&victim, dir.path().join("data").join(name)).unwrap();
        all_refuse(dir.path(), &["is a symbolic link", name]).await;
        assert_eq!(
            (fs::read_dir(&victim).unwrap().count(), mode(&victim)),
            (0, 0o755)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_spool_directory_is_checked_like_the_data_directory() {
    let link = |dir: &Path| symlink(dir.join("elsewhere"), dir.join("spool")).unwrap();
    let open = |dir: &Path| drop(make_dir(&dir.join("spool"), 0o777));
    let body = |dir: &Path| {
        make_dir(&dir.join("spool/bodies/00"), 0o700);
        for below in ["spool", "spool/bodies"] {
            set_mode(&dir.join(below), 0o700);
        }
        symlink(dir.join("elsewhere"), dir.join("spool/bodies/00/itm_00")).unwrap();
    };
    let foreign = |dir: &Path| {
        let spool = make_dir(&dir.join("spool"), 0o700);
        chown(spool, Some(OTHER), None).unwrap();
    };
    type Prepare<'a> = &'a dyn Fn(&Path);
    let cases: [(Prepare<'_>, &str); 4] = [
        (&link, "is a symbolic link"),
        (&open, "has mode 0777"),
        (&body, "itm_00 is a symbolic link"),
        (&foreign, "belongs to the user with the id 61234"),
    ];
    for (prepare, text) in cases {
        if !is_root() && text.starts_with("belongs") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let config = format!(
            "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\nspool: {{ dir: {}/spool }}\n",
            dir.path().display(),
            dir.path().display(),
        );
        fs::write(dir.path().join("c.yaml"), config).unwrap();
        let mut command = outpace(dir.path(), &["serve", "--config", "c.yaml"]);
        let (code, told) = ended(&mut command).await;
        assert_eq!(code, Some(73), "{told}");
        assert!(told.contains(text) && told.contains("spool"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_forged_serving_file_redirects_nobody() {
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = trap.local_addr().unwrap();
    for forged in ["owner", "mode", "link", "dir"] {
        if !is_root() && forged == "owner" {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let data = make_dir(&dir.path().join("data"), 0o700);
        let (free, config) = (free_port(), dir.path().join("outpace.yaml"));
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:{free}\", token: t0ken-of-the-victim }}\ndata_dir: {}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let text = serde_json::json!({
            "config": config, "listen": at, "admin": at,
            "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"),
        });
        let file = data.join("serving.json");
        match forged {
            "link" => {
                let elsewhere = dir.path().join("elsewhere.json");
                fs::write(&elsewhere, text.to_string()).unwrap();
                set_mode(&elsewhere, 0o600);
                symlink(&elsewhere, &file).unwrap();
            }
            _ => {
                fs::write(&file, text.to_string()).unwrap();
                set_mode(&file, if forged == "mode" { 0o666 } else { 0o600 });
            }
        }
        match forged {
            "owner" => chown(&file, Some(OTHER), None).unwrap(),
            "dir" => set_mode(&data, 0o777),
            _ => {}
        }
        let (code, told) = ended(&mut outpace(dir.path(), &["run", "--", "true"])).await;
        assert_eq!(code, Some(73), "{forged}: {told}");
        let (code, told) = ended(&mut outpace(dir.path(), &["status"])).await;
        assert_eq!(code, Some(69), "{forged}: {told}");
        assert!(told.contains(&format!("127.0.0.1:{free}")), "{told}");
    }
    // The commands have ended, so a connection of theirs would be there by now.
    let nobody = tokio::time::timeout(std::time::Duration::from_millis(50), trap.accept()).await;
    assert!(nobody.is_err(), "a command connected to a forged address");
}

/// Returns all paths below `dir` with a mode other than 0700 for directories and 0600 for files,
/// except certificates. They are public.
fn lax(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    if mode(dir) != 0o700 {
        found.push((dir.to_owned(), mode(dir)));
    }
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_certificate = path.extension().is_some_and(|kind| kind == "pem");
        if path.is_dir() {
            found.extend(lax(&path));
        } else if mode(&path) != 0o600 && !(is_certificate && mode(&path) == 0o644) {
            found.push((path.clone(), mode(&path)));
        }
    }
    found
}

/// Pushes an item whose body is too large for the database, so that it has a file.
async fn push_large(program: &Program) {
    let call = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let buffer = r#"{"name":"b","url":"http://plain.test/x"}"#;
    let made = raw(program.listen, &call("/buffers", buffer)).await;
    assert!(made.contains(" 201 ") || made.contains(" 200 "), "{made}");
    let paused = raw(program.listen, &call("/buffers/b/pause", "{}")).await;
    assert!(paused.contains(" 200 "), "{paused}");
    let item = format!(r#"{{"body":"{}"}}"#, "x".repeat(20_000));
    let pushed = raw(program.listen, &call("/buffers/b/items", &item)).await;
    assert!(pushed.contains(" 201 "), "{pushed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_modes_do_not_depend_on_the_umask() {
    let origin = Origin::ok().await;
    for umask in ["000", "002", "022", "077"] {
        let program = Program::before(&origin, SPOOL)
            .await
            .again_with_umask(umask)
            .await;
        push_large(&program).await;
        let data = program.path("data");
        assert!(data.join("spool/bodies").is_dir());
        assert_eq!(lax(&data), [], "umask {umask}");
        // An earlier version or a copy may have left wider modes. The next start narrows them.
        for dir in ["", "tmp", "trust", "spool", "spool/bodies"] {
            set_mode(&data.join(dir), 0o755);
        }
        let shelf = fs::read_dir(data.join("spool/bodies")).unwrap().next();
        let shelf = shelf.unwrap().unwrap().path();
        set_mode(&shelf, 0o755);
        for body in fs::read_dir(&shelf).unwrap() {
            set_mode(&body.unwrap().path(), 0o644);
        }
        for file in [
            "spool/spool.db",
            "spool/spool.hwm",
            "spool/lock",
            "trust/wgetrc",
        ] {
            if data.join(file).exists() {
                set_mode(&data.join(file), 0o644);
            }
        }
        let program = program.again_with_umask(umask).await;
        let data = program.path("data");
        assert_eq!(lax(&data), [], "umask {umask}, after wider modes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_run_leaves_private_files_only() {
    for umask in ["000", "002", "022"] {
        let dir = place();
        let script = format!("umask {umask}; exec \"$0\" run -- true");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_outpace")]);
        command.current_dir(dir.path()).stdin(Stdio::null());
        let (code, told) = ended(&mut command).await;
        assert_eq!(code, Some(0), "{told}");
        assert!(dir.path().join("data/run.log").exists());
        assert_eq!(lax(&dir.path().join("data")), [], "umask {umask}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_keeps_its_state_in_the_users_state_directory() {
    let listing = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for (variable, below) in [
        ("XDG_STATE_HOME", ""),
        ("HOME", ".local/state"),
        ("XDG_STATE_HOME", "deep/er"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = "listen: 127.0.0.1:0\nadmin: { listen: \"127.0.0.1:0\" }\n";
        fs::write(dir.path().join("outpace.yaml"), config).unwrap();
        let value = match variable {
            "HOME" => home.path().to_owned(),
            _ => home.path().join(below),
        };
        let mut command = outpace(dir.path(), &["run", "--", "sh", "-c"]);
        command.arg("cat \"$SSL_CERT_FILE\" | head -c 27");
        let (code, told) = ended(command.env(variable, &value)).await;
        assert_eq!((code, &*told), (Some(0), "-----BEGIN CERTIFICATE-----"));
        assert_eq!(listing(dir.path()), ["outpace.yaml"]);
        let state = home.path().join(below).join("outpace");
        let names = listing(&state);
        assert_eq!(names.len(), 1, "{names:?}");
        let data = state.join(&names[0]);
        assert!(data.join("ca.key").exists() && data.join("run.log").exists());
        assert_eq!(lax(&data), []);
        // A planted directory in the working directory is not used.
        if is_root() {
            let planted = make_dir(&dir.path().join("outpace-data"), 0o755);
            chown(&planted, Some(OTHER), None).unwrap();
            let mut command = outpace(dir.path(), &["run", "--", "true"]);
            assert_eq!(ended(command.env(variable, &value)).await.0, Some(0));
            assert_eq!(listing(&planted).len(), 0);
        }
    }
    // The directory that earlier versions made is still used, because it may hold requests.
    let dir = tempfile::tempdir().unwrap();
    let earlier = make_dir(&dir.path().join("outpace-data"), 0o700);
    let mut command = outpace(dir.path(), &["ca"]);
    let (code, told) = ended(command.env("HOME", dir.path())).await;
    assert!(code == Some(0) && earlier.join("ca.key").exists(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_supplied_key_is_of_this_user_or_lent_by_root() {
    if !is_root() {
        return;
    }
    let made = place();
    assert_eq!(
        ended(&mut outpace(made.path(), &["ca", "-c", "outpace.yaml"]))
            .await
            .0,
        Some(0)
    );
    // Owner and mode of the key, mode of its directory, user that runs outpace, and its exit code.
    for (owner, bits, above, user, code) in [
        (0, 0o640, 0o755, 65532, 0),
        (0, 0o440, 0o1777, 65532, 0),
        (65532, 0o600, 0o755, 65532, 0),
        (OTHER, 0o640, 0o755, 65532, 73),
        (OTHER, 0o400, 0o755, 0, 73),
        (65532, 0o600, 0o755, 0, 73),
        (0, 0o640, 0o777, 65532, 73),
        (0, 0o600, 0o777, 0, 73),
        (0, 0o644, 0o755, 65532, 77),
    ] {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        let ca = make_dir(&dir.path().join("ca"), 0o755);
        for name in ["ca.pem", "ca.key"] {
            fs::copy(made.path().join("data").join(name), ca.join(name)).unwrap();
        }
        chown(ca.join("ca.key"), Some(owner), Some(65532)).unwrap();
        set_mode(&ca.join("ca.key"), bits);
        set_mode(&ca, above);
        let data = make_dir(&dir.path().join("data"), 0o700);
        chown(&data, Some(user), Some(user)).unwrap();
        let config = format!(
            "data_dir: {}\nca: {{ cert: {ca}/ca.pem, key: {ca}/ca.key }}\n",
            data.display(),
            ca = ca.display()
        );
        fs::write(dir.path().join("c.yaml"), config).unwrap();
        // The directory of the build may be closed to other users.
        let copy = dir.path().join("outpace");
        fs::copy(env!("CARGO_BIN_EXE_outpace"), &copy).unwrap();
        set_mode(&copy, 0o755);
        let mut command = Command::new(&copy);
        command.args(["ca", "-c", "c.yaml"]).current_dir(dir.path());
        command.uid(user).gid(user).env("HOME", dir.path());
        let (ended, told) = ended(&mut command).await;
        assert_eq!(
            ended,
            Some(code),
            "{owner} {bits:o} {above:o} {user}: {told}"
        );
    }
}
