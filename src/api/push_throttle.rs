//! Throttle for pushes, which bounds the items that one client can push per second.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::ApiCall;
use crate::bounds::{PUSH_BURST, PUSHES_PER_SECOND};
use crate::clock::Clock;
use crate::exchange::{Error, Reason};
use crate::throttle::KeyedThrottle;

/// Client whose pushes are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Pusher {
    Client(Arc<str>),
    Address(IpAddr),
    /// All clients beyond the bound of the throttle together.
    Others,
}

/// Throttle for the pushes of each client. A caller without a client's name is known by its address,
/// and has no bound on loopback.
#[derive(Debug)]
pub struct PushThrottle(KeyedThrottle<Pusher>);

impl PushThrottle {
    /// Creates a throttle that has counted no push.
    pub fn new(clock: Clock) -> Self {
        let second = Duration::from_secs(1);
        let others = Pusher::Others;
        Self(KeyedThrottle::with_burst(
            PUSHES_PER_SECOND,
            second,
            PUSH_BURST,
            others,
            clock,
        ))
    }

    /// Counts the push of `items` items.
    ///
    /// # Errors
    /// Returns [`Reason::PushThrottled`] if the client pushes too many.
    pub(super) fn check(&self, call: &ApiCall<'_>, items: usize) -> Result<(), Error> {
        let pusher = match &call.client.name {
            _ if call.is_operator => return Ok(()),
            Some(name) => Pusher::Client(Arc::clone(name)),
            None if call.client.address.to_canonical().is_loopback() => return Ok(()),
            None => Pusher::Address(call.client.address.to_canonical()),
        };
        self.count(&pusher, items).map_err(|wait| {
            let detail = format!("one client may push {PUSHES_PER_SECOND} items per second");
            Error::new(Reason::PushThrottled, detail).after(wait)
        })
    }

    /// Counts items. An error is the time after which they may be pushed.
    fn count(&self, pusher: &Pusher, items: usize) -> Result<(), Duration> {
        let items = u32::try_from(items).ok().and_then(NonZeroU32::new);
        self.0.check_n(pusher, items.unwrap_or(NonZeroU32::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reaches the bound `PUSHES_PER_SECOND`.
    /// Reaches the bound `PUSH_BURST`.
    #[tokio::test(start_paused = true)]
    async fn p13_a_client_pushes_its_burst_and_then_its_rate() {
        for batch in [1, 10, 1000] {
            let clock = Clock::anchored(1_800_000_000_000_000_000);
            let throttle = PushThrottle::new(clock.clone());
            let [one, other] = ["a", "b"].map(|name| Pusher::Client(name.into()));
            for _ in 0..PUSH_BURST as usize / batch {
                assert_eq!(throttle.count(&one, batch), Ok(()));
            }
            let wait = throttle.count(&one, batch).unwrap_err();
            assert!(
                !wait.is_zero() && wait <= Duration::from_millis(200),
                "{wait:?}"
            );
            let address = Pusher::Address([192, 0, 2, 1].into());
            for another in [other, address] {
                assert_eq!(throttle.count(&another, batch), Ok(()));
            }
            clock
                .sleep_until(clock.now() + Duration::from_secs(1))
                .await;
            let mut more = 0;
            while throttle.count(&one, batch).is_ok() {
                more += batch;
            }
            assert_eq!(more, PUSHES_PER_SECOND as usize);
        }
    }
}
