//! Tests of the commands for the first steps: `init`, `config schema`, `completions`, `man`, `pin`
//! and `buffers --client`.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Origin, Program};
use crate::run::{ended, outpace};
use crate::seen_buffers::cli;

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_a_valid_file_and_never_replaces_one() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, lines) in [
        (
            vec!["--host", "api.github.com", "--rate", "5000/1h"],
            vec![
                "target api-github-com: api.github.com",
                "5000 requests per 1 h",
            ],
        ),
        (
            vec![
                "--host",
                "*.example.com:8443",
                "--rate",
                "3/1s",
                "--burst",
                "2",
                "-c",
                "two.yaml",
            ],
            vec![
                "target example-com-8443: *.example.com:8443",
                "with a burst of 2",
            ],
        ),
        (
            vec![
                "--host",
                "[::1]:8080",
                "--rate",
                "10/1m",
                "--name",
                "local",
                "--config",
                "three.yaml",
            ],
            vec!["target local: [::1]:8080"],
        ),
    ] {
        let made = ended(outpace(dir.path()).arg("init").args(&arguments)).await;
        assert_eq!(made.0, Some(0), "{made:?}");
        let file = made.1.split_whitespace().nth(1).unwrap();
        let checked = ended(outpace(dir.path()).args(["check", file])).await;
        assert_eq!(checked.0, Some(0), "{checked:?}");
        for line in lines {
            assert!(checked.1.contains(line), "{line}: {}", checked.1);
        }
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        let again = ended(outpace(dir.path()).arg("init").args(&arguments)).await;
        assert_eq!(again.0, Some(64), "{again:?}");
        assert!(again.2.contains("exists"), "{}", again.2);
        assert_eq!(
            std::fs::read_to_string(dir.path().join(file)).unwrap(),
            text
        );
        let forced = ended(
            outpace(dir.path())
                .arg("init")
                .args(&arguments)
                .arg("--force"),
        )
        .await;
        assert_eq!(forced.0, Some(0), "{forced:?}");
    }
    for wrong in [
        ["--host", "https://api.test/", "--rate", "1/1s"],
        ["--host", "api.test", "--rate", "10 rps"],
        ["--host", "api.test", "--rate", "0/1s"],
    ] {
        let refused = ended(outpace(dir.path()).arg("init").args(wrong)).await;
        assert_eq!(refused.0, Some(64), "{refused:?}");
    }
    let nowhere = [
        "init",
        "--host",
        "a.test",
        "--rate",
        "1/1s",
        "-c",
        "no/such/dir.yaml",
    ];
    let refused = ended(outpace(dir.path()).args(nowhere)).await;
    assert_eq!(refused.0, Some(73), "{refused:?}");
}

/// Validates YAML files by the printed schema with an independent library, and returns the files
/// that it rejects.
async fn rejected(files: &[std::path::PathBuf]) -> Vec<String> {
    const SCRIPT: &str = "
import json, sys, yaml, jsonschema
schema = json.load(open(sys.argv[1]))
validator = jsonschema.Draft202012Validator(schema)
validator.check_schema(schema)
for name in sys.argv[2:]:
    with open(name) as file:
        # A status such as 429 is a key of JSON as text.
        try:
            document = json.loads(json.dumps(yaml.safe_load(file), default=str))
        except yaml.YAMLError:
            document = 'no YAML'
    if not validator.is_valid(document if document is not None else {}):
        print(name)
";
    let dir = tempfile::tempdir().unwrap();
    let schema = ended(outpace(dir.path()).args(["config", "schema"])).await;
    assert_eq!(schema.0, Some(0), "{schema:?}");
    let path = dir.path().join("schema.json");
    std::fs::write(&path, schema.1).unwrap();
    let [(_, python), ..] = crate::clients::variables();
    let mut command = tokio::process::Command::new(python);
    let (code, out, err) = ended(command.args(["-c", SCRIPT]).arg(&path).args(files)).await;
    assert_eq!(code, Some(0), "{err}");
    out.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_accepts_what_is_valid_and_rejects_wrong_keys_and_types() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bad = root.join("tests/config/bad");
    let files = |dir: &Path| {
        let entries = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries
            .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
            .collect();
        files.sort();
        files
    };
    assert_eq!(
        rejected(&[root.join("config.example.yaml")]).await,
        Vec::<String>::new()
    );
    // Every file of the tests is either read by the schema's types, or it is rejected.
    let all = files(&bad);
    let found = rejected(&all).await;
    let mut missed = Vec::new();
    for path in &all {
        let message = std::fs::read_to_string(path.with_extension("txt")).unwrap();
        let by_type = [
            "unknown field",
            "invalid type",
            "unknown variant",
            "is not a rate",
            "has no unit",
        ];
        let is_found = found.contains(&path.display().to_string());
        if !is_found && by_type.iter().any(|words| message.contains(words)) {
            missed.push(path.file_name().unwrap().to_owned());
        }
    }
    assert!(missed.is_empty(), "not rejected: {missed:?}");
    assert!(found.len() > 20, "{found:?}");
    // Values and keys that are easily mistaken.
    let dir = tempfile::tempdir().unwrap();
    let target = |more: &str| format!("targets: [{{ name: a, hosts: [a.test], {more} }}]\n");
    for (number, (text, is_valid)) in [
        (target("limits: [{ rate: \"10/1s\" }]"), true),
        (target("limits: [{ rate: \"10/s\", burst: 3 }], max_wait: 1m 30s"), true),
        (target("limits: [{ rate: \"${RATE}\" }]"), true),
        (target("limits: [{ rate: 5/1m, cost: { estimate: [\"json:/a\", { sum: [1, \"body/4\"] }], on_error: { 4xx: refund, \"429\": keep } } }]"), true),
        ("listen: localhost:8080\nspool: { max: 1GiB }\n".to_owned(), true),
        ("".to_owned(), true),
        (target("limits: [{ rate: \"10 per second\" }]"), false),
        (target("limit: [{ rate: \"10/1s\" }]"), false),
        (target("max_wait: 30"), false),
        (target("limits: [{ rate: \"1/1s\", burst: \"many\" }]"), false),
        (target("limits: [{ rate: 5/1m, cost: { estimate: { min: [1] } } }]"), false),
        ("spool: { max: 1GB }\n".to_owned(), false),
        ("unmatched: pass\n".to_owned(), false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{number}.yaml"));
        std::fs::write(&path, &text).unwrap();
        assert_eq!(rejected(&[path]).await.is_empty(), is_valid, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_manual_pages_name_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let help = ended(outpace(dir.path()).arg("--help")).await.1;
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    assert!(commands.len() > 20, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = ended(outpace(dir.path()).args(["completions", shell])).await;
        assert_eq!(script.0, Some(0), "{script:?}");
        for command in &commands {
            assert!(script.1.contains(command), "{shell}: {command}");
        }
    }
    // The shell itself takes the script.
    let sourced = "eval \"$(\"$0\" completions bash)\" && complete -p outpace";
    let mut bash = tokio::process::Command::new("bash");
    let taken = ended(bash.args(["-c", sourced, env!("CARGO_BIN_EXE_outpace")])).await;
    assert_eq!(taken.0, Some(0), "{taken:?}");
    let page = ended(outpace(dir.path()).args(["man", "run"])).await;
    assert!(
        page.1.starts_with(".ie \\n(.g") && page.1.contains("HTTPS") || page.1.contains(".TH"),
        "{}",
        page.1
    );
    let pages = dir.path().join("man");
    std::fs::create_dir(&pages).unwrap();
    let written = ended(outpace(dir.path()).arg("man").arg("--dir").arg(&pages)).await;
    assert_eq!(written.0, Some(0), "{written:?}");
    for command in commands.iter().filter(|name| **name != "help") {
        assert!(
            pages.join(format!("outpace-{command}.1")).exists(),
            "{command}"
        );
    }
    let unknown = ended(outpace(dir.path()).args(["man", "nosuch"])).await;
    assert_eq!(unknown.0, Some(64), "{unknown:?}");
    let nowhere = ended(outpace(dir.path()).args(["man", "--dir", "no/such"])).await;
    assert_eq!(nowhere.0, Some(73), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_pinned_and_unpinned_by_name() {
    const TARGET: &str = "targets:\n  - { name: api, hosts: [plain.test], limits: [{ name: requests, rate: \"500/1m\" }, { name: parallel, concurrent: 4 }] }\n";
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for (arguments, words) in [
        (
            vec!["pin", "api", "requests", "--rate", "100/1m"],
            "pinned at 100/1m",
        ),
        (
            vec!["pin", "api", "requests", "--rate", "60/1m", "--burst", "9"],
            "60/1m with burst 9",
        ),
        (
            vec!["pin", "api", "parallel", "--concurrent", "2"],
            "pinned at 2",
        ),
    ] {
        let (code, text) = cli(&program, &arguments).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(words), "{text}");
    }
    let (_, status) = cli(&program, &["status"]).await;
    assert!(status.contains("60/1m with burst 9"), "{status}");
    for limit in ["requests", "parallel"] {
        let (code, text) = cli(&program, &["unpin", "api", limit]).await;
        assert_eq!(
            (code, text.contains("no pin any more")),
            (Some(0), true),
            "{text}"
        );
    }
    let (_, status) = cli(&program, &["status"]).await;
    assert!(status.contains("500/1m"), "{status}");
    for (arguments, words) in [
        (
            vec!["pin", "nosuch", "requests", "--rate", "1/1s"],
            "no target",
        ),
        (vec!["pin", "api", "nosuch", "--rate", "1/1s"], "no limit"),
        (
            vec!["pin", "api", "parallel", "--rate", "1/1s"],
            "concurrency limit",
        ),
        (vec!["pin", "api", "requests"], "--rate"),
        (vec!["pin", "api", "requests", "--rate", "fast"], "fast"),
        (vec!["unpin", "api", "a/b"], "no limit"),
    ] {
        let (code, text) = cli(&program, &arguments).await;
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buffers_of_one_client_need_its_name_only() {
    const CLIENTS: &str = "clients:\n  - { name: shop, token: token-of-the-shop }\n  - { name: mail, token: token-of-the-mail }\nspool: { accept_loss: true }\nbuffers:\n  - { name: orders, url: \"http://plain.test/200\", clients: [shop] }\n";
    let origin = Origin::ok().await;
    let program = Program::before(&origin, CLIENTS).await;
    let (code, all) = cli(&program, &["buffers", "--json"]).await;
    assert_eq!(code, Some(0), "{all}");
    let (code, own) = cli(&program, &["buffers", "--client", "shop", "--json"]).await;
    assert_eq!(code, Some(0), "{own}");
    let own: Value = serde_json::from_str(&own).unwrap();
    assert!(own.to_string().contains("orders"), "{own}");
    // No character of a name changes the call.
    for name in ["a b", "a?b", "a/b", "ü"] {
        let (code, text) = cli(&program, &["buffers", "show", name]).await;
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains("404 there is no buffer `"), "{text}");
        let (_, text) = cli(&program, &["items", "list", name]).await;
        assert!(text.contains("404 there is no buffer `"), "{text}");
    }
    let (code, text) = cli(&program, &["buffers", "--client", "nosuch"]).await;
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("shop, mail"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_elsewhere_gets_the_bundle_without_a_token() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, "").await;
    for (path, file) in [
        ("/ca.pem", "data/ca.pem"),
        ("/bundle.pem", "data/trust/bundle.pem"),
    ] {
        let url = format!("http://{}{path}", program.admin);
        let got = ended(tokio::process::Command::new("curl").args(["-sS", "-f", &url])).await;
        assert_eq!(got.0, Some(0), "{got:?}");
        let written = std::fs::read_to_string(program.dir.path().join(file)).unwrap();
        assert_eq!(got.1, written, "{path}");
        assert!(!got.1.contains("PRIVATE"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_needs_only_the_variables_that_it_uses() {
    const SECRETS: &str = "clients: [{ name: shop, token: \"${SHOP_TOKEN}\" }]\nspool: { key: \"${SPOOL_KEY}\" }\ntargets: [{ name: api, hosts: [api.test], set_headers: { x-key: \"${API_KEY}\" }, limits: [{ name: requests, rate: \"9/1s\" }] }]\n";
    let origin = Origin::ok().await;
    let variables = [
        ("SHOP_TOKEN", "token-of-the-shop-0"),
        ("SPOOL_KEY", "0123456789abcdef0123456789abcdef"),
        ("API_KEY", "a-key"),
    ];
    let program = Program::with_env(&origin, SECRETS, &variables).await;
    for arguments in [
        vec!["status"],
        vec!["health", "--ready"],
        vec!["explain", "https://api.test/"],
        vec!["blocks"],
        vec!["buffers"],
        vec!["pin", "api", "requests", "--rate", "5/1s"],
        vec!["unpin", "api", "requests"],
        vec!["ca"],
    ] {
        let (code, text) = cli(&program, &arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
    }
    // The token of a client is needed where that client is named, and nowhere else.
    let (code, text) = cli(&program, &["buffers", "--client", "shop"]).await;
    assert_eq!(
        (code, text.contains("SHOP_TOKEN")),
        (Some(64), true),
        "{text}"
    );
    // Commands of another directory find the relative paths of the file.
    let text = std::fs::read_to_string(program.config_path()).unwrap();
    let absolute = format!("data_dir: {}", program.path("data").display());
    assert!(text.contains(&absolute), "{text}");
    std::fs::write(
        program.config_path(),
        text.replace(&absolute, "data_dir: ./data"),
    )
    .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = outpace(elsewhere.path());
    let told = ended(command.args(["status", "-c"]).arg(program.config_path())).await;
    assert_eq!(told.0, Some(0), "{told:?}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}
