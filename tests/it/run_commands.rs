//! Tests of `outpace run`: signals for the command, and one configuration file by several paths.

use std::process::Stdio;

use crate::harness::{Origin, soon};
use crate::run::{ended, outpace, place, serving};

const TARGET: &str =
    "targets:\n  - { name: api, hosts: [api.test], limits: [{ rate: \"10/1s\" }] }\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_for_the_command_reaches_it() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    for signal in ["HUP", "QUIT", "USR1", "USR2", "ALRM"] {
        let script = format!("trap 'exit 9' {signal}; touch ready; while :; do sleep 0.01; done");
        let mut command = outpace(dir.path());
        command.args(["run", "sh", "-c", &script]);
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let ready = dir.path().join("ready");
        soon("the command", async {
            while !ready.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        std::fs::remove_file(ready).unwrap();
        let pid = child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", signal, &pid])
            .status();
        assert!(sent.unwrap().success());
        assert_eq!(
            soon("the end", child.wait()).await.unwrap().code(),
            Some(9),
            "{signal}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_by_several_paths_is_one_configuration() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    std::fs::create_dir(dir.path().join("below")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("linked")).unwrap();
    let mut serving = serving(dir.path()).await;
    let whole = dir.path().join("outpace.yaml").display().to_string();
    for path in [
        "outpace.yaml",
        "./below/../outpace.yaml",
        "linked/outpace.yaml",
        &whole,
    ] {
        let script = "curl -sS -o /dev/null https://api.test/";
        let joined = ended(outpace(dir.path()).args(["run", "-c", path, "sh", "-c", script])).await;
        assert_eq!((joined.0, &*joined.2), (Some(0), ""), "{path}");
    }
    serving.start_kill().unwrap();
    let _ = serving.wait().await;
}
