//! Tunnel of a CONNECT that outpace relays without reading it.
//!
//! The connection is paced, because its requests are not visible. Every refusal precedes the 200,
//! because no error response is possible after it.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::admission::ConnectionSource;
use super::error::Error;
use super::record::{Ingress, Record, Recording};
use super::{Arrival, Exchange};
use crate::bounds::TUNNEL_IDLE;
use crate::origin::{self, Connector};
use crate::pace::{Ticket, Turn};
use crate::policy::Access;
use crate::tunnel;

/// Open connection to an origin, ready to be joined to the client's connection.
#[derive(Debug)]
pub struct Tunnel {
    origin: TcpStream,
    turn: Option<Turn>,
    record: Box<Recording>,
    access: Access,
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
        max_wait: Option<std::time::Duration>,
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
            Ok((turn, origin)) => {
                record.attempts = 1;
                record.status = 200;
                Ok(Tunnel {
                    origin,
                    turn,
                    record,
                    access: arrival.client.access.clone(),
                })
            }
            Err(error) => Err((error, record)),
        }
    }

    async fn connect_tunnel(
        &self,
        arrival: &Arrival,
        max_wait: Option<std::time::Duration>,
        record: &mut Record,
    ) -> Result<(Option<Turn>, TcpStream), Error> {
        let connections = Dialled {
            connector: self.pool.connector(),
            arrival,
        };
        let (Some(target), _) = self.match_target(arrival, record)? else {
            return Ok((None, connections.acquire().await?));
        };
        let max_wait = max_wait.map_or(target.max_wait, |wait| wait.min(target.max_wait));
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: target.scope_of_tunnel(arrival.client.caller()),
            arrived: record.began,
            deadline: self.clock.now() + max_wait,
            share: arrival.client.share.clone(),
        };
        let (turn, stream) = self.turn_on(&ticket, record, &connections).await?;
        Ok((Some(turn), stream))
    }
}

impl Tunnel {
    /// Relays until both sides end, no byte moves for `TUNNEL_IDLE` or the client's access is
    /// revoked. Holds the turn's permits for the whole relay.
    pub async fn relay<C>(mut self, client: C, exchange: &Exchange)
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let revoked = self.access.revoked();
        let passed =
            tunnel::relay(client, self.origin, TUNNEL_IDLE, &exchange.clock, revoked).await;
        (self.record.sent, self.record.received) = (passed.sent, passed.received);
        drop(self.turn);
        self.record.end();
    }
}

/// Connections of one tunnel, each dialled anew. The relay notices if the origin has closed one.
struct Dialled<'a> {
    connector: &'a Connector,
    arrival: &'a Arrival,
}

impl ConnectionSource for Dialled<'_> {
    type Connection = TcpStream;

    fn acquire(&self) -> impl Future<Output = Result<TcpStream, origin::OriginError>> {
        let Arrival { origin, policy, .. } = self.arrival;
        self.connector.tcp(origin, &policy.egress)
    }
}
