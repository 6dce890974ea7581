//! Black-box tests with the real program as a process, real sockets, real TLS and real clients. All
//! tests share one binary to keep the link time low. A test waits for events, not for a fixed time.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::too_many_lines,
    clippy::string_slice,
    clippy::excessive_nesting,
    reason = "tests measure real time, start their own tasks, and fail by panicking"
)]

mod harness;

#[path = "../fakes/mod.rs"]
mod fakes;

mod addresses;
mod admin_floods;
mod api;
mod blocks;
mod bounds;
mod browser;
mod buffers;
mod canary;
mod certificates;
mod checked;
mod checklist;
mod chromium;
mod clients;
mod clients_sdk;
mod conformance;
mod connections;
mod credentials;
mod crowds;
mod databases;
mod deliveries;
mod delivery_log;
mod deploy;
mod descriptors;
mod doctor;
mod doors;
mod endings;
mod explained;
mod faults;
mod files;
mod first_steps;
mod fleet;
mod framing;
mod gapless;
mod heads;
mod held;
mod hostile;
mod inputs;
mod intercept;
mod isolation;
mod key_parts;
mod keys;
mod ledger;
mod lifecycle;
mod limits_changed;
mod listener_tls;
mod llm;
mod logging;
mod memory;
mod metrics;
mod occupied;
mod openapi;
mod operators;
mod origin_auth;
mod outage;
mod outages;
mod output;
mod overflow;
mod pacing;
mod path_routes;
mod pause_on;
mod pins;
mod pipes;
mod poison;
mod refusals;
mod reload;
mod repeats;
mod replicas;
mod reports;
mod request_json;
mod restarts;
mod retry;
mod retry_after;
mod revocation;
mod rotation;
mod run;
mod run_commands;
mod run_honest;
mod run_roots;
mod scopes;
mod secrets;
mod seen_buffers;
mod settlements;
mod shared;
mod shares;
mod signals;
mod slow_origins;
mod soak;
mod space;
mod spool;
mod spool_metrics;
mod spool_shares;
mod store;
mod stored;
mod stored_requests;
mod supervised;
mod tenants;
mod tokens;
mod unblock;
mod usage;
mod ways;
