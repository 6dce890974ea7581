//! `outpace serve`: run the proxy.

use std::path::Path;

use super::{Exit, complain};
use crate::app::App;
use crate::{config, telemetry};

pub(super) fn run(config: &Path) -> Exit {
    telemetry::set_up(config::process_environment("OUTPACE_LOG").as_deref());
    // With one core a second thread would only cost switches.
    let one = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
    let mut builder = if one {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no threads could be started: {error}"));
            return Exit::Internal;
        }
    };
    let served = runtime.block_on(async { App::start(config).await?.run().await });
    // What the drain did not wait for any longer must not hold up the end.
    runtime.shutdown_background();
    match served {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(&error.to_string());
            Exit::from(&error)
        }
    }
}
