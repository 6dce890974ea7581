//! Buffers in Postgres: every replica accepts items, and one replica at a time sends them. No item
//! is lost or reordered when a replica dies.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use crate::harness::buffers::{Oracle, call, call_with, made, until};
use crate::harness::{Client, Origin, Postgres, Program, Proto, reply, soon};

fn config(postgres: &Postgres) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, lease: 1s, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    )
}

/// Record of an origin: request bodies, flagged possible duplicates, and the number of concurrent
/// requests.
struct Noted {
    bodies: std::sync::Mutex<Vec<String>>,
    flagged: AtomicUsize,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

async fn noting(takes: Duration) -> (Origin, Arc<Noted>) {
    let noted = Arc::new(Noted {
        bodies: Default::default(),
        flagged: AtomicUsize::new(0),
        at_once: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    });
    let ours = Arc::clone(&noted);
    let origin = Origin::with(move |_, request| {
        let noted = Arc::clone(&ours);
        async move {
            let now = noted.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            noted.most.fetch_max(now, Ordering::SeqCst);
            if request.headers().contains_key("outpace-maybe-duplicate") {
                noted.flagged.fetch_add(1, Ordering::SeqCst);
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            noted.bodies.lock().unwrap().push(body);
            let _left = Left(&noted);
            tokio::time::sleep(takes).await;
            reply(200, "taken")
        }
    })
    .start()
    .await;
    (origin, noted)
}

/// Guard that counts a request as ended when it is dropped, also if the client disconnected.
struct Left<'a>(&'a Noted);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until one of `programs` holds the lease of the only buffer, and returns its index.
async fn draining(postgres: &Postgres, programs: &[Program]) -> usize {
    let numbers: Vec<i64> = programs
        .iter()
        .map(|program| {
            let text = std::fs::read_to_string(program.path("data/instance-1")).unwrap();
            text.trim().parse().unwrap()
        })
        .collect();
    let mut connection = postgres.connect().await.unwrap();
    loop {
        let owner: Option<i64> = sqlx::query_scalar(
            "select l.owner from outpace.lease l join outpace.drainer d on d.id = l.owner \
             where d.until > clock_timestamp()",
        )
        .fetch_optional(&mut connection)
        .await
        .unwrap();
        if let Some(at) = owner.and_then(|owner| numbers.iter().position(|n| *n == owner)) {
            return at;
        }
        tokio::task::yield_now().await;
    }
}

/// Starts a producer that pushes numbers through all replicas in turn until `stop` is set. Returns
/// the acknowledged bodies in their order.
fn producer(
    programs: &[Program],
    stop: &Arc<AtomicBool>,
    number: &Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<Vec<String>> {
    let addresses: Vec<_> = programs.iter().map(|program| program.listen).collect();
    let (stop, number) = (Arc::clone(stop), Arc::clone(number));
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut clients = HashMap::new();
        while !stop.load(Ordering::Relaxed) {
            let next = number.fetch_add(1, Ordering::Relaxed);
            let (at, body) = (addresses[next % addresses.len()], next.to_string());
            let request = http::Request::post("/buffers/b/items")
                .header("content-type", "application/json")
                .header("host", format!("localhost:{}", at.port()))
                .body(Full::new(json!({ "body": body }).to_string().into()));
            let Some(client) = (match clients.remove(&at) {
                Some(client) => Some(client),
                None => Client::try_to(at, Proto::Http1).await,
            }) else {
                continue;
            };
            let mut client: Client = client;
            // A push that the kill interrupts may or may not be stored.
            if let Some(response) = client.try_ask(request.unwrap()).await {
                if response.status() == 201 {
                    acknowledged.push(body);
                }
                clients.insert(at, client);
            }
        }
        acknowledged
    })
}

async fn total(program: &Program) -> u64 {
    let (_, buffer) = call(program, "GET", "/buffers/b", "").await;
    let states = buffer["items"].as_object().unwrap();
    states.values().filter_map(Value::as_u64).sum()
}

async fn flagged(program: &Program) -> usize {
    let path = "/attempts?outcome=interrupted&limit=1000";
    let (_, flagged) = call(program, "GET", path, "").await;
    flagged["attempts"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_the_draining_replica_is_killed_ten_times_and_every_item_arrives_in_order() {
    const KILLS: usize = 10;
    let (origin, noted) = noting(Duration::from_millis(5)).await;
    let postgres = Postgres::start().await;
    let mut programs = Vec::new();
    for _ in 0..3 {
        programs.push(Program::before(&origin, &config(&postgres)).await);
    }
    made(
        &programs[0],
        &json!({ "max_retries": 100, "backoff": [0.01] }),
    )
    .await;
    let number = Arc::new(AtomicUsize::new(0));
    let mut oracle = Oracle::default();
    for kill in 0..KILLS {
        let stop = Arc::new(AtomicBool::new(false));
        let producing = producer(&programs, &stop, &number);
        let arrived = origin.arrivals.count();
        // The kill comes at a different moment in each round, while items are claimed, sent or
        // recorded.
        origin.arrivals.reached(arrived + 5 + kill).await;
        let victim = draining(&postgres, &programs).await;
        programs[victim].signal("KILL");
        stop.store(true, Ordering::Relaxed);
        oracle.acknowledged.extend(producing.await.unwrap());
        let killed = programs.remove(victim);
        // The killed replica restarts only after another replica has taken over.
        draining(&postgres, &programs).await;
        programs.push(killed.again().await);
    }
    let kept = total(&programs[0]).await;
    until(&programs[0], "delivered", kept).await;
    oracle.arrived.clone_from(&noted.bodies.lock().unwrap());
    let twice = oracle.check();
    let flagged = flagged(&programs[1]).await;
    println!(
        "killed {KILLS} times: {} acknowledged, {} arrived, {twice} twice, {flagged} flagged",
        oracle.acknowledged.len(),
        oracle.arrived.len(),
    );
    assert!(
        twice <= flagged,
        "{twice} arrived twice, but only {flagged} were flagged"
    );
    let told = noted.flagged.load(Ordering::SeqCst);
    assert!(twice <= told, "{twice} arrived twice, {told} were marked");
    assert!(oracle.acknowledged.len() > KILLS * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_one_is_in_flight_whoever_pushes_and_while_the_database_restarts() {
    let (origin, noted) = noting(Duration::from_millis(2)).await;
    let mut postgres = Postgres::start().await;
    let programs = [
        Program::before(&origin, &config(&postgres)).await,
        Program::before(&origin, &config(&postgres)).await,
    ];
    made(
        &programs[0],
        &json!({ "max_retries": 100, "backoff": [0.01] }),
    )
    .await;
    let (stop, number) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let producing = producer(&programs, &stop, &number);
    for _ in 0..3 {
        origin.arrivals.reached(origin.arrivals.count() + 20).await;
        // The crash may interrupt any commit that is in progress.
        postgres.crash();
        postgres.run().await;
    }
    origin.arrivals.reached(origin.arrivals.count() + 20).await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = producing.await.unwrap();
    let kept = total(&programs[1]).await;
    until(&programs[1], "delivered", kept).await;
    let oracle = Oracle {
        acknowledged,
        arrived: noted.bodies.lock().unwrap().clone(),
    };
    let (twice, flagged) = (oracle.check(), flagged(&programs[0]).await);
    println!(
        "restarted 3 times: {} acknowledged, {} arrived, {twice} twice, {flagged} flagged",
        oracle.acknowledged.len(),
        oracle.arrived.len()
    );
    assert!(
        twice <= flagged,
        "{twice} arrived twice, but only {flagged} were flagged"
    );
    assert_eq!(noted.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_replica_that_stood_still_sends_nothing_more_under_its_old_lease() {
    let (origin, noted) = noting(Duration::from_millis(1)).await;
    let postgres = Postgres::start().await;
    let mut programs = vec![
        Program::before(&origin, &config(&postgres)).await,
        Program::before(&origin, &config(&postgres)).await,
    ];
    made(
        &programs[0],
        &json!({ "max_retries": 100, "backoff": [0.01] }),
    )
    .await;
    let batch: Vec<_> = (0..600).map(|n| json!({ "body": n.to_string() })).collect();
    call(&programs[0], "POST", "/buffers/b/batch", Value::from(batch)).await;
    for _ in 0..3 {
        origin.arrivals.reached(origin.arrivals.count() + 10).await;
        let frozen = draining(&postgres, &programs).await;
        programs[frozen].signal("STOP");
        let frozen = programs.remove(frozen);
        draining(&postgres, &programs).await;
        origin.arrivals.reached(origin.arrivals.count() + 10).await;
        frozen.signal("CONT");
        programs.push(frozen);
    }
    until(&programs[0], "delivered", 600).await;
    let oracle = Oracle {
        acknowledged: (0..600).map(|n| n.to_string()).collect(),
        arrived: noted.bodies.lock().unwrap().clone(),
    };
    let (twice, flagged) = (oracle.check(), flagged(&programs[0]).await);
    println!("frozen 3 times: {twice} twice, {flagged} flagged");
    assert!(
        twice <= flagged,
        "{twice} arrived twice, but only {flagged} were flagged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_is_told_the_others_know() {
    let (origin, noted) = noting(Duration::ZERO).await;
    let postgres = Postgres::start().await;
    let programs = [
        Program::before(&origin, &config(&postgres)).await,
        Program::before(&origin, &config(&postgres)).await,
    ];
    made(
        &programs[0],
        &json!({ "headers": { "authorization": "Bearer x" } }),
    )
    .await;
    let holder = draining(&postgres, &programs).await;
    let (holder, other) = (&programs[holder], &programs[1 - holder]);
    // The replica without the lease can pause the buffer, and the lease holder obeys.
    call(other, "POST", "/buffers/b/pause", "{}").await;
    let (status, item) = call(other, "POST", "/buffers/b/items", json!({ "body": "one" })).await;
    assert_eq!(status, 201, "{item}");
    let id = item["id"].as_str().unwrap().to_owned();
    let (_, second) = call(holder, "POST", "/buffers/b/items", json!({ "body": "two" })).await;
    let (_, stats) = call(holder, "GET", "/buffers/b/stats", "").await;
    assert_eq!(stats["head"]["id"].as_str(), Some(&*id), "{stats}");
    assert_eq!(stats["head_waits_for"], "paused", "{stats}");
    let path = format!("/items/{id}/cancel");
    assert_eq!(call(other, "POST", &path, "{}").await.0, 200);
    assert_eq!(call(holder, "POST", &path, "{}").await.0, 409);
    call(other, "POST", "/buffers/b/resume", "{}").await;
    // Every replica returns the response, although only one of them sent the request.
    let path = format!("/items/{}/response", second["id"].as_str().unwrap());
    let wait = [("prefer", "wait=30")];
    let (status, _) = call_with(other, "GET", &path, "", &wait).await;
    assert_eq!(
        (status, &**noted.bodies.lock().unwrap()),
        (200, &["two".to_owned()][..])
    );
    // An idempotency key belongs to one push across all replicas.
    let key = [("idempotency-key", "k")];
    let body = json!({ "body": "three" });
    let first = call_with(holder, "POST", "/buffers/b/items", &body, &key).await;
    let again = call_with(other, "POST", "/buffers/b/items", &body, &key).await;
    assert_eq!((first.0, again.0), (201, 200));
    assert_eq!(first.1["id"], again.1["id"]);
    let differs = json!({ "body": "four" });
    let refused = call_with(other, "POST", "/buffers/b/items", &differs, &key).await;
    assert_eq!(refused.0, 422);
    assert_eq!(
        call(other, "DELETE", "/buffers/b?force=true", "").await.0,
        200
    );
    assert_eq!(call(holder, "GET", "/buffers/b", "").await.0, 404);
    assert_eq!(call(holder, "GET", &path, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_later_is_waited_for() {
    let (origin, noted) = noting(Duration::ZERO).await;
    let mut postgres = Postgres::start().await;
    postgres.crash();
    let declared = "buffers: [{ name: b, url: \"http://plain.test/in\" }]\n";
    let program = Program::before(&origin, &format!("{}{declared}", config(&postgres))).await;
    let (status, problem) =
        call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    assert_eq!(status, 503, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("Connection refused"), "{detail}");
    assert_eq!(program.admin_get("/readyz").await.0, 503);
    postgres.run().await;
    let ready = async { while program.admin_get("/readyz").await.0 != 200 {} };
    soon("readiness", ready).await;
    let (status, pushed) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    assert_eq!(status, 201, "{pushed}");
    until(&program, "delivered", 1).await;
    assert_eq!(*noted.bodies.lock().unwrap(), ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_full_disk_of_the_database_is_called_a_full_disk() {
    let (origin, noted) = noting(Duration::ZERO).await;
    let postgres = Postgres::start().await;
    let program = Program::before(&origin, &config(&postgres)).await;
    made(&program, &json!({})).await;
    let mut connection = postgres.connect().await.unwrap();
    // The trigger fails like a statement on a full disk (SQLSTATE 53100).
    let full = "create function full_disk() returns trigger language plpgsql as \
                $$ begin raise exception 'No space left on device' using errcode = '53100'; end $$; \
                create trigger full_disk before insert on outpace.item execute function full_disk()";
    sqlx::raw_sql(full).execute(&mut connection).await.unwrap();
    let item = json!({ "body": "x" });
    let (status, told) = call(&program, "POST", "/buffers/b/items", &item).await;
    assert_eq!((status, &told["reason"]), (507, &"spool-full".into()));
    let expected = "the disk of the database is full: No space left on device; free space on it";
    assert_eq!(told["detail"], expected);
    let freed = "drop trigger full_disk on outpace.item";
    sqlx::raw_sql(freed).execute(&mut connection).await.unwrap();
    let (status, _) = call(&program, "POST", "/buffers/b/items", &item).await;
    assert_eq!(status, 201);
    until(&program, "delivered", 1).await;
    assert_eq!(*noted.bodies.lock().unwrap(), ["x"]);
}
