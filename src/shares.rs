//! Bounds that clients share, with the amount that each client holds of them. A client holds at most
//! its share, so that it cannot take the rest from the others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use crate::bounds::CLIENT_SHARE_PERCENT;
use crate::sync::lock;

/// Client that holds parts of shared bounds, with the part of each bound that it may hold. Clones
/// are cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Name of the client, or its address if it has no name.
    pub holder: Arc<str>,
    /// Part of each bound that the client may hold, in millionths.
    pub ppm: u32,
}

/// A whole bound in millionths, which is the share of a client that has no rival.
const WHOLE: u32 = 1_000_000;

impl Share {
    /// Creates the share of a client for which the configuration has no percentage.
    pub const fn of_client(holder: Arc<str>) -> Self {
        Self {
            holder,
            ppm: CLIENT_SHARE_PERCENT * (WHOLE / 100),
        }
    }

    /// Creates the share of clients at this address, or `None` for loopback. All addresses of one
    /// IPv6 network of 64 bits have one share, because a single host can use them all.
    pub fn of_address(address: IpAddr) -> Option<Self> {
        let holder = match address {
            _ if address.is_loopback() => return None,
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                format!("{}/64", Ipv6Addr::from_bits(network))
            }
        };
        Some(Self::of_client(holder.into()))
    }

    /// Creates the share of a client that may hold whole bounds, which only counts what it holds.
    pub const fn whole(holder: Arc<str>) -> Self {
        Self { holder, ppm: WHOLE }
    }

    /// Returns the part of a bound that the client may hold. It is rounded up, so that it is never
    /// nothing.
    pub fn of(&self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.ppm);
        u64::try_from(part.div_ceil(u128::from(WHOLE))).unwrap_or(whole)
    }
}

/// Reason for a refused claim, with the part of the bound that is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// All clients together hold the whole bound.
    Whole,
    /// The client holds its share of the bound.
    Share,
}

/// Amount of one shared bound that is in use, in total and by client.
#[derive(Debug, Default)]
pub struct Occupancy(Mutex<Amounts>);

#[derive(Debug, Default)]
struct Amounts {
    total: u64,
    /// Amounts of the clients that have a share. A client that holds nothing has no entry.
    by_holder: HashMap<Arc<str>, u64>,
}

impl Occupancy {
    /// Claims `count` of the bound `max` until the claim is dropped. Without a share only the bound
    /// itself applies.
    ///
    /// # Errors
    /// Returns the part of the bound that is spent.
    pub fn claim(
        self: &Arc<Self>,
        share: Option<&Share>,
        count: u64,
        max: u64,
    ) -> Result<Holding, Spent> {
        let mut holding = self.nothing(share);
        holding.grow(count, max).map(|()| holding)
    }

    /// Returns a claim of nothing, which can grow.
    pub fn nothing(self: &Arc<Self>, share: Option<&Share>) -> Holding {
        Holding {
            occupancy: Arc::clone(self),
            share: share.cloned(),
            count: 0,
        }
    }

    /// Returns the amount that one client holds.
    pub fn held_by(&self, holder: &str) -> u64 {
        lock(&self.0).by_holder.get(holder).copied().unwrap_or(0)
    }

    /// Returns the amount that all clients hold together.
    pub fn total(&self) -> u64 {
        lock(&self.0).total
    }
}

/// Amount of a shared bound that is claimed until the drop of this value.
#[derive(Debug)]
pub struct Holding {
    occupancy: Arc<Occupancy>,
    share: Option<Share>,
    count: u64,
}

impl Holding {
    /// Claims `more` of the bound `max` in addition.
    ///
    /// # Errors
    /// Returns the part of the bound that is spent. The claim is unchanged then.
    pub fn grow(&mut self, more: u64, max: u64) -> Result<(), Spent> {
        let mut held = lock(&self.occupancy.0);
        let total = held.total.saturating_add(more);
        if total > max {
            return Err(Spent::Whole);
        }
        if let Some(share) = &self.share {
            let own = held.by_holder.get(&share.holder).copied().unwrap_or(0) + more;
            if own > share.of(max) {
                return Err(Spent::Share);
            }
            held.by_holder.insert(Arc::clone(&share.holder), own);
        }
        held.total = total;
        self.count += more;
        Ok(())
    }

    /// Gives back a part of the claim.
    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.count);
        if less == 0 {
            return;
        }
        let mut held = lock(&self.occupancy.0);
        held.total = held.total.saturating_sub(less);
        if let Some(share) = &self.share
            && let Some(own) = held.by_holder.get_mut(&share.holder)
        {
            *own = own.saturating_sub(less);
            if *own == 0 {
                held.by_holder.remove(&share.holder);
            }
        }
        self.count -= less;
    }

    /// Returns the amount that is claimed.
    pub const fn count(&self) -> u64 {
        self.count
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.shrink(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(holder: &str, percent: u32) -> Share {
        Share {
            holder: holder.into(),
            ppm: percent * 10_000,
        }
    }

    #[test]
    fn p13_isolation_one_client_leaves_the_rest_to_the_others() {
        let bound = Arc::new(Occupancy::default());
        let (alice, bob) = (share("alice", 50), share("bob", 50));
        let mut first = bound.claim(Some(&alice), 4, 10).unwrap();
        first.grow(1, 10).unwrap();
        assert_eq!(first.grow(1, 10), Err(Spent::Share));
        assert_eq!(bound.claim(Some(&alice), 1, 10).unwrap_err(), Spent::Share);
        let second = bound.claim(Some(&bob), 5, 10).unwrap();
        assert_eq!(bound.claim(Some(&bob), 1, 10).unwrap_err(), Spent::Whole);
        assert_eq!(bound.claim(None, 1, 10).unwrap_err(), Spent::Whole);
        first.shrink(2);
        assert_eq!((bound.total(), bound.held_by("alice")), (8, 3));
        drop((first, second));
        assert_eq!((bound.total(), bound.held_by("alice")), (0, 0));
    }

    #[test]
    fn a_share_is_rounded_up_and_without_a_share_all_may_be_held() {
        let named = |address: &str| Share::of_address(address.parse().unwrap()).map(|s| s.holder);
        assert_eq!((named("127.0.0.7"), named("::1")), (None, None));
        assert_eq!(named("10.0.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(named("2001:db8::1:2"), named("2001:db8::7"));
        for (percent, whole, part) in [(50, 1, 1), (50, 3, 2), (50, 60, 30), (1, 10, 1), (50, 0, 0)]
        {
            assert_eq!(
                share("a", percent).of(whole),
                part,
                "{percent} % of {whole}"
            );
        }
        assert_eq!(share("a", 100).of(u64::MAX), u64::MAX);
        let bound = Arc::new(Occupancy::default());
        assert_eq!(bound.claim(None, 10, 10).unwrap().count(), 10);
    }
}
