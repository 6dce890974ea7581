//! Connections to one destination: the idle ones, the requests that wait for one, and the dials in
//! progress.
//!
//! A dial belongs to the destination and not to a request. It is finished even if the request has
//! left or got another connection, because an abandoned handshake costs the origin as much as a
//! finished one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::OriginError;
use super::http1::Http1;
use super::http2::{FreeStream, Http2};
use super::pool::{Destination, Lease, PoolState, Protocol, ProtocolChoice, RequestBody};
use crate::bounds::{H2_ORIGIN_CONNECTIONS, ORIGIN_DIALS, ORIGIN_IDLE_MAX};
use crate::clock::Instant;
use crate::policy::Policy;
use crate::sync::lock;
use crate::units::Scheme;

/// Connections to one destination. The lock is never held across an await.
pub(super) struct OriginConnections<B: RequestBody> {
    pub(super) destination: Destination,
    state: Mutex<State<B>>,
}

/// Connection that can send a request now.
#[derive(Debug)]
pub(super) enum Ready<B: RequestBody> {
    Http1(Http1<B>),
    Http2(FreeStream<B>),
}

/// Answer to a request that waits for a connection.
pub(super) type Granted<B> = Result<Lease<B>, OriginError>;

/// Request that waits for a connection, with the policy that a dial for it follows.
struct Waiting<B: RequestBody> {
    policy: Arc<Policy>,
    granted: oneshot::Sender<Granted<B>>,
}

struct State<B: RequestBody> {
    /// Idle HTTP/1.1 connections, each with the instant since which it is idle.
    http1: Vec<(Instant, Http1<B>)>,
    http2: Vec<Http2<B>>,
    waiting: VecDeque<Waiting<B>>,
    /// Length of the queue at which requests that have left are removed from it.
    tidy_at: usize,
    dialling: usize,
    /// Protocol of the newest connection, or `None` before the first one.
    spoken: Option<Protocol>,
    /// Instant until which HTTP/2 is not offered, because the origin required HTTP/1.1.
    http1_until: Instant,
}

const TIDY_AT: usize = 64;

impl<B: RequestBody> std::fmt::Debug for OriginConnections<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = &self.destination;
        f.debug_tuple("OriginConnections").field(place).finish()
    }
}

impl<B: RequestBody> OriginConnections<B> {
    pub(super) fn new(destination: Destination) -> Self {
        let spoken = match (destination.wire, destination.origin.scheme) {
            (ProtocolChoice::Http2Prior, _) => Some(Protocol::Http2),
            (ProtocolChoice::Http1, _) | (_, Scheme::Http) => Some(Protocol::Http1),
            (ProtocolChoice::Any, Scheme::Https) => None,
        };
        let state = State {
            http1: Vec::new(),
            http2: Vec::new(),
            waiting: VecDeque::new(),
            tidy_at: TIDY_AT,
            dialling: 0,
            spoken,
            http1_until: Instant::ZERO,
        };
        Self {
            destination,
            state: Mutex::new(state),
        }
    }

    /// Takes a connection that can send now, unless other requests already wait for one.
    pub(super) fn take(&self, now: Instant) -> Option<Ready<B>> {
        let mut state = lock(&self.state);
        state.waiting.is_empty().then(|| state.take(now)).flatten()
    }

    /// Returns true if requests wait although no dial may begin for them.
    pub(super) fn is_full(&self) -> bool {
        let state = lock(&self.state);
        !state.waiting.is_empty() && state.in_progress() == 0
    }

    /// Returns true if there are HTTP/2 connections.
    pub(super) fn has_http2(&self) -> bool {
        !lock(&self.state).http2.is_empty()
    }

    /// Returns true if HTTP/2 may be offered to the origin.
    pub(super) fn offers_http2(&self, now: Instant) -> bool {
        self.destination.wire == ProtocolChoice::Any && now >= lock(&self.state).http1_until
    }

    /// Uses HTTP/1.1 only until an instant.
    pub(super) fn require_http1(&self, until: Instant) {
        let mut state = lock(&self.state);
        state.http1_until = until;
        state.spoken = Some(Protocol::Http1);
        state.http2.clear();
    }

    /// Drops the HTTP/2 connections that have ended, so that requests in their queues come back.
    pub(super) fn drop_ended(&self, now: Instant) {
        lock(&self.state).http2.retain(|known| known.is_usable(now));
    }

    /// Adds a request to the queue and returns the receiver of its connection.
    pub(super) fn enqueue(&self, policy: Arc<Policy>) -> oneshot::Receiver<Granted<B>> {
        let (granted, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        if state.waiting.len() >= state.tidy_at {
            state.waiting.retain(|known| !known.granted.is_closed());
            state.tidy_at = TIDY_AT.max(state.waiting.len() * 2);
        }
        state.waiting.push_back(Waiting { policy, granted });
        receiver
    }

    /// Adds an idle HTTP/1.1 connection. Returns true if a request waits for one.
    pub(super) fn put(&self, since: Instant, connection: Http1<B>) -> bool {
        let mut state = lock(&self.state);
        if state.http1.len() < ORIGIN_IDLE_MAX {
            state.http1.push((since, connection));
        }
        !state.waiting.is_empty()
    }

    /// Closes connections that have expired or have been idle since `oldest` or longer. Returns
    /// true if the destination is not in use any more.
    pub(super) fn forget(&self, oldest: Instant, now: Instant) -> bool {
        let mut state = lock(&self.state);
        state
            .http1
            .retain(|(since, connection)| *since > oldest && now < connection.expires);
        state
            .http2
            .retain(|connection| connection.is_usable(now) && !connection.is_idle_since(oldest));
        let unused = state.http1.is_empty() && state.http2.is_empty() && state.waiting.is_empty();
        unused && state.dialling == 0 && now >= state.http1_until
    }

    /// Returns the next waiting request together with a connection for it.
    fn next(&self, now: Instant) -> Option<(Waiting<B>, Ready<B>)> {
        let mut state = lock(&self.state);
        while state
            .waiting
            .pop_front_if(|first| first.granted.is_closed())
            .is_some()
        {}
        if state.waiting.is_empty() {
            return None;
        }
        let ready = state.take(now)?;
        state.waiting.pop_front().map(|first| (first, ready))
    }

    /// Returns the policy for a further dial and counts the dial, if one is needed.
    fn begin_dial(&self) -> Option<Arc<Policy>> {
        let mut state = lock(&self.state);
        let most = match state.spoken {
            Some(Protocol::Http1) => ORIGIN_DIALS,
            // The first connection decides the protocol, and an HTTP/2 connection serves many
            // requests.
            Some(Protocol::Http2) | None => 1,
        };
        let wanted = state.waiting.len().min(most) > state.in_progress();
        if !wanted || state.http2.len() >= H2_ORIGIN_CONNECTIONS {
            return None;
        }
        let policy = Arc::clone(&state.waiting.back()?.policy);
        state.dialling += 1;
        Some(policy)
    }

    /// Notes the end of a dial. An error is reported to the request that has waited longest, and to
    /// all of them if a further dial would fail too.
    fn end_dial(&self, opened: Result<Opened<B>, OriginError>, now: Instant) {
        let mut state = lock(&self.state);
        state.dialling -= 1;
        match opened {
            Ok(Opened::Http1(connection)) => {
                state.spoken = Some(Protocol::Http1);
                state.http1.push((now, connection));
            }
            Ok(Opened::Http2(connection)) => {
                state.spoken = Some(Protocol::Http2);
                state.http2.push(connection);
            }
            Err(error) => {
                let mut told = match error.is_passing() {
                    true => 1,
                    false => state.waiting.len(),
                };
                while told > 0
                    && let Some(first) = state.waiting.pop_front()
                {
                    told -= usize::from(first.granted.send(Err(error.clone())).is_ok());
                }
            }
        }
    }
}

impl<B: RequestBody> State<B> {
    fn take(&mut self, now: Instant) -> Option<Ready<B>> {
        self.http2.retain(|connection| connection.is_usable(now));
        let mut connections = self.http2.iter();
        if let Some(stream) = connections.find_map(Http2::free_stream) {
            return Some(Ready::Http2(stream));
        }
        // The most recently used connection is the least likely to have been closed by the origin.
        while let Some((_, mut connection)) = self.http1.pop() {
            if now < connection.expires && connection.is_fresh() {
                return Some(Ready::Http1(connection));
            }
        }
        None
    }

    /// Returns the number of dials, including HTTP/2 connections that wait for SETTINGS.
    fn in_progress(&self) -> usize {
        let unsettled = self.http2.iter().filter(|known| !known.is_settled());
        self.dialling + unsettled.count()
    }
}

impl<B: RequestBody> PoolState<B> {
    /// Gives ready connections to waiting requests, and starts the dials that are needed.
    pub(super) fn grant(self: &Arc<Self>, connections: &Arc<OriginConnections<B>>) {
        while let Some((first, ready)) = connections.next(self.recently()) {
            // A lease that is not received returns its connection.
            let _ = first.granted.send(Ok(self.lease(ready, connections)));
        }
        while let Some(policy) = connections.begin_dial() {
            let dial = Dial {
                home: Arc::clone(self),
                connections: Arc::clone(connections),
                opened: None,
            };
            self.tasks.spawn_detached(async move {
                let opened = dial.home.open(&dial.connections, &policy.egress).await;
                dial.end(opened);
            });
        }
    }
}

/// Connection that a dial has opened.
pub(super) enum Opened<B: RequestBody> {
    Http1(Http1<B>),
    Http2(Http2<B>),
}

/// Dial in progress. Its end is noted even if its task panics.
struct Dial<B: RequestBody> {
    home: Arc<PoolState<B>>,
    connections: Arc<OriginConnections<B>>,
    opened: Option<Result<Opened<B>, OriginError>>,
}

impl<B: RequestBody> Dial<B> {
    fn end(mut self, opened: Result<Opened<B>, OriginError>) {
        self.opened = Some(opened);
    }
}

impl<B: RequestBody> Drop for Dial<B> {
    fn drop(&mut self) {
        let unfinished = || Err(OriginError::Refused("the dial ended early".to_owned()));
        let opened = self.opened.take().unwrap_or_else(unfinished);
        self.connections.end_dial(opened, self.home.recently());
        self.home.grant(&self.connections);
    }
}
