//! Throttle for log lines that a peer can cause at will. Lines beyond its bound are counted, and a
//! summary reports their number.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use foldhash::HashMap;

use super::{KeyedThrottle, network_of};
use crate::bounds::{LOG_REPEAT_PERIOD, THROTTLED_ADDRESSES};
use crate::clock::Clock;
use crate::sync::lock;
use crate::telemetry::Metrics;

/// Kind of a log line with its cause, which are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LineKey {
    /// Kind of the line, such as the token of a reason.
    pub kind: &'static str,
    /// Cause of the line, such as an address.
    pub cause: LineCause,
}

/// Cause of a log line, by which equal lines are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LineCause {
    /// Network of the client, which is a /64 in IPv6.
    Network(IpAddr),
    /// Name of the target.
    Target(Arc<str>),
    /// Cause that lines of this kind share.
    Any,
}

impl LineKey {
    /// Creates the key of a line that a client at this address causes.
    pub fn of_client(kind: &'static str, address: IpAddr) -> Self {
        let cause = LineCause::Network(network_of(address));
        Self { kind, cause }
    }

    /// Creates the key of a line about a target, or about no target.
    pub fn of_target(kind: &'static str, target: Option<&Arc<str>>) -> Self {
        let target = target.map(|target| LineCause::Target(Arc::clone(target)));
        let cause = target.unwrap_or(LineCause::Any);
        Self { kind, cause }
    }
}

/// Throttle that admits a number of lines per [`LOG_REPEAT_PERIOD`] and key.
#[derive(Debug)]
pub struct LineThrottle {
    throttle: KeyedThrottle<LineKey>,
    /// Numbers of the lines that were not admitted since the last summary.
    left_out: Mutex<HashMap<LineKey, u64>>,
    metrics: Metrics,
}

impl LineThrottle {
    /// Creates a throttle that admits `lines` per [`LOG_REPEAT_PERIOD`] and key.
    pub fn new(lines: u32, clock: Clock, metrics: Metrics) -> Self {
        Self {
            throttle: KeyedThrottle::new(lines, LOG_REPEAT_PERIOD, OTHERS, clock),
            left_out: Mutex::default(),
            metrics,
        }
    }

    /// Returns true if a line may be written. Otherwise counts it for the next summary.
    pub fn admits(&self, key: &LineKey) -> bool {
        if self.throttle.check(key).is_ok() {
            return true;
        }
        self.metrics.log_line_summarized();
        let mut left_out = lock(&self.left_out);
        let is_new = !left_out.contains_key(key);
        let key = match is_new && left_out.len() >= THROTTLED_ADDRESSES {
            true => &OTHERS,
            false => key,
        };
        *left_out.entry(key.clone()).or_default() += 1;
        false
    }

    /// Returns the numbers of lines that were left out since the last call.
    pub fn take_left_out(&self) -> Vec<(LineKey, u64)> {
        let mut left_out = lock(&self.left_out);
        std::mem::take(&mut *left_out).into_iter().collect()
    }
}

/// Key that all keys beyond the bound share.
const OTHERS: LineKey = LineKey {
    kind: "others",
    cause: LineCause::Any,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_beyond_the_bound_are_counted_for_the_summary() {
        let clock = Clock::anchored(1_800_000_000_000_000_000);
        let throttle = LineThrottle::new(3, clock.clone(), Metrics::new());
        let address = |text: &str| LineKey::of_client("client-unknown", text.parse().unwrap());
        let one = address("2001:db8::1");
        let admitted = (0..1000).filter(|_| throttle.admits(&one)).count();
        assert_eq!(admitted, 3);
        // A neighbour in the /64 shares the count, and another kind or address does not.
        assert!(!throttle.admits(&address("2001:db8::2")));
        let kind = LineKey::of_client("malformed-request", "2001:db8::1".parse().unwrap());
        assert!(throttle.admits(&kind) && throttle.admits(&address("192.0.2.1")));
        assert_eq!(throttle.take_left_out(), [(one.clone(), 998)]);
        assert_eq!(throttle.take_left_out(), []);
        clock.sleep_until(clock.now() + LOG_REPEAT_PERIOD).await;
        assert!(throttle.admits(&one));
        let text = throttle.metrics.text();
        assert!(
            text.contains("outpace_log_lines_summarized_total 998"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn p14_the_summary_is_bounded() {
        let clock = Clock::anchored(1_800_000_000_000_000_000);
        let throttle = LineThrottle::new(1, clock, Metrics::new());
        let addresses = (0..40_000_u32).map(|number| IpAddr::V4(number.into()));
        for address in addresses {
            let key = LineKey::of_client("client-unknown", address);
            throttle.admits(&key);
            throttle.admits(&key);
        }
        assert!(throttle.take_left_out().len() <= THROTTLED_ADDRESSES + 1);
    }
}
