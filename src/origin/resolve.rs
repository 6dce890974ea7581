//! Name resolution: first the operator's static table, then the system's resolver. Results are
//! cached for [`DNS_TTL`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::OriginError;
use crate::bounds::DNS_TTL;
use crate::policy::Egress;
use crate::units::HostName;

/// Resolver with a cache. The system's resolver does the lookups, so search domains and hosts files
/// apply.
#[derive(Debug)]
pub(super) struct Resolver {
    known: moka::sync::Cache<HostName, Arc<[IpAddr]>>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            known: moka::sync::Cache::builder()
                .max_capacity(4096)
                .time_to_live(DNS_TTL)
                .build(),
        }
    }

    /// Returns all addresses of `host`, in the order in which to try them. The result is never
    /// empty.
    ///
    /// # Errors
    /// Returns [`OriginError::Unresolved`] if the lookup fails or finds no address.
    pub(super) async fn resolve(
        &self,
        host: &HostName,
        port: u16,
        egress: &Egress,
    ) -> Result<Vec<SocketAddr>, OriginError> {
        if let Some((ip, fixed)) = egress.resolve.get(host) {
            return Ok(vec![SocketAddr::new(*ip, fixed.unwrap_or(port))]);
        }
        if let Some(ip) = host.ip() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let addresses = match self.known.get(host) {
            Some(addresses) => addresses,
            None => self.ask(host).await?,
        };
        let addresses = addresses.iter().map(|ip| SocketAddr::new(*ip, port));
        Ok(addresses.collect())
    }

    async fn ask(&self, host: &HostName) -> Result<Arc<[IpAddr]>, OriginError> {
        let fail = |cause: String| OriginError::Unresolved {
            host: host.to_string(),
            cause,
        };
        let found = tokio::net::lookup_host((host.as_str(), 0))
            .await
            .map_err(|error| fail(error.to_string()))?;
        let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(fail("the name has no address".to_owned()));
        }
        let addresses: Arc<[IpAddr]> = interleave(addresses).into();
        self.known.insert(host.clone(), Arc::clone(&addresses));
        Ok(addresses)
    }
}

/// Alternates the address families, beginning with the family of the first address (RFC 8305
/// section 4).
fn interleave(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let lead = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (mut first, mut second): (std::collections::VecDeque<_>, std::collections::VecDeque<_>) =
        addresses.into_iter().partition(|ip| ip.is_ipv6() == lead);
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let of = |texts: [&str; 5]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        let mixed = interleave(of(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]).to_vec());
        assert_eq!(mixed, of(["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]));
    }
}
