//! outpace: an egress proxy that paces what you send to other people's APIs.
//!
//! The map, from the ground up. A folder uses only what stands below it; `tests/tidy.rs` checks it.
//!
//! - floor 0: [`clock`], [`random`], [`shutdown`], [`bounds`], [`units`], [`telemetry`]
//! - floor 1: [`policy`] (what the operator wants), [`semantics`] (what the RFCs say), [`schedule`]
//!   (when a request may leave); all pure
//! - floor 2: [`db`] (the Postgres database), [`ledger`] (where schedules live)
//! - floor 3: [`pace`] (who leaves when), [`origin`] (connections outward), [`intercept`] (our CA and
//!   its leaves), [`spool`] (what is kept on disk), [`tunnel`] (blind relay)
//! - floor 4: [`exchange`] (one request from start to finish: read its `mod.rs` first)
//! - floor 5: [`delivery`] (sends what the spool keeps), [`api`] (what apps ask of us), [`serve`] (ways in), [`admin`] (operators), [`config`] (YAML → policy)
//! - floor 6: [`app`] (build, wire, run, drain), [`cli`]

pub mod bounds;
pub mod clock;
pub mod random;
pub mod shutdown;
pub mod sync;
pub mod telemetry;
pub mod units;

pub mod policy;
pub mod schedule;
pub mod semantics;

pub mod db;
pub mod ledger;

pub mod intercept;
pub mod origin;
pub mod pace;
pub mod spool;
pub mod tunnel;

pub mod exchange;

pub mod admin;
pub mod api;
pub mod config;
pub mod delivery;
pub mod serve;

pub mod app;
pub mod cli;
