//! Tests of the OpenAPI documents of both ports: by a validator, by the responses of the running
//! program, and by a client that is generated from the documents.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::clients::variables;
use crate::harness::buffers::SPOOL;
use crate::harness::{Origin, Program};

/// Time for a script, which may check the types of a whole client.
const LONGEST: Duration = Duration::from_secs(170);

/// Token of the client that calls the API.
const TOKEN: &str = "app:app-token-of-32-bytes-0123456789";

const CONFIG: &str = "clients:
  - { name: app, token: app-token-of-32-bytes-0123456789, scopes: [read, push, manage] }
targets:
  - name: t
    hosts: [\"plain.test\"]
    limits:
      - { name: rate, rate: \"1000/1s\", burst: 1000, cost: { default: 2, max: 10, settle: \"header:x-cost\" } }
      - { name: slots, concurrent: 5 }
";

/// Runs a script of `tests/openapi` with the addresses and tokens of a program, and returns its
/// output. Panics with the output if the script fails.
async fn script(name: &str, variable: (&str, &str)) -> String {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{CONFIG}")).await;
    let [(_, python), ..] = variables();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .arg(scripts.join(name))
        .env("API", format!("http://{}", program.listen))
        .env("ADMIN", format!("http://{}", program.admin))
        .env("CLIENT_TOKEN", TOKEN)
        .env("ADMIN_TOKEN", program.admin_token().unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(variable.0, variable.1)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LONGEST, output).await;
    let output = output.expect("the script should end in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_responses_over_http1_are_as_the_documents_describe_them() {
    let told = script("responses.py", ("HTTP", "1")).await;
    assert!(told.contains("no call is left out"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_responses_over_http2_are_as_the_documents_describe_them() {
    let told = script("responses.py", ("HTTP", "2")).await;
    assert!(told.contains("no call is left out"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_generated_client_has_correct_types_and_works() {
    let told = script("generated.py", ("HTTP", "1")).await;
    assert!(told.contains("all calls worked"), "{told}");
}
