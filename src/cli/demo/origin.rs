//! Small origin that counts its limit exactly and answers 429 to the excess, as strict APIs do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::super::{Exit, Failure, print};
use crate::clock::{Clock, Instant};
use crate::semantics::write_retry_after;
use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::units::Rate;

/// Serves until the process is interrupted, and prints the counts of each second.
pub(super) async fn stand(listen: SocketAddr, rate: Rate) -> Result<Exit, Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let text =
            format!("{listen} cannot be bound: {error}; choose another address with --listen");
        Failure(Exit::PORT, text)
    })?;
    print(&format!(
        "an origin that allows {rate} listens on {listen}\n"
    ));
    let tasks = Tasks::new();
    let origin = Arc::new(LimitedOrigin::new(rate, Clock::system()));
    tasks.spawn_detached(report(Arc::clone(&origin)));
    tokio::select! {
        () = serve(listener, origin, tasks) => {}
        _interrupted = tokio::signal::ctrl_c() => {}
    }
    Ok(Exit::OK)
}

pub(super) async fn serve(listener: TcpListener, origin: Arc<LimitedOrigin>, tasks: Tasks) {
    while let Ok((stream, _)) = listener.accept().await {
        let origin = Arc::clone(&origin);
        tasks.spawn(async move {
            let service = service_fn(move |_request| {
                let response = origin.answer();
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that closes its connection early is not an error here.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Prints one line for each second in which requests arrived.
async fn report(origin: Arc<LimitedOrigin>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (served, refused) = std::mem::take(&mut *lock(&origin.counted));
        if served + refused > 0 {
            print(&format!("served {served:>4}   refused {refused:>4}\n"));
        }
    }
}

/// Origin that allows its rate in every window of one period.
#[derive(Debug)]
pub(super) struct LimitedOrigin {
    rate: Rate,
    clock: Clock,
    /// Times of the requests that were served within the last period.
    log: Mutex<VecDeque<Instant>>,
    /// Numbers of served and refused requests since the last report.
    counted: Mutex<(u64, u64)>,
    /// Arrival times of at most 100,000 requests since the last call of `take_arrivals`.
    arrivals: Mutex<Vec<Instant>>,
}

impl LimitedOrigin {
    pub(super) fn new(rate: Rate, clock: Clock) -> Self {
        Self {
            rate,
            clock,
            log: Mutex::default(),
            counted: Mutex::default(),
            arrivals: Mutex::default(),
        }
    }

    /// Returns the arrival times since the previous call and clears them.
    pub(super) fn take_arrivals(&self) -> Vec<Instant> {
        std::mem::take(&mut lock(&self.arrivals))
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        let mut arrivals = lock(&self.arrivals);
        // The origin may run for hours without a reader, so the list is bounded.
        if arrivals.len() < 100_000 {
            arrivals.push(self.clock.now());
        }
        drop(arrivals);
        let admitted = self.admit();
        let mut counted = lock(&self.counted);
        match admitted {
            Ok(()) => {
                counted.0 += 1;
                Response::new(Full::from("served\n"))
            }
            Err(wait) => {
                counted.1 += 1;
                let text = format!("the limit of {} is exceeded\n", self.rate);
                let mut response = Response::new(Full::from(text));
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                let wait = write_retry_after(wait);
                response.headers_mut().insert(header::RETRY_AFTER, wait);
                response
            }
        }
    }

    fn admit(&self) -> Result<(), Duration> {
        let (now, period) = (self.clock.now(), self.rate.period());
        let mut log = lock(&self.log);
        while log.front().is_some_and(|at| now.since(*at) >= period) {
            log.pop_front();
        }
        match log.front() {
            Some(oldest) if log.len() >= self.rate.count() as usize => {
                Err(period.saturating_sub(now.since(*oldest)))
            }
            _ => {
                log.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_origin_allows_exactly_its_rate() {
        let clock = Clock::anchored(0);
        let origin = LimitedOrigin::new("2/1s".parse().unwrap(), clock.clone());
        let statuses: Vec<u16> = (0..3).map(|_| origin.answer().status().as_u16()).collect();
        assert_eq!(statuses, [200, 200, 429]);
        let later = clock.now() + Duration::from_secs(1);
        clock.sleep_until(later).await;
        assert_eq!(origin.answer().status(), 200);
    }
}
