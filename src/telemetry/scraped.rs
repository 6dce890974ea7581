//! Figures that are read for each scrape, because their sources know them at any time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::blocked::{BlockedScopes, FloatGauge, ScopeLabels, UntilLabels};
use super::labels::{BuildLabels, KindLabels, LaneLabels, ModeLabel, TargetLabel};
use super::spool::{BufferLabel, BufferStateLabels, SpoolFigures};
use super::table::{Part, metrics};

metrics! { Figures, SCRAPED:
    limit_configured: Family<KindLabels, FloatGauge> = Family::default(),
        Process, "outpace_limit_configured", "target, limit, kind (rate, concurrent)",
        "Units per second of a rate, or requests at the same time, that the policy allows";
    limit_in_force: Family<KindLabels, FloatGauge> = Family::default(),
        Process, "outpace_limit_in_force", "target, limit, kind (rate, concurrent)",
        "The same as outpace_limit_configured, after pins and the fallback share of this replica";
    blocked_scopes: Family<ScopeLabels, Gauge> = Family::default(),
        Process, "outpace_blocked_scopes", "target, limit (or - for none), scope (target, limit, key, credential)",
        "Scopes that an origin blocks now, absent for none";
    blocked_until: Family<UntilLabels, FloatGauge> = Family::default(),
        Process, "outpace_blocked_until_seconds", "target, limit (or - for none), source (retry-after, reset, body, other, none), by (outpace, origin)",
        "Unix time in seconds of the last next attempt of such scopes (outpace), and of the last end that the origin asked for";
    oldest_wait: Family<TargetLabel, FloatGauge> = Family::default(),
        Process, "outpace_oldest_wait_seconds", "target",
        "Seconds since the beginning of the exchange that waits longest, or 0";
    lane_waiting: Family<LaneLabels, FloatGauge> = Family::default(),
        Process, "outpace_lane_waiting", "target, lane (- without lanes)",
        "Requests that are waiting for a slot now, by lane";
    ready: Gauge = Gauge::default(),
        Process, "outpace_ready", "",
        "1 if /readyz answers 200, 0 if not";
    config_broken: FloatGauge = FloatGauge::default(),
        Process, "outpace_config_broken_seconds", "",
        "Seconds for which the configuration file has been broken, or 0";
    build: Family<BuildLabels, Gauge> = Family::default(),
        Process, "outpace_build_info", "version",
        "Constant 1, with the version of this program";
    ledger_mode: Family<ModeLabel, Gauge> = Family::default(),
        Ledger, "outpace_ledger_mode", "mode (connected, holding, fallback, unlimited)",
        "1 for the present source of bookings, 0 for the others";
    ledger_replicas: Gauge = Gauge::default(),
        Ledger, "outpace_ledger_replicas", "",
        "Replicas that share the ledger, by the last heartbeat";
    peers_silent: Gauge = Gauge::default(),
        Ledger, "outpace_peers_silent", "",
        "Other replicas without a heartbeat whose part of each rate is still reserved";
    rate_reserved: FloatGauge = FloatGauge::default(),
        Ledger, "outpace_rate_reserved_ratio", "",
        "Part of each rate that is reserved for silent replicas, from 0 to 1";
    ledger_share: FloatGauge = FloatGauge::default(),
        Ledger, "outpace_ledger_fallback_share_ratio", "",
        "Part of each limit that is reserved for this replica in an outage, from 0 to 1";
    ledger_offset: FloatGauge = FloatGauge::default(),
        Ledger, "outpace_ledger_clock_offset_seconds", "",
        "Seconds by which the clock of this process is ahead of the ledger's clock";
    spool_free: FloatGauge = FloatGauge::default(),
        Spool, "outpace_spool_free_bytes", "",
        "Bytes that pushes may still take, by spool.max and by spool.min_free of the file system";
    spool_leases: Gauge = Gauge::default(),
        Spool, "outpace_spool_leases", "",
        "Buffers whose items this replica may send";
    spool_items: Family<BufferStateLabels, Gauge> = Family::default(),
        Spool, "outpace_spool_items", "buffer (- for further ones), state (see spool.md)",
        "Items of a buffer by their state, absent while the store cannot be read";
    spool_oldest: Family<BufferLabel, FloatGauge> = Family::default(),
        Spool, "outpace_spool_oldest_item_seconds", "buffer (- for further ones)",
        "Seconds since the push of the first item that is still to be sent, or 0";
    spool_paused: Family<BufferLabel, Gauge> = Family::default(),
        Spool, "outpace_spool_paused_buffers", "buffer (- for further ones)",
        "1 if the buffer is paused, 0 if not, and the number of such buffers for -";
    cpu: Counter<f64, AtomicU64> = Counter::default(),
        Process, "process_cpu_seconds_total", "",
        "Seconds of CPU time that the process has used";
    resident: Gauge = Gauge::default(),
        Process, "process_resident_memory_bytes", "",
        "Bytes of memory that the process occupies";
    virtual_memory: Gauge = Gauge::default(),
        Process, "process_virtual_memory_bytes", "",
        "Bytes of address space that the process has reserved";
    open_files: Gauge = Gauge::default(),
        Process, "process_open_fds", "",
        "File descriptors that are open";
    most_files: Gauge = Gauge::default(),
        Process, "process_max_fds", "",
        "File descriptors that may be open at the same time";
    threads: Gauge = Gauge::default(),
        Process, "process_threads", "",
        "Threads of the process";
    start_time: FloatGauge = FloatGauge::default(),
        Process, "process_start_time_seconds", "",
        "Unix time in seconds at which the process started";
}

/// FloatGauges of one limit.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitFigures {
    /// Name of the limit.
    pub name: Arc<str>,
    /// True for a limit on requests at the same time.
    pub is_concurrent: bool,
    /// Units per second or requests at the same time by the policy.
    pub configured: f64,
    /// The same numbers as they are in force on this replica.
    pub in_force: f64,
}

/// Waiting requests of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueFigures {
    /// Time since the beginning of the exchange that waits longest.
    pub oldest: Duration,
    /// FloatGauge of waiting requests by the name of their lane.
    pub lanes: Vec<(Arc<str>, u64)>,
}

/// State of a shared ledger as this replica knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LedgerFigures {
    /// Source of bookings: `connected`, `holding`, `fallback` or `unlimited`.
    pub mode: &'static str,
    /// FloatGauge of replicas by the last heartbeat.
    pub replicas: i64,
    /// Number of silent replicas with a reserved share.
    pub silent: i64,
    /// Part of each rate that is reserved for silent replicas, from 0 to 1.
    pub reserved: f64,
    /// Fallback share of this replica, from 0 to 1.
    pub share: f64,
    /// Seconds by which this process's clock is ahead of the ledger's clock.
    pub clock_offset: f64,
}

const MODES: [&str; 4] = ["connected", "holding", "fallback", "unlimited"];

/// Figures of one scrape.
#[derive(Debug, Default)]
pub struct Scrape(Figures);

impl Scrape {
    /// Creates the figures of the build and of the process. Those of the process are absent on a
    /// system without `/proc`.
    pub fn new() -> Self {
        let scrape = Self::default();
        let version = env!("CARGO_PKG_VERSION");
        scrape
            .0
            .build
            .get_or_create(&BuildLabels { version })
            .set(1);
        // Without `/proc` the figures stay 0.
        let _ = scrape.read_process();
        scrape
    }

    fn read_process(&self) -> procfs::ProcResult<()> {
        let figures = &self.0;
        let own = procfs::process::Process::myself()?;
        let stat = own.stat()?;
        let ticks = procfs::ticks_per_second().max(1) as f64;
        figures.cpu.inc_by((stat.utime + stat.stime) as f64 / ticks);
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        figures
            .resident
            .set(signed(stat.rss.saturating_mul(procfs::page_size())));
        figures.virtual_memory.set(signed(stat.vsize));
        figures.threads.set(stat.num_threads);
        figures.open_files.set(signed(own.fd_count()? as u64));
        let most = own.limits()?.max_open_files.soft_limit;
        figures.most_files.set(match most {
            procfs::process::LimitValue::Value(most) => signed(most),
            procfs::process::LimitValue::Unlimited => i64::MAX,
        });
        let booted = procfs::boot_time_secs()? as f64;
        figures
            .start_time
            .set(booted + stat.starttime as f64 / ticks);
        Ok(())
    }

    /// Sets whether `/readyz` answers 200.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.set(i64::from(ready));
    }

    /// Sets the time for which the configuration file has been broken.
    pub fn set_config_broken(&self, time: Duration) {
        self.0.config_broken.set(time.as_secs_f64());
    }

    /// Sets the numbers of one limit of a target.
    pub fn set_limit(&self, target: &Arc<str>, limit: &LimitFigures) {
        let labels = KindLabels {
            target: Arc::clone(target),
            limit: Arc::clone(&limit.name),
            kind: if limit.is_concurrent {
                "concurrent"
            } else {
                "rate"
            },
        };
        let figures = &self.0;
        figures
            .limit_configured
            .get_or_create(&labels)
            .set(limit.configured);
        figures
            .limit_in_force
            .get_or_create(&labels)
            .set(limit.in_force);
    }

    /// Sets the scopes that origins block.
    pub fn set_blocked(&self, blocked: &BlockedScopes) {
        blocked.write(&self.0.blocked_scopes, &self.0.blocked_until);
    }

    /// Sets the waiting requests of one target.
    pub fn set_queue(&self, target: &Arc<str>, queue: &QueueFigures) {
        let label = TargetLabel {
            target: Arc::clone(target),
        };
        let oldest = queue.oldest.as_secs_f64();
        self.0.oldest_wait.get_or_create(&label).set(oldest);
        for (lane, waiting) in &queue.lanes {
            let labels = LaneLabels {
                target: Arc::clone(target),
                lane: Arc::clone(lane),
            };
            self.0
                .lane_waiting
                .get_or_create(&labels)
                .set(*waiting as f64);
        }
    }

    /// Sets the state of the shared ledger.
    pub fn set_ledger(&self, ledger: &LedgerFigures) {
        for mode in MODES {
            let present = i64::from(mode == ledger.mode);
            self.0
                .ledger_mode
                .get_or_create(&ModeLabel { mode })
                .set(present);
        }
        self.0.ledger_replicas.set(ledger.replicas);
        self.0.peers_silent.set(ledger.silent);
        self.0.rate_reserved.set(ledger.reserved);
        self.0.ledger_share.set(ledger.share);
        self.0.ledger_offset.set(ledger.clock_offset);
    }

    /// Sets the figures of the spool and its buffers.
    pub fn set_spool(&self, spool: &SpoolFigures) {
        let figures = &self.0;
        figures.spool_free.set(spool.free as f64);
        figures.spool_leases.set(spool.leases);
        spool.write(
            &figures.spool_items,
            &figures.spool_oldest,
            &figures.spool_paused,
        );
    }

    /// Returns the registries of the figures, by the position of their part.
    pub(super) const fn registries(&self) -> &[Registry; Part::COUNT] {
        &self.0.registries
    }
}
