//! P11 and P12: what replicas say of each other: silent ones, their reserved share, a rollout, and
//! starts that fail. Each test has a real Postgres and real processes.

use serde_json::Value;

use crate::harness::{Client, Origin, Postgres, Program, program, refused_start, soon};

fn config(postgres: &Postgres, share_for: &str, rate: &str) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{}\" }}, share_for: {share_for} }}\ntargets:\n  - name: api\n    hosts: [plain.test]\n    max_wait: 60s\n    lanes: [{{ name: batch, match: {{ path: \"/batch\" }} }}, {{ name: rest }}]\n    limits: [{{ name: pace, rate: \"{rate}\", burst: 1 }}]\n",
        postgres.url()
    )
}

async fn replicas(
    postgres: &Postgres,
    origin: &Origin,
    share_for: &str,
    count: i64,
) -> Vec<Program> {
    let mut programs = Vec::new();
    for _ in 0..count {
        programs.push(Program::before(origin, &config(postgres, share_for, "20/1s")).await);
    }
    // The shares settle once each replica has seen all others.
    let share = (1_000_000 / count) as f64 / 1e6;
    let settled = |row: &Value| row["state"] == "live" && row["share"] == share;
    for program in &programs {
        soon("all replicas", async {
            loop {
                let live = status(program).await["fleet"]["live"] == count;
                let told = json(program, "/v1/replicas").await;
                if live && told["replicas"].as_array().unwrap().iter().all(settled) {
                    return;
                }
            }
        })
        .await;
    }
    programs
}

async fn json(program: &Program, path: &str) -> Value {
    let (status, text) = program.admin_get(path).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn status(program: &Program) -> Value {
    json(program, "/v1/status").await
}

/// Runs a command against the replica and returns what it prints.
async fn printed(replica: &Program, arguments: &[&str]) -> String {
    let mut command = program();
    command.args(arguments).arg("-c").arg(replica.config_path());
    let output = command.output().await.unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Returns true if a gauge has this value.
async fn shows(program: &Program, series: &str, value: f64) -> bool {
    (program.metric(series).await - value).abs() < 1e-9
}

fn is_silence(event: &Value) -> bool {
    let message = event["message"].as_str();
    message.is_some_and(|message| message.starts_with("a replica is silent"))
}

fn count(program: &Program, wanted: impl Fn(&Value) -> bool) -> usize {
    program
        .events()
        .iter()
        .filter(|event| wanted(event))
        .count()
}

/// Asserts that `peer` is reported as silent in the log, in the status, in the list and in the
/// metrics of `program`.
async fn assert_silent(program: &Program, peer: u32, part: &str, ratio: f64) {
    let event = program.event(is_silence).await;
    let name = event["replica"].as_str().unwrap();
    assert!(name.ends_with(&format!("/{peer}")), "{event}");
    assert_eq!(event["level"], "warn");
    assert_eq!(event["reserved"], part);
    for field in ["last_heartbeat", "reserved_until"] {
        assert!(event[field].as_str().unwrap().ends_with('Z'), "{event}");
    }
    let told = status(program).await;
    assert_eq!(told["fleet"]["reserved"], ratio, "{told}");
    assert_eq!(told["fleet"]["silent"][0]["replica"], name);
    let mode = told["targets"][0]["ledger"].as_str().unwrap();
    let reserved = format!("{part} of each rate is reserved for 1 silent replica for ");
    assert!(mode.contains(&reserved), "{mode}");
    assert!(shows(program, "outpace_peers_silent", 1.0).await);
    assert!(shows(program, "outpace_rate_reserved_ratio", ratio).await);
    let text = printed(program, &["status"]).await;
    let warning = format!("warning: replica {name} is silent since ");
    assert!(text.contains(&warning), "{text}");
    assert!(
        text.contains(&format!("; {part} of each rate is reserved for it until ")),
        "{text}"
    );
    let text = printed(program, &["status", "--fleet"]).await;
    let row = text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(row.contains("silent") && row.contains(part), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_a_killed_replica_is_reported_by_each_other_one_until_its_share_is_free() {
    for (all, part, ratio) in [(2, "50 %", 0.5), (3, "33.33 %", 0.333_333)] {
        let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
        let mut replicas = replicas(&postgres, &origin, "5s", all).await;
        let peer = replicas[0].pid();
        replicas[0].signal("KILL");
        let killed = std::time::Instant::now();
        replicas[0].exit_code().await;
        replicas[1].event(is_silence).await;
        println!("{all} replicas: reported after {:?}", killed.elapsed());
        for program in &replicas[1..] {
            assert_silent(program, peer, part, ratio).await;
        }
        for program in &replicas[1..] {
            let free = "the part of each rate that was reserved for a silent replica is free again";
            program.event(|event| event["message"] == free).await;
            assert!(shows(program, "outpace_peers_silent", 0.0).await);
            assert!(shows(program, "outpace_rate_reserved_ratio", 0.0).await);
            let text = printed(program, &["status", "--fleet"]).await;
            assert!(!text.contains("silent"), "{text}");
            assert_eq!(count(program, is_silence), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_a_frozen_replica_is_reported_and_so_is_its_return() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let replicas = replicas(&postgres, &origin, "60s", 2).await;
    for round in 1..3 {
        replicas[0].signal("STOP");
        replicas[1].nth_event(round, is_silence).await;
        assert!(shows(&replicas[1], "outpace_peers_silent", 1.0).await);
        replicas[0].signal("CONT");
        let back = |event: &Value| event["message"] == "a silent replica is back";
        replicas[1].nth_event(round, back).await;
        assert!(shows(&replicas[1], "outpace_peers_silent", 0.0).await);
        assert_eq!(count(&replicas[1], is_silence), round);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_a_clean_stop_is_no_silence() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let mut replicas = replicas(&postgres, &origin, "60s", 2).await;
    replicas[0].signal("TERM");
    assert_eq!(replicas[0].exit_code().await, Some(0));
    soon("the departure", async {
        while status(&replicas[1]).await["fleet"]["live"] != 1 {}
    })
    .await;
    let told = json(&replicas[1], "/v1/replicas").await;
    assert_eq!(told["replicas"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(count(&replicas[1], is_silence), 0);
    let mode = &status(&replicas[1]).await["targets"][0]["ledger"];
    assert_eq!(mode, "shared by 1 replica");
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_start_that_fails_reserves_nothing() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let first = replicas(&postgres, &origin, "60s", 1).await.remove(0);
    let ledger = config(&postgres, "60s", "20/1s");
    let dir = tempfile::tempdir().unwrap();
    let text = |listen: String, admin: String, more: &str| {
        let dir = dir.path().display();
        format!(
            "listen: {listen}\nadmin: {{ listen: \"{admin}\" }}\ndata_dir: {dir}/data\n{more}{ledger}"
        )
    };
    let any = || "127.0.0.1:0".to_owned();
    let taken = || first.listen.to_string();
    std::fs::write(dir.path().join("not-a-directory"), "").unwrap();
    let spool = format!(
        "spool: {{ dir: \"{}/not-a-directory\" }}\n",
        dir.path().display()
    );
    for (text, code) in [
        (text(taken(), any(), ""), 69),
        (text(any(), first.admin.to_string(), ""), 69),
        (text(any(), any(), &spool), 73),
    ] {
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let (exit, told) = refused_start(&path).await;
        assert_eq!(exit, Some(code), "{told}");
        let listed = json(&first, "/v1/replicas").await;
        assert_eq!(listed["replicas"].as_array().unwrap().len(), 1, "{listed}");
    }
    assert_eq!(count(&first, is_silence), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_a_rollout_and_waiting_requests_are_shown() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let replicas = replicas(&postgres, &origin, "60s", 2).await;
    let told = json(&replicas[0], "/v1/replicas").await;
    assert_eq!(told["configurations"], 1, "{told}");
    assert_eq!(told["shared"], true);
    for row in told["replicas"].as_array().unwrap() {
        assert_eq!(row["state"], "live");
        assert_eq!(row["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(row["ledger"], "connected", "{row}");
        assert_eq!(row["share"], 0.5);
        assert_eq!(row["reserved_until"], Value::Null);
    }
    let path = replicas[0].config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("20/1s", "1/10s")).unwrap();
    soon("the other configuration", async {
        while status(&replicas[1]).await["fleet"]["configurations"] != 2 {}
    })
    .await;
    let text = printed(&replicas[1], &["status"]).await;
    assert!(
        text.contains("replicas have different configurations"),
        "{text}"
    );
    // One request leaves and the others wait, in two lanes of the replica with the new limit.
    let mut waiting = tokio::task::JoinSet::new();
    for path in ["", "", "", "batch", "batch"] {
        let address = replicas[0].listen;
        waiting.spawn(async move {
            let mut client = Client::to(address, crate::harness::Proto::Http1).await;
            client.try_get(&format!("http://plain.test/{path}")).await
        });
    }
    soon("the waiting requests", async {
        loop {
            let told = json(&replicas[1], "/v1/replicas").await;
            let other = told["replicas"].as_array().unwrap().iter();
            let other = other.filter(|row| row["self"] == false);
            let lanes: Vec<Value> = other
                .flat_map(|row| row["waiting"].as_array().unwrap().clone())
                .collect();
            let sum: u64 = lanes
                .iter()
                .map(|lane| lane["waiting"].as_u64().unwrap())
                .sum();
            if sum == 4 && lanes.len() == 2 {
                return;
            }
        }
    })
    .await;
    let text = printed(&replicas[1], &["status", "--fleet"]).await;
    assert!(
        text.contains("api/batch ") && text.contains("api/rest "),
        "{text}"
    );
    assert!(text.contains("2 configurations are in use"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_the_list_without_a_shared_ledger_and_in_an_outage() {
    let origin = Origin::ok().await;
    let alone = Program::before(&origin, "").await;
    let told = json(&alone, "/v1/replicas").await;
    assert_eq!(
        (&told["shared"], &told["error"]),
        (&Value::Bool(false), &Value::Null)
    );
    assert_eq!(told["replicas"][0]["self"], true);
    assert_eq!(status(&alone).await["fleet"], Value::Null);
    let text = printed(&alone, &["status", "--fleet"]).await;
    assert!(text.contains("the ledger is in memory"), "{text}");
    let mut postgres = Postgres::start().await;
    let replica = replicas(&postgres, &origin, "60s", 1).await.remove(0);
    postgres.crash();
    let told = json(&replica, "/v1/replicas").await;
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("did not list its replicas"), "{error}");
    assert_eq!(told["replicas"][0]["self"], true);
}

/// Reaches the bound `PEERS_REPORTED`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_heartbeat_names_at_most_a_hundred_silent_replicas() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let replica = replicas(&postgres, &origin, "60s", 1).await.remove(0);
    let mut connection = postgres.connect().await.unwrap();
    let silent = "insert into outpace.replica \
        select n, 'gone/' || n, '0', '0', 'connected', '[]', t, t, t + 3600000000000, 1000 \
          from generate_series(1, 120) n, outpace.clock_v1() t";
    sqlx::raw_sql(silent)
        .execute(&mut connection)
        .await
        .unwrap();
    soon("the silent replicas", async {
        while !shows(&replica, "outpace_rate_reserved_ratio", 0.12).await {}
    })
    .await;
    let told = status(&replica).await;
    let named = told["fleet"]["silent"].as_array().unwrap().len();
    assert_eq!(named, outpace::bounds::PEERS_REPORTED);
    assert_eq!(count(&replica, is_silence), named);
    let listed = json(&replica, "/v1/replicas").await;
    assert_eq!(listed["replicas"].as_array().unwrap().len(), 121);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_what_waits_at_another_replica_counts() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let limits = "{ name: fleet, rate: \"1000/1s\" }, { name: own, rate: \"1/20s\", burst: 1, key: \"header:x-key\" }";
    let text = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\ntargets:\n  - {{ name: api, hosts: [plain.test], max_wait: 1h, limits: [{limits}] }}\n",
        postgres.url()
    );
    let replicas = [
        Program::before(&origin, &text).await,
        Program::before(&origin, &text).await,
    ];
    let explained = |replica: usize, key: &'static str| {
        let path = format!("/v1/explain?url=http://plain.test/&header=x-key:%20{key}");
        let program = &replicas[replica];
        async move {
            let told = json(program, &path).await;
            let free = told["limits"][1]["free_now"].as_u64().unwrap();
            (
                free,
                told["next_in_s"].as_f64().unwrap(),
                told["verdict"].to_string(),
            )
        }
    };
    assert_eq!(explained(0, "a").await.0, 1);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let address = replicas[1].listen;
        requests.spawn(async move {
            let mut client = Client::to(address, crate::harness::Proto::Http1).await;
            let request = client
                .request("GET", "http://plain.test/")
                .header("x-key", "a");
            client
                .try_ask(request.body(http_body_util::Full::default()).unwrap())
                .await
        });
    }
    origin.arrivals.reached(1).await;
    soon("the waiting requests", async {
        while replicas[1].metric("outpace_waiting{target=\"api\"}").await < 9.0 {}
    })
    .await;
    // This replica has sent nothing. Fair shares let its first request be the second one from now.
    soon("the requests of the other replica", async {
        while explained(0, "a").await.1 < 20.0 {}
    })
    .await;
    let (free, wait, verdict) = explained(0, "a").await;
    assert_eq!(free, 0, "{verdict}");
    assert!((20.0..=40.0).contains(&wait), "{verdict}");
    let (_, behind, verdict) = explained(1, "a").await;
    assert!((160.0..=200.0).contains(&behind), "{verdict}");
    assert_eq!(explained(0, "b").await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_without_a_client_and_without_a_running_outpace() {
    let origin = Origin::ok().await;
    let clients = "clients: [{ name: app, token: s3cret-s3cret-s3cret }]\n";
    let target =
        "targets: [{ name: api, hosts: [plain.test], limits: [{ rate: \"1/1h\", burst: 1 }] }]\n";
    let program = Program::before(&origin, &format!("{clients}{target}")).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 407);
    for url in [
        "http://plain.test/",
        "http://unknown.test/",
        "http://plain.test:81/",
    ] {
        let told = printed(&program, &["explain", url]).await;
        assert!(told.contains("is refused (407, by a route 401)"), "{told}");
        let told = printed(&program, &["explain", url, "--client", "app"]).await;
        assert!(!told.contains("407"), "{told}");
    }
    let told = printed(
        &program,
        &["explain", "http://plain.test/", "--client", "app"],
    )
    .await;
    assert!(told.contains("leaves at once"), "{told}");
    // Without a running outpace the file in the current directory is enough.
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{clients}{target}data_dir: {}/data\n", dir.path().display());
    std::fs::write(dir.path().join("outpace.yaml"), text).unwrap();
    for (arguments, says) in [
        (
            &["--client", "app"][..],
            "outpace is not running: this is what the file says",
        ),
        (&[], "is refused (407, by a route 401)"),
        (
            &["-c", "outpace.yaml", "--client", "app"],
            "outpace is not running",
        ),
    ] {
        let mut command = crate::harness::program();
        command
            .current_dir(dir.path())
            .args(["explain", "http://plain.test/"]);
        let output = command.args(arguments).output().await.unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && told.contains(says), "{told}");
        assert!(told.contains("1/1h with burst 1"), "{told}");
    }
}
