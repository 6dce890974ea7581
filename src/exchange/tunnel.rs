//! Tunnel of a CONNECT that outpace relays without reading it.
//!
//! The connection is paced, because its requests are not visible. Every refusal precedes the 200,
//! because no error response is possible after it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::admission::ConnectionSource;
use super::error::Error;
use super::idle::timeouts;
use super::record::{Ingress, Record, Recording};
use super::{Arrival, Exchange, Outgoing};
use crate::bounds::BODY_IDLE;
use crate::origin::{self, OriginPermit, Pool};
use crate::pace::{Ticket, Turn};
use crate::policy::Access;
use crate::tunnel;

/// Open connection to an origin, ready to be joined to the client's connection.
#[derive(Debug)]
pub struct Tunnel {
    origin: TcpStream,
    /// Permit of the connection to the origin.
    permit: OriginPermit,
    turn: Option<Turn>,
    record: Box<Recording>,
    access: Access,
    /// Time for which a side may take no bytes.
    untaken: Duration,
}

impl Exchange {
    /// Connects to the CONNECT's host after a wait for a turn of its target, if it has one.
    /// `max_wait` can only shorten the max wait of the target.
    ///
    /// # Errors
    /// Returns the error with the record, which the refusal of the CONNECT ends.
    pub async fn open_tunnel(
        &self,
        arrival: &Arrival,
        max_wait: Option<Duration>,
    ) -> Result<Tunnel, (Error, Box<Recording>)> {
        let mut record = self.recorder.begin(Ingress::Tunnel, &arrival.client);
        record.method = http::Method::CONNECT;
        record.origin = Some(arrival.origin.clone());
        let connected = tokio::select! {
            biased;
            connected = self.connect_tunnel(arrival, max_wait, &mut record) => connected,
            () = arrival.client.access.revoked() => Err(arrival.revoked()),
        };
        match connected {
            Ok((turn, (origin, permit))) => {
                record.attempts = 1;
                record.status = 200;
                Ok(Tunnel {
                    origin,
                    permit,
                    turn,
                    record,
                    access: arrival.client.access.clone(),
                    untaken: Self::untaken(arrival),
                })
            }
            Err(error) => Err((error, record)),
        }
    }

    /// Returns the time for which a side of the tunnel may take no bytes.
    fn untaken(arrival: &Arrival) -> Duration {
        let Arrival { origin, policy, .. } = arrival;
        let target = policy.target(&origin.host, origin.port);
        target.map_or(BODY_IDLE, |target| target.body_idle)
    }

    async fn connect_tunnel(
        &self,
        arrival: &Arrival,
        max_wait: Option<Duration>,
        record: &mut Record,
    ) -> Result<(Option<Turn>, TunnelConnection), Error> {
        let connections = Dialled {
            pool: &self.pool,
            arrival,
        };
        let (Some(target), _) = self.match_target(arrival, record)? else {
            return Ok((None, connections.acquire().await?));
        };
        let max_wait = max_wait.map_or(target.max_wait, |wait| wait.min(target.max_wait));
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: target.scope_of_connection(
                arrival.client.caller(),
                Some(arrival.client.address),
                Some(&arrival.origin.host),
            ),
            arrived: record.began,
            deadline: self.clock.now() + max_wait,
            share: arrival.client.share.clone(),
            credential: None,
            probes: Vec::new(),
        };
        let (turn, stream) = self.turn_on(ticket, record, &connections).await?;
        Ok((Some(turn), stream))
    }
}

impl Tunnel {
    /// Relays until both sides end, no byte moves for `TUNNEL_IDLE`, a side takes no bytes for the
    /// target's `body_idle_timeout` or the client's access is revoked. Holds the turn's permits for the whole relay.
    pub async fn relay<C>(mut self, client: C, exchange: &Exchange)
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let revoked = self.access.revoked();
        let (timeouts, clock) = (timeouts(self.untaken), &exchange.clock);
        let passed = tunnel::relay(client, self.origin, timeouts, clock, revoked).await;
        self.record.relayed(&passed, self.untaken);
        drop((self.turn, self.permit));
        self.record.end();
    }
}

/// Connection of a tunnel to its origin, with its permit.
type TunnelConnection = (TcpStream, OriginPermit);

/// Connections of one tunnel, each dialled anew. The relay notices if the origin has closed one.
struct Dialled<'a> {
    pool: &'a Pool<Outgoing>,
    arrival: &'a Arrival,
}

impl ConnectionSource for Dialled<'_> {
    type Connection = TunnelConnection;

    fn acquire(&self) -> impl Future<Output = Result<TunnelConnection, origin::OriginError>> {
        let Arrival { origin, policy, .. } = self.arrival;
        self.pool.tcp(origin, &policy.egress)
    }
}
