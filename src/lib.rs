//! outpace is an egress proxy that paces the requests that applications send to external APIs.
//!
//! The map lists the modules by floor, from the ground up. A folder uses only its own files and
//! lower floors, and `tests/tidy.rs` checks this rule.
//!
//! - floor 0: [`clock`], [`random`], [`shutdown`], [`sync`] (locks that ignore poisoning),
//!   [`sockets`] (options of TCP sockets), [`files`] (private files), [`bounds`], [`units`],
//!   [`telemetry`], [`throttle`] (failed authentications).
//! - floor 1: [`json`] (the streaming reader of JSON values), [`policy`] (the operator's
//!   configuration), [`semantics`] (the rules of the RFCs), [`schedule`] (the instants at which
//!   requests may leave), [`signals`] (the meaning of an origin's response for limits). All five are
//!   pure.
//! - floor 2: [`db`] (the Postgres database), [`ledger`] (where schedules live).
//! - floor 3: [`pace`] (the queues of this replica), [`origin`] (connections to origins),
//!   [`intercept`] (the CA and its leaves), [`spool`] (stored requests), [`tunnel`] (the blind
//!   relay).
//! - floor 4: [`exchange`] (one request from start to finish, best read from its `mod.rs`),
//!   [`inbound`] (byte streams of accepted connections).
//! - floor 5: [`delivery`] (sends the items of the spool), [`api`] (calls from applications),
//!   [`serve`] (listeners and ingress modes), [`admin`] (calls from operators), [`config`] (YAML →
//!   policy).
//! - floor 6: [`app`] (build, wire, run, drain), [`cli`].

pub mod bounds;
pub mod clock;
pub mod connections;
pub mod files;
pub mod random;
pub mod shares;
pub mod shutdown;
pub mod sockets;
pub mod sync;
pub mod telemetry;
pub mod throttle;
pub mod units;

pub mod json;
pub mod policy;
pub mod schedule;
pub mod semantics;
pub mod signals;

pub mod db;
pub mod ledger;

pub mod intercept;
pub mod origin;
pub mod pace;
pub mod spool;
pub mod tunnel;

pub mod exchange;
pub mod inbound;

pub mod admin;
pub mod api;
pub mod config;
pub mod delivery;
pub mod serve;

pub mod app;
pub mod cli;
