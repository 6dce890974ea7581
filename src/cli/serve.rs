//! `outpace serve`: runs the proxy until a signal or the last session ends it.

use std::num::NonZero;
use std::time::Duration;

use clap::Args;

use super::{ConfigArgs, Exit, print_error};
use crate::app::{App, RunMode};
use crate::{config, telemetry};

/// Time for tasks that outlast the drain to be dropped before the process ends.
const LAST_BREATH: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// End after the last session of /v1/attend, and listen on free ports if the configured ones
    /// are taken
    #[arg(long, hide = true)]
    attended: bool,
}

pub(super) fn run(args: &ServeArgs) -> Exit {
    let config = &args.config.config;
    let mode = if args.attended {
        RunMode::Attended
    } else {
        RunMode::Standing
    };
    telemetry::set_up(config::process_environment("OUTPACE_LOG").as_deref());
    // A second thread on a single core would only add context switches.
    let asked = config::process_environment("TOKIO_WORKER_THREADS");
    let threads: NonZero<usize> = match asked.and_then(|count| count.parse().ok()) {
        Some(count) => count,
        None => std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
    };
    let mut builder = if threads == NonZero::<usize>::MIN {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match builder.worker_threads(threads.get()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!(
                "the runtime could not be started: {error}; raise the limits on open files and threads"
            ));
            return Exit::Internal;
        }
    };
    let served = runtime.block_on(async {
        let app = App::start(config, mode).await?;
        let lines = app.lines();
        app.run().await.map(|()| lines)
    });
    // Tasks that outlast the drain are dropped here, and each writes its record.
    runtime.shutdown_timeout(LAST_BREATH);
    match served {
        Ok(lines) => {
            lines.close();
            Exit::Ok
        }
        Err(error) => {
            print_error(&error.to_string());
            Exit::from(&error)
        }
    }
}
