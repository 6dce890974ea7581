//! `outpace check` prints everything that a file comes to, warns of what will not work as it looks, and
//! shows no secret.

use crate::run::{ended, outpace};

const WHOLE: &str = r#"
listen: 0.0.0.0:18080
admin: { listen: "0.0.0.0:18081", tokens: [{ role: read, token: admin-secret-number-one }, { role: operate, token: admin-secret-number-two }] }
public_url: "http://outpace.internal:18080"
data_dir: ./state
connect_ports: [8443]
routes:
  - { listen: "127.0.0.1:19001", to: "https://api.stripe.com" }
  - { host: stripe.internal, to: "https://api.stripe.com" }
clients:
  - { name: billing, group: backend, token: client-secret-number-one, scopes: [push], share: 50%, spool: { max: 64MiB, items: 100 } }
  - { name: mail, token: client-secret-number-two }
egress:
  allow: ["10.0.0.0/8"]
  resolve: { "intern.test": "10.0.0.7:8443" }
  upstream_proxy: "http://user:proxy-secret@proxy.corp:3128"
  no_proxy: [intern.test]
ledger: { postgres: { url: "postgres://u:database-secret@db.corp/paces?sslmode=require", migrate: false }, on_outage: closed, share_for: 30s }
spool: { store: postgres, key: "0123456789abcdef0123456789abcdef", max: 2GiB }
buffers:
  - { name: orders, url: "https://api.stripe.com/v1?key=url-secret", headers: { authorization: "Bearer header-secret" }, rate_limit: 5, pause_on: [401], clients: [billing] }
unmatched: refuse
targets:
  - name: stripe
    hosts: [api.stripe.com]
    set_headers: { authorization: "Bearer field-secret" }
    max_wait: 10m
    limits:
      - { name: requests, rate: "500/1m" }
      - { name: burst, rate: "10/1s", burst: 20, match: { path: "/v1/charges*" } }
      - { name: each, rate: "5/1s", key: client, algorithm: sliding_window }
      - { name: tokens, rate: "30000/1m", cost: { estimate: "json:/max_tokens", settle: "json:/usage/total_tokens" } }
      - { name: parallel, concurrent: 4 }
    lanes: [{ name: live, weight: 3, reserve: 20%, match: { header: "x-lane: live" } }, { name: rest }]
  - { name: watched, hosts: ["*.watched.test"], mode: observe, limits: [{ rate: "1/1s" }], retry: { attempts: 1 } }
  - { name: blind, hosts: [blind.test], tls: tunnel }
  - { name: local, hosts: ["localhost:19080", "10.1.2.3", "api.default.svc"], limits: [{ rate: "9/1s", key: "header:x-team" }] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_check_prints_all_parts_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("outpace.yaml"), WHOLE).unwrap();
    let (code, out, err) = ended(outpace(dir.path()).arg("check")).await;
    assert_eq!(code, Some(0), "{out}{err}");
    for line in [
        "proxy: 0.0.0.0:18080 (HTTP), 2 clients with tokens",
        "admin: 0.0.0.0:18081 (HTTP), operators have tokens for read, operate",
        "public URL: http://outpace.internal:18080",
        "route: 127.0.0.1:19001 (HTTP) to https://api.stripe.com",
        "route: host stripe.internal to https://api.stripe.com",
        "further ports that clients may reach: 8443",
        "client billing of group backend: push; at most 50% of shared bounds; at most 64MiB of the spool; at most 100 items",
        "client mail: push, read, manage",
        "ledger: Postgres at db.corp:5432/paces for all replicas; in an outage continue at the last share for 30s, then stop sending; `outpace migrate` updates the schema",
        "spool: in the ledger's database, at most 2GiB",
        "buffer orders: POST https://api.stripe.com/v1, at most 5 per second, pauses on [401], for billing",
        "private addresses that may be dialled: 10.0.0.0/8",
        "fixed address: intern.test is 10.0.0.7:8443",
        "parent proxy: proxy.corp:3128, except for intern.test",
        "target stripe: api.stripe.com",
        "  limit requests: 500 requests per 1 min, spread evenly (at most 5 at once)",
        "  limit burst: 10 requests per 1 s, with a burst of 20 (up to 30 within 1s), for requests with",
        "  limit each: 5 requests in any window of 1 s, per client",
        "  limit tokens: 30000 units per 1 min",
        "  limit parallel: 4 requests at the same time",
        "  lane live: weight 3, reserve 20%",
        "  sets the fields authorization of each request",
        "  retries: up to",
        "  mode: observe, so no request is held or refused",
        "  retries: none",
        "  tls: tunnel, so connections are paced instead of requests",
        "  no limits: requests are not paced",
        "per header:x-team",
        "other hosts: refused",
    ] {
        assert!(out.contains(line), "{line}:\n{out}");
    }
    for warning in [
        "`listen` 0.0.0.0:18080 has no `tls`, so the tokens of clients cross the network in clear",
        "`admin.listen` 0.0.0.0:18081 has no `tls`, so the tokens of operators",
        "target stripe: max_wait 10m is longer than most clients wait",
        "target local: many clients never use a proxy for localhost",
        "target local: `outpace env` excepts 10.0.0.0/8",
        "target local: `outpace env` excepts .svc",
        "a stream states `usage` only if",
    ] {
        assert!(
            out.lines()
                .any(|line| line.starts_with("warning: ") && line.contains(warning)),
            "{warning}:\n{out}"
        );
    }
    assert!(
        !out.contains("secret") && !err.contains("secret"),
        "{out}{err}"
    );
    // An observed target holds nothing, so it has no maximum wait.
    let watched = out
        .split("target watched")
        .nth(1)
        .unwrap()
        .split("target ")
        .next()
        .unwrap();
    assert!(!watched.contains("maximum wait"), "{watched}");
    // The defaults are as short as they are.
    std::fs::write(dir.path().join("outpace.yaml"), "listen: 127.0.0.1:8080\n").unwrap();
    let (code, out, _) = ended(outpace(dir.path()).arg("check")).await;
    assert_eq!(code, Some(0));
    for line in [
        "clients need no credentials",
        "ledger: in memory",
        "spool: none",
        "other hosts: passed through unpaced",
    ] {
        assert!(out.contains(line), "{line}:\n{out}");
    }
    assert!(!out.contains("warning"), "{out}");
}
