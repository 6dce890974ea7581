//! Composition root of the program: builds every part once, connects the parts, runs them and
//! drains them.

mod activation;
mod admin_token;
mod attended;
mod ca;
mod data_dir;
mod drain;
mod key_secret;
mod ledger;
mod listeners;
mod notify;
mod parts;
mod reload;
mod serving;
mod spool;
mod summaries;
mod trust;

pub use activation::InheritedSockets;
pub use admin_token::admin_token;
pub use drain::DrainEnd;
pub use serving::serving;
pub use trust::{Trust, ca_names, client_token, encoded};

use parts::Parts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::admin::{Admin, ConfigState, Readiness, ReloadCalls, ServingInfo, Sessions};
use crate::api::Api;
use crate::bounds::TRUST_COMPLAINTS;
use crate::clock::Clock;
use crate::config::{self, ConfigError, Settings};
use crate::content::DecoderMemory;
use crate::db::DatabaseError;
use crate::exchange::{
    BodyBudget, CommandReports, Exchange, LineSink, MetricsSink, RecentRefusals, Recorder, Sink,
    WarningSink,
};
use crate::files::FileFault;
use crate::intercept::{CaError, CertificateAuthority, Leaves, write_bundle};
use crate::ledger::Ledger;
use crate::origin::{Connector, Pool, Roots};
use crate::pace::Pacer;
use crate::policy::{CommandAccess, Policy};
use crate::semantics::Pseudonym;
use crate::serve::{Listener, Server};
use crate::shutdown::Tasks;
use crate::telemetry::{LineWriter, Metrics};
use crate::throttle::AuthThrottle;

/// Error that prevents the start or ends the process. Each message names the cause, and a remedy if
/// there is one.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be read, or it is invalid.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The data directory cannot be created or written to.
    #[error(
        "the data directory {path} cannot be used: {cause}; make it writable for this user, or set `data_dir`"
    )]
    DataDir {
        /// Path of the data directory.
        path: PathBuf,
        /// Error that the operating system returned.
        cause: std::io::Error,
    },
    /// Another process uses the data directory.
    #[error(
        "the data directory {path} is in use by another outpace{}, and {kept} there cannot be shared; stop that process, or set another `data_dir`",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// Path of the data directory.
        path: PathBuf,
        /// Id of the process that uses it, if it is known.
        pid: Option<u32>,
        /// State in the directory that the processes cannot share.
        kept: &'static str,
    },
    /// A file or directory belongs to another user, or another user can change it.
    #[error("{0}")]
    Files(#[from] FileFault),
    /// The file with the admin token cannot be read or written.
    #[error(
        "the admin token {path} cannot be used: {cause}; remove it for a new one, or set `admin.token`"
    )]
    AdminToken {
        /// Path of the file.
        path: PathBuf,
        /// Cause that makes the file unusable.
        cause: String,
    },
    /// The CA or one of its files cannot be created, read or used.
    #[error("{0}")]
    Ca(#[from] CaError),
    /// A listen address cannot be bound, for example because the port is in use.
    #[error(
        "{key} {address} cannot be bound: {cause}; stop the program that uses it, or set another"
    )]
    Port {
        /// Configuration key that holds the address.
        key: &'static str,
        /// Address that could not be bound.
        address: SocketAddr,
        /// Error that the operating system returned.
        cause: std::io::Error,
    },
    /// A socket that was inherited from the supervisor cannot be used.
    #[error("{0}")]
    Socket(String),
    /// The database of the shared ledger denies access, or its schema does not match.
    #[error("{0}")]
    Ledger(#[from] DatabaseError),
    /// The spool on disk cannot be opened, or acknowledged items are missing from it.
    #[error("{0}")]
    SpoolOpen(#[from] crate::spool::OpenError),
    /// A buffer of the configuration cannot be declared, or the disk of the spool failed.
    #[error("{0}")]
    Spool(String),
    /// An operation failed that should succeed with any configuration.
    #[error("outpace could not start: {0}")]
    Internal(String),
}

/// Running outpace, with its listeners bound and all parts connected.
#[derive(Debug)]
pub struct App {
    config: PathBuf,
    config_state: ConfigState,
    settings: Settings,
    policy: Arc<ArcSwap<Policy>>,
    leaves: Arc<Leaves>,
    exchange: Arc<Exchange>,
    metrics: Metrics,
    tasks: Tasks,
    clock: Clock,
    /// Writer of canonical lines, which the caller closes after everything else has ended.
    pub lines: LineWriter,
    ledger: ledger::OpenLedger,
    spool: Option<spool::OpenSpool>,
    summaries: summaries::Summaries,
    /// Parts that only [`Self::run`] uses: the signals that end the process, the text of the
    /// configuration, and the triggers of a reload.
    ended: Option<(drain::ShutdownSignal, String, reload::ReloadTriggers)>,
    sign: serving::ServingFile,
    supervisor: notify::Supervisor,
    /// Access of the command that this process serves alone, in [`RunMode::Attended`].
    command: Option<CommandAccess>,
    /// Sessions that keep the process running in [`RunMode::Attended`]. The process ends after the
    /// last one.
    auto_exit: Option<Sessions>,
    /// Address of the proxy listener, with the port that was bound.
    pub listen: SocketAddr,
    /// Address of the admin listener, with the port that was bound.
    pub admin: SocketAddr,
}

impl App {
    /// Loads the configuration, builds all parts, binds all listeners and starts to serve. Must be
    /// called inside a tokio runtime. Listeners use the inherited sockets with their addresses.
    ///
    /// # Errors
    /// Returns a [`StartError`] if the configuration, a file, a port, the ledger or the spool
    /// cannot be used.
    pub async fn start(
        config: &Path,
        mode: RunMode,
        inherited: InheritedSockets,
    ) -> Result<Self, StartError> {
        let (text, mut loaded) = load(config)?;
        let shared = Parts::new()?;
        let command = attended::prepare(mode, &mut loaded.config.settings)?;
        let readiness = Readiness::new(shared.tasks.clone());
        let starting = readiness.latch("listeners");
        let (settings, policy) =
            data_dir::open(loaded, mode, &inherited, command.as_ref(), &shared).await?;
        let ledger = ledger::open(&settings, &shared, &readiness).await?;
        let exchange = exchange(&settings, Arc::clone(&ledger.ledger), &shared)?;
        let spool = spool::open(&settings, ledger.replica(), &exchange, &policy, &shared).await?;
        let api = Api::new(spool.as_ref().map(|spool| spool.api.clone()));
        let server = build(&settings, &policy, exchange, api, &shared)?;
        let (listeners, admin_listener, addresses) = listeners::bind(&settings, mode, inherited)?;
        let connector = server.exchange.pool.connector();
        connector.set_ourselves(addresses.clone());
        if let Some(spool) = &spool {
            let base = base_url(&settings, &policy.load(), addresses[0]);
            spool.begin(&shared, &server.exchange, &readiness, base);
        }
        let (listen, admin) = (addresses[0], addresses[addresses.len() - 1]);
        let tasks = &shared.tasks;
        let serving = serving::ServingFile::serving(config, listen, admin);
        let (sessions, config_state) = (Sessions::default(), ConfigState::default());
        let internal = |error: std::io::Error| StartError::Internal(error.to_string());
        let (reloads, triggers) = reload::ReloadTriggers::listen().map_err(internal)?;
        let ended = drain::ShutdownSignal::listen().map_err(internal)?;
        // Nothing prevents the start from here on, so no row stays behind in the ledger.
        ledger.join(&policy, &server.exchange);
        serve_clients(tasks, listeners, &server);
        let api = Arc::new(Api::new(spool.as_ref().map(|spool| spool.api.clone())));
        let own = OwnState {
            readiness,
            serving: serving.clone(),
            config: config_state.clone(),
            reloads,
            sessions: sessions.clone(),
        };
        let routes = admin_routes(own, &server, &ledger.ledger, api, &shared);
        tasks.spawn_detached(routes.run(admin_listener));
        let summaries = summaries::Summaries::begin(&shared);
        drop(starting);
        // The signal handlers are installed before, because readers of `serving.json` or the log may
        // send a signal at once.
        let sign = serving::ServingFile::put_up(&settings.data_dir, serving);
        notify::announce(&shared, (listen, admin), &policy.load());
        Ok(Self {
            config: config.to_owned(),
            config_state,
            settings,
            policy,
            leaves: Arc::clone(&server.leaves),
            exchange: Arc::clone(&server.exchange),
            metrics: shared.metrics,
            tasks: shared.tasks,
            clock: shared.clock,
            lines: shared.lines,
            ledger,
            spool,
            summaries,
            ended: Some((ended, text, triggers)),
            sign,
            supervisor: shared.supervisor,
            command,
            auto_exit: (mode == RunMode::Attended).then_some(sessions),
            listen,
            admin,
        })
    }

    /// Serves until SIGTERM, SIGINT or the last session ends it, and reloads the configuration
    /// meanwhile. Then it drains.
    ///
    /// # Errors
    /// Returns [`StartError::Internal`] if it was called before, and [`StartError::Spool`] without a
    /// drain if the disk of the spool fails.
    pub async fn run(mut self) -> Result<DrainEnd, StartError> {
        let Some((mut ended, text, triggers)) = self.ended.take() else {
            return Err(StartError::Internal("`run` was called twice".to_owned()));
        };
        let reloading = reload::Reloader::new(&self, text, triggers);
        let broken = spool::broken(self.spool.as_ref());
        tokio::select! {
            () = ended.come() => {}
            () = attended::until_idle(self.auto_exit.clone(), &self.clock) => {}
            () = reloading.run() => {}
            // Without the disk nothing can be acknowledged any more. The next start finds all
            // acknowledged items.
            broken = broken => {
                self.ledger.leave().await;
                return Err(broken);
            }
        }
        // Other processes must not find an outpace that is about to end.
        drop(self.sign);
        let timeout = self.settings.drain_timeout;
        self.supervisor.stopping(timeout);
        let drained = drain::drain(&self.tasks, timeout, &self.clock).await;
        spool::close(self.spool.as_ref()).await;
        self.summaries.write();
        self.ledger.leave().await;
        Ok(drained.log())
    }
}

/// State of this process that the admin port shows or changes.
struct OwnState {
    readiness: Readiness,
    serving: ServingInfo,
    config: ConfigState,
    reloads: ReloadCalls,
    sessions: Sessions,
}

fn admin_routes(
    own: OwnState,
    server: &Server,
    ledger: &Arc<dyn Ledger>,
    api: Arc<Api>,
    shared: &Parts,
) -> Admin {
    Admin {
        readiness: own.readiness,
        metrics: shared.metrics.clone(),
        policy: Arc::clone(&server.policy),
        ledger: Arc::clone(ledger),
        throttle: Arc::clone(&server.throttle),
        connections: shared.connections(shared.bounds.admin),
        warnings: Arc::clone(&shared.warnings),
        exchange: Arc::clone(&server.exchange),
        leaves: Arc::clone(&server.leaves),
        serving: Arc::new(own.serving),
        config: own.config,
        reloads: own.reloads,
        api,
        sessions: own.sessions,
        clients: Arc::clone(&server.connections),
    }
}

/// Returns the URL of the API, under which clients find what they stored.
fn base_url(settings: &Settings, policy: &Policy, listen: SocketAddr) -> String {
    let scheme = policy.tls.proxy.as_ref().map_or("http", |_| "https");
    let public = settings.public_url.clone();
    public.unwrap_or_else(|| format!("{scheme}://{listen}"))
}

/// Reads and validates the configuration file. Its text is kept for comparisons with later texts.
fn load(path: &Path) -> Result<(String, config::Loaded), ConfigError> {
    let text = config::read(path)?;
    let loaded = config::parse(path, &text, &config::process_environment, 0)?;
    Ok((text, loaded))
}

/// Condition under which the process ends without a signal, and its choice of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunMode {
    /// Runs until a signal ends the process, and listens on the configured ports only.
    Standing,
    /// Runs as long as sessions are open, and listens on free ports if the configured ones are
    /// taken.
    Attended,
}

fn build(
    settings: &Settings,
    policy: &Arc<ArcSwap<Policy>>,
    exchange: Arc<Exchange>,
    api: Api,
    shared: &Parts,
) -> Result<Arc<Server>, StartError> {
    let (clock, metrics) = (shared.clock.clone(), shared.metrics.clone());
    let roots = Roots::system();
    let names = ca_names(&settings.ca, &policy.load());
    let ca = CertificateAuthority::load_or_make(&settings.ca, &names, clock.wall())?;
    ca.check_valid(clock.wall())?;
    ca::warn(&ca, &policy.load(), &clock);
    for dir in ca::bundle_dirs(settings) {
        write_bundle(&dir, &ca, roots.certificates())?;
    }
    let throttle = Arc::new(AuthThrottle::new(clock.clone(), metrics.clone()));
    let leaves = Leaves::new(ca, clock, metrics.clone()).map_err(StartError::Internal)?;
    Ok(Arc::new(Server {
        exchange,
        api,
        policy: Arc::clone(policy),
        leaves: Arc::new(leaves),
        tasks: shared.tasks.clone(),
        metrics,
        throttle,
        connections: shared.connections(shared.bounds.clients),
        warnings: Arc::clone(&shared.warnings),
        warned_clients: moka::sync::Cache::new(TRUST_COMPLAINTS),
    }))
}

fn exchange(
    settings: &Settings,
    ledger: Arc<dyn Ledger>,
    shared: &Parts,
) -> Result<Arc<Exchange>, StartError> {
    let (clock, tasks, metrics) = (&shared.clock, &shared.tasks, &shared.metrics);
    let roots = Roots::load(settings.roots.iter().cloned());
    let connector = Connector::new(&roots, settings.parent.clone())
        .map_err(|error| StartError::Internal(error.to_string()))?;
    let pseudonym = shared.random.bits();
    let instance = u32::try_from(pseudonym & 0xffff_ffff).unwrap_or_default();
    let refusals = Arc::new(RecentRefusals::default());
    let commands = Arc::new(CommandReports::default());
    let sinks: Vec<Arc<dyn Sink>> = vec![
        Arc::new(LineSink {
            lines: shared.lines.clone(),
            repeats: Arc::clone(&shared.records),
            access: settings.log.access.clone(),
        }),
        Arc::new(MetricsSink::new(metrics.clone())),
        Arc::new(WarningSink(Arc::clone(&shared.warnings))),
        Arc::clone(&refusals) as Arc<dyn Sink>,
        Arc::clone(&commands) as Arc<dyn Sink>,
    ];
    Ok(Arc::new(Exchange {
        pacer: Pacer::new(ledger, clock.clone(), tasks.clone(), metrics.clone()),
        pool: Pool::new(
            connector,
            shared.bounds.origins,
            clock.clone(),
            tasks.clone(),
            metrics.clone(),
        ),
        body_budget: Arc::new(BodyBudget::new(settings.keep.clone(), metrics.clone())),
        recorder: Arc::new(Recorder::new(clock.clone(), instance, sinks)),
        refusals,
        commands,
        pseudonym: Pseudonym::new(pseudonym),
        clock: clock.clone(),
        random: shared.random.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        target_metrics: RwLock::default(),
        decoders: DecoderMemory::default(),
        deferral: OnceLock::new(),
    }))
}

fn serve_clients(tasks: &Tasks, listeners: Vec<Listener>, server: &Arc<Server>) {
    for listener in listeners {
        tasks.spawn_detached(listener.run(Arc::clone(server)));
    }
    tasks.spawn_detached(reap(Arc::clone(server)));
}

const REAP_EVERY: Duration = Duration::from_secs(15);

async fn reap(server: Arc<Server>) {
    loop {
        tokio::time::sleep(REAP_EVERY).await;
        server.exchange.pool.reap();
    }
}
