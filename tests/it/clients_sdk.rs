//! Tests of the client packages in `clients/`: their own test files run against the real program
//! and a real origin, with each runtime that this machine has.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::clients::variables;
use crate::harness::Origin;

/// Time for all tests of one file, which start many programs.
const LONGEST: Duration = Duration::from_secs(170);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns true if the runtime is installed, and prints a notice if it is not.
fn is_there(what: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !is_there {
        println!("NOT RUN: {what}: `{program}` is not installed");
    }
    is_there
}

/// Runs a command of a client's tests and returns its output. Panics with the output if it fails.
async fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LONGEST, output).await;
    let output = output.expect("the tests should end in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{told}");
    told
}

/// Returns a command with the program and the origin in its environment.
fn with_program(runtime: &str, origin: &Origin) -> Command {
    let mut command = Command::new(runtime);
    command
        .env("OUTPACE_BIN", env!("CARGO_BIN_EXE_outpace"))
        .env("ORIGIN", origin.plain.to_string())
        .env_remove("OUTPACE_URL")
        .env_remove("OUTPACE_CLIENT_TOKEN");
    command
}

async fn python(file: &str) -> usize {
    let [(_, python), ..] = variables();
    let origin = Origin::ok().await;
    if is_there(file, &python) {
        let client = root().join("clients/python");
        let mut command = with_program(&python, &origin);
        command
            .args(["-W", "error", "-m", "unittest", "-v", file])
            .current_dir(client.join("tests"))
            .env("PYTHONPATH", client.join("src"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let told = run(&mut command).await;
        assert!(told.contains("\nOK\n"), "a test was skipped:\n{told}");
    }
    origin.arrivals.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_for_threads_passes_its_tests() {
    assert!(python("test_sync").await > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_client_for_asyncio_passes_its_tests() {
    assert!(python("test_async").await > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_readme_runs_block_by_block() {
    python("test_readme").await;
}

/// Checks the types and the style of the package, if the tools are installed.
#[tokio::test(flavor = "multi_thread")]
async fn python_client_passes_the_type_checker_and_the_linter() {
    let [(_, python), ..] = variables();
    for (tool, arguments) in [
        ("mypy", ["--strict", "--cache-dir=/dev/null"].as_slice()),
        ("ruff", &["check", "--no-cache"]),
        ("ruff", &["format", "--check", "--no-cache"]),
    ] {
        let mut known = Command::new(&python);
        let known = known.args(["-c", &format!("import {tool}")]).output().await;
        if !known.is_ok_and(|known| known.status.success()) {
            println!("NOT RUN: clients/python: `{tool}` is not installed");
            continue;
        }
        let mut check = Command::new(&python);
        check.args(["-m", tool]).args(arguments);
        run(check.current_dir(root().join("clients/python"))).await;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// Compiles a copy of the package with its tests, and runs them with this version of Node.
async fn typescript(node: &str) {
    let modules = root().join("tests/clients/node_modules");
    let compiler = modules.join("typescript/bin/tsc").display().to_string();
    let what = "clients/typescript";
    if !is_there(what, node) || !is_there(what, &compiler) {
        return;
    }
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    let client = root().join(what);
    for part in ["src", "test"] {
        copy(&client.join(part), &dir.path().join(part));
    }
    for file in ["package.json", "tsconfig.json", "README.md"] {
        std::fs::copy(client.join(file), dir.path().join(file)).unwrap();
    }
    std::os::unix::fs::symlink(&modules, dir.path().join("node_modules")).unwrap();
    // The tests import the package by its name, as its users do.
    for project in ["tsconfig.json", "test/tsconfig.json"] {
        let mut compile = Command::new(node);
        compile.args([&compiler, "--project", project]);
        run(compile.current_dir(dir.path())).await;
    }
    let mut command = with_program(node, &origin);
    command.args(["--test", "--test-reporter=tap"]);
    for file in ["client", "readme"] {
        command.arg(format!("build/test/{file}.test.js"));
    }
    let told = run(command.current_dir(dir.path())).await;
    assert!(told.contains("# skipped 0"), "a test was skipped:\n{told}");
    assert!(origin.arrivals.count() > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_client_passes_its_tests_on_node_20() {
    typescript("node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_client_passes_its_tests_on_node_24() {
    let [_, (_, node), ..] = variables();
    typescript(&node).await;
}

#[test]
fn packages_have_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, line) in [
        ("python/src/outpace/_version.py", "__version__ = \"{}\""),
        ("typescript/package.json", "  \"version\": \"{}\","),
    ] {
        let text = std::fs::read_to_string(root().join("clients").join(file)).unwrap();
        let line = line.replace("{}", version);
        assert!(text.lines().any(|known| known == line), "{file}: {line}");
    }
}
