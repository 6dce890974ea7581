//! `outpace serve`: runs the proxy until a signal or the last session ends it.

use std::num::NonZero;
use std::time::Duration;

use clap::Args;

use super::client::ConfigArgs;
use super::{Exit, Failure, started};
use crate::app::{App, DrainEnd, InheritedSockets, RunMode};
use crate::{config, telemetry};

/// Time for tasks that outlast the drain to be dropped before the process ends.
const LAST_BREATH: Duration = Duration::from_millis(500);
/// Time for blocking calls, such as those of name resolution, if no task has outlasted the drain.
const AFTER_DRAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// End after the last session of /v1/attend, and listen on free ports if the configured ones
    /// are taken
    #[arg(long, hide = true)]
    attended: bool,
}

pub(super) fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    let config = &args.config.require()?;
    let mode = if args.attended {
        RunMode::Attended
    } else {
        RunMode::Standing
    };
    // No other thread runs yet.
    let inherited = InheritedSockets::take()?;
    let levels = config::process_environment("OUTPACE_LOG");
    telemetry::set_up(levels.as_deref()).map_err(|told| Failure(Exit::USAGE, told))?;
    // A second thread on a single core would only add context switches.
    let asked = config::process_environment("TOKIO_WORKER_THREADS");
    let asked = asked.and_then(|count| count.parse::<NonZero<usize>>().ok());
    let threads = asked.or_else(|| std::thread::available_parallelism().ok());
    let threads = threads.map_or(1, NonZero::get);
    let mut builder = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = started(builder.worker_threads(threads))?;
    let served = runtime.block_on(async {
        let app = App::start(config, mode, inherited).await?;
        let lines = app.lines.clone();
        app.run().await.map(|end| (lines, end))
    });
    // Tasks that outlast the drain are dropped here, and each writes its record.
    runtime.shutdown_timeout(match &served {
        Ok((_, DrainEnd::Drained)) => AFTER_DRAIN,
        Ok((_, DrainEnd::Aborted)) | Err(_) => LAST_BREATH,
    });
    let lost = served.as_ref().map_or(0, |(lines, _)| lines.close());
    if lost > 0 {
        tracing::warn!(
            lost,
            "standard output is full; canonical lines could not be written"
        );
    }
    telemetry::close_log();
    served?;
    Ok(Exit::OK)
}
