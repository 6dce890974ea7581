//! Tests of the variables of `outpace run`: root certificates and exceptions from the proxy.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::harness::{Origin, Program};
use crate::run::{ended, outpace, place};
use crate::run_honest::{CURL, closed_place, run};

const TARGET: &str =
    "targets:\n  - { name: api, hosts: [api.test], limits: [{ rate: \"10/1s\" }] }\n";

fn certificates(path: &str) -> Vec<CertificateDer<'static>> {
    let text = std::fs::read(path.trim()).unwrap_or_else(|error| panic!("{path}: {error}"));
    CertificateDer::pem_slice_iter(&text)
        .map(Result::unwrap)
        .collect()
}

/// Returns the values of these variables in a command of `run`.
async fn values(dir: &Path, names: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let script: String = names
        .iter()
        .map(|name| format!("echo \"${name}\"; "))
        .collect();
    let (code, out, err) = run(dir, &script, variables).await;
    assert_eq!(code, Some(0), "{err}");
    out.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_program_trusts_its_own_roots_and_the_ca_only() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let own = dir.path().join("corporate.pem");
    std::fs::write(&own, &origin.ca).unwrap();
    let corporate = certificates(own.to_str().unwrap());
    let hashed = dir.path().join("hashed");
    std::fs::create_dir(&hashed).unwrap();
    for name in ["a.0", "a.pem"] {
        std::fs::write(hashed.join(name), &origin.ca).unwrap();
    }
    let [own, hashed] = [&own, &hashed].map(|path| path.to_str().unwrap());
    let names = [
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "AWS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "DENO_CERT",
        "NPM_CONFIG_CAFILE",
    ];
    let plain = values(dir.path(), &names, &[]).await;
    let system = certificates(&plain[0]);
    let ours = certificates(dir.path().join("data/ca.pem").to_str().unwrap());
    assert!(system.len() > 20 && system.ends_with(&ours) && !system.contains(&corporate[0]));
    assert_eq!(certificates(&plain[6]), ours);
    let merged = [&corporate[..], &ours[..]].concat();
    for (variable, value, own_roots) in [
        (
            "REQUESTS_CA_BUNDLE",
            own,
            &["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"][..],
        ),
        (
            "REQUESTS_CA_BUNDLE",
            hashed,
            &["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"],
        ),
        ("SSL_CERT_FILE", own, &["SSL_CERT_FILE", "CURL_CA_BUNDLE"]),
        ("NODE_EXTRA_CA_CERTS", own, &["NODE_EXTRA_CA_CERTS"]),
        ("DENO_CERT", own, &["DENO_CERT"]),
        ("GIT_SSL_CAINFO", own, &["GIT_SSL_CAINFO"]),
    ] {
        let found = values(dir.path(), &names, &[(variable, value)]).await;
        for (name, path) in names.iter().zip(&found) {
            if own_roots.contains(name) {
                assert_eq!(certificates(path), merged, "{variable}: {name}");
            } else if *name == "NPM_CONFIG_CAFILE" && variable == "NODE_EXTRA_CA_CERTS" {
                assert_eq!(path, "", "npm adds these roots to its own");
            } else {
                assert!(
                    !certificates(path).contains(&corporate[0]),
                    "{variable}: {name}"
                );
            }
        }
    }
    // The same variables again, as in a `run` inside a `run`, change nothing.
    let nested: Vec<(&str, &str)> = names
        .iter()
        .copied()
        .zip(plain.iter().map(String::as_str))
        .collect();
    assert_eq!(values(dir.path(), &names, &nested).await, plain);
    let missing = [("CURL_CA_BUNDLE", "/no/such/file.pem")];
    let (code, _, err) = run(dir.path(), "true", &missing).await;
    assert_eq!(code, Some(0));
    assert!(
        err.contains("CURL_CA_BUNDLE names /no/such/file.pem"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roots_of_wget_php_and_apt_are_in_their_own_files() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let own = dir.path().join("corporate.pem");
    std::fs::write(&own, &origin.ca).unwrap();
    let wgetrc = dir.path().join("wgetrc");
    std::fs::write(
        &wgetrc,
        format!("timeout = 7\nca_certificate = {}\n", own.display()),
    )
    .unwrap();
    let own_apt = dir.path().join("apt.conf");
    std::fs::write(&own_apt, "Acquire::Retries \"7\";\n").unwrap();
    let [wgetrc, own_apt] = [&wgetrc, &own_apt].map(|path| path.to_str().unwrap());
    let variables = [
        ("WGETRC", wgetrc),
        ("APT_CONFIG", own_apt),
        ("PHP_INI_SCAN_DIR", "/own/ini"),
    ];
    let found = values(
        dir.path(),
        &["WGETRC", "APT_CONFIG", "PHP_INI_SCAN_DIR"],
        &variables,
    )
    .await;
    let text = std::fs::read_to_string(&found[0]).unwrap();
    let mut lines = text.lines().rev();
    let path = lines
        .find_map(|line| line.strip_prefix("ca_certificate = "))
        .unwrap();
    assert!(text.starts_with("timeout = 7\n"), "{text}");
    assert_eq!(certificates(path).len(), 2);
    let text = std::fs::read_to_string(&found[1]).unwrap();
    assert!(
        text.contains("#include") && text.contains("Acquire::https::CaInfo"),
        "{text}"
    );
    assert!(found[2].starts_with("/own/ini:"), "{}", found[2]);
    let asked = tokio::process::Command::new("apt-config")
        .args(["dump"])
        .env("APT_CONFIG", &found[1])
        .output()
        .await;
    if let Ok(asked) = asked {
        let text = String::from_utf8(asked.stdout).unwrap();
        assert!(
            text.contains("Acquire::Retries \"7\"") && text.contains("Acquire::https::CaInfo"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_exception_swallows_a_target() {
    let origin = Origin::ok().await;
    let port = origin.plain.port();
    let target = |host: &str| {
        format!(
            "targets:\n  - {{ name: local, hosts: [\"{host}\"], limits: [{{ rate: \"10/1s\" }}] }}\n"
        )
    };
    let local = closed_place(&origin, &target(&format!("localhost:{port}")));
    let text = std::fs::read_to_string(local.path().join("outpace.yaml")).unwrap();
    std::fs::write(
        local.path().join("outpace.yaml"),
        text.replace(
            "\"plain.test\":",
            &format!("\"localhost\": \"{}\", \"plain.test\":", origin.plain),
        ),
    )
    .unwrap();
    let (code, out, err) = run(
        local.path(),
        &format!("{CURL} http://localhost:{port}/"),
        &[],
    )
    .await;
    assert_eq!((code, out.trim(), &*err), (Some(0), "200", ""));
    for (host, own, gone, kept) in [
        ("localhost:19080", "", "localhost", "127.0.0.1"),
        ("10.1.2.3", "", "10.0.0.0/8", "172.16.0.0/12"),
        ("api.default.svc", "", ".svc", ".cluster.local"),
        (
            "api.corp.test",
            "api.corp.test,mine.test",
            "api.corp.test",
            "mine.test",
        ),
        ("api.corp.test", ".corp.test", ".corp.test", "localhost"),
        (
            "*.corp.test",
            "corp.test,intern.test",
            "corp.test",
            "intern.test",
        ),
        ("api.test", "*", "*", "localhost"),
        // A narrower exception than a wildcard is meant.
        (
            "*.corp.test",
            "quiet.corp.test",
            ".corp.test",
            "quiet.corp.test",
        ),
    ] {
        let dir = place(&origin, &target(host));
        let list = values(dir.path(), &["NO_PROXY"], &[("NO_PROXY", own)])
            .await
            .remove(0);
        let entries: Vec<&str> = list.split(',').collect();
        assert!(
            !entries.contains(&gone) && entries.contains(&kept),
            "{host}: {list}"
        );
    }
    // A joined outpace refuses other private hosts, so a wide exception stays and is named.
    let program = Program::before(&origin, &target("api.corp.test")).await;
    let mut command = outpace(program.dir.path());
    command
        .env("NO_PROXY", ".corp.test")
        .arg("run")
        .arg("-c")
        .arg(program.config_path())
        .args(["sh", "-c", "echo $NO_PROXY"]);
    let (code, out, err) = ended(&mut command).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.trim().ends_with(".corp.test"), "{out}");
    assert!(
        err.contains("`.corp.test` in NO_PROXY covers target local"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_files_of_the_user_are_used_or_named() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let write =
        |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    let ca = origin.ca.as_bytes();
    write("latin.pem", &[b"# Autorit\xe9\n", ca].concat());
    let key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    write("key.pem", &[&key[..], ca].concat());
    write("windows.pem", origin.ca.replace('\n', "\r\n").as_bytes());
    let der = certificates(&path("latin.pem")).remove(0);
    write("der.pem", &der);
    write("empty.pem", b"");
    for (name, count, words) in [
        ("latin.pem", 2, ""),
        ("key.pem", 2, ""),
        ("windows.pem", 2, ""),
        ("empty.pem", 1, ""),
        ("der.pem", 1, "holds no certificate in PEM"),
        ("missing.pem", 1, "No such file"),
    ] {
        let script = "cat \"$REQUESTS_CA_BUNDLE\"";
        let (code, out, err) =
            run(dir.path(), script, &[("REQUESTS_CA_BUNDLE", &path(name))]).await;
        assert_eq!(code, Some(0), "{name}: {err}");
        assert_eq!(
            out.matches("BEGIN CERTIFICATE").count(),
            count,
            "{name}: {out}"
        );
        assert!(
            err.contains(words) && !out.contains("PRIVATE"),
            "{name}: {err}"
        );
    }
    // A pipe without a writer is not waited for.
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe"))
        .status();
    assert!(made.unwrap().success());
    let (code, _, err) = run(dir.path(), "true", &[("PIP_CERT", &path("pipe"))]).await;
    assert!(code == Some(0) && err.contains("it is no file"), "{err}");
    // Settings of wget keep their bytes, and a missing certificate is named.
    write(
        "w1",
        b"wait = 1\n# caf\xe9\nca_certificate = /no/such.pem\n",
    );
    let (code, out, err) = run(
        dir.path(),
        "cat $WGETRC | head -1",
        &[("WGETRC", &path("w1"))],
    )
    .await;
    assert_eq!((code, out.trim()), (Some(0), "wait = 1"));
    assert!(
        err.contains("ca_certificate of wget names /no/such.pem"),
        "{err}"
    );
    // Two commands at the same time keep their own files.
    write("w2", b"wait = 2\n");
    let script = "first=$(cat $WGETRC); touch ready; until test -e done; do :; done; test \"$first\" = \"$(cat $WGETRC)\" && echo same";
    let w1 = path("w1");
    let first = [("WGETRC", &*w1)];
    let long = crate::run_honest::run_once(dir.path(), script, &first);
    let short = async {
        while !dir.path().join("ready").exists() {
            tokio::task::yield_now().await;
        }
        let w2 = path("w2");
        let found =
            crate::run_honest::run_once(dir.path(), "head -1 $WGETRC", &[("WGETRC", &w2)]).await;
        std::fs::write(dir.path().join("done"), "").unwrap();
        found
    };
    let (long, short) = tokio::join!(long, short);
    assert_eq!(
        (long.1.trim(), short.1.trim()),
        ("same", "wait = 2"),
        "{long:?} {short:?}"
    );
}
