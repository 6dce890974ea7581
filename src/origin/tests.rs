//! Connections over a long time, on a virtual clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::bounds::{ORIGIN_AGE, ORIGIN_IDLE, ORIGIN_IDLE_MAX};
use crate::clock::Clock;
use crate::policy::{Egress, Policy};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::units::{HostName, Origin, Scheme};

const MINUTE: Duration = Duration::from_secs(60);

struct Setup {
    pool: Pool<Full<Bytes>>,
    clock: Clock,
    policy: Arc<Policy>,
    listener: TcpListener,
    destination: Destination,
}

/// Connections that a pool of these tests may open. The listener queues few that are not accepted.
const MAX: usize = 20;

async fn setup(wire: ProtocolChoice) -> Setup {
    setup_of(wire, MAX).await
}

/// Returns a pool of at most `max` connections, with its only origin.
async fn setup_of(wire: ProtocolChoice, max: usize) -> Setup {
    let clock = Clock::anchored(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let egress = Egress {
        allow: vec!["127.0.0.1".parse().unwrap()],
        ..Egress::default()
    };
    let mut policy = Policy::default();
    policy.egress = egress;
    let connector = Connector::new(&Roots::load([]), None).unwrap();
    let origin = Origin {
        scheme: Scheme::Http,
        host: HostName::parse("127.0.0.1").unwrap(),
        port: listener.local_addr().unwrap().port(),
    };
    Setup {
        pool: Pool::new(connector, max, clock.clone(), Tasks::new(), Metrics::new()),
        clock,
        policy: Arc::new(policy),
        listener,
        destination: Destination {
            origin,
            wire,
            owner: None,
        },
    }
}

impl Setup {
    async fn acquire(&self) -> Lease<Full<Bytes>> {
        let acquired = self.pool.acquire(&self.destination, &self.policy);
        acquired.await.unwrap()
    }

    /// Sends a request and reads its response to the end.
    async fn ask(&self, lease: Lease<Full<Bytes>>) -> http::StatusCode {
        let request = Request::get("http://127.0.0.1/");
        let request = request.header("host", "a").body(Full::default()).unwrap();
        let deadline = self.clock.now() + MINUTE * 60;
        let response = lease.send(request, deadline, &ClientLink::default()).await;
        let response = response.unwrap();
        let status = response.status();
        response.into_body().collect().await.unwrap();
        status
    }
}

/// Answers each request of one HTTP/1.1 connection with 200.
async fn serve(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    while let Ok(1..) = stream.read(&mut bytes).await {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(response).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_request_over_http_2_causes_no_ping() {
    for silent in [2, 6, 14] {
        let setup = setup(ProtocolChoice::Http2Prior).await;
        let origin = async {
            let (mut stream, _) = setup.listener.accept().await.unwrap();
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            stream
                .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            let mut pings = 0;
            let answer_at = setup.clock.now() + MINUTE * silent;
            loop {
                let mut head = [0; 9];
                tokio::select! {
                    read = stream.read_exact(&mut head) => read.unwrap(),
                    () = setup.clock.sleep_until(answer_at) => break,
                };
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                stream.read_exact(&mut payload).await.unwrap();
                pings += usize::from(head[3] == 6);
            }
            // HEADERS with `:status: 200` and END_STREAM on stream 1.
            let headers = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
            stream.write_all(&headers).await.unwrap();
            (pings, stream)
        };
        let asked = async { setup.ask(setup.acquire().await).await };
        let ((pings, _stream), status) = tokio::join!(origin, asked);
        assert_eq!((pings, status.as_u16()), (0, 200), "{silent} min");
    }
}

/// Reaches the bound `ORIGIN_AGE`.
#[tokio::test(start_paused = true)]
async fn a_connection_in_steady_use_is_replaced_at_its_age() {
    let setup = setup(ProtocolChoice::Any).await;
    let accepting = async {
        let mut accepted = 0;
        let end = setup.clock.now() + ORIGIN_AGE * 5;
        loop {
            tokio::select! {
                connected = setup.listener.accept() => {
                    accepted += 1;
                    Tasks::new().spawn_detached(serve(connected.unwrap().0));
                }
                () = setup.clock.sleep_until(end) => return accepted,
            }
        }
    };
    let asking = async {
        let end = setup.clock.now() + ORIGIN_AGE * 5 - MINUTE / 60;
        while setup.clock.now() < end {
            setup.pool.reap();
            assert_eq!(setup.ask(setup.acquire().await).await, 200);
            setup
                .clock
                .sleep_until(setup.clock.now() + MINUTE / 60)
                .await;
        }
    };
    let (accepted, ()) = tokio::join!(accepting, asking);
    assert!((5..=7).contains(&accepted), "{accepted} connections");
}

/// Reaches the bound `ORIGIN_IDLE`.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let setup = setup(ProtocolChoice::Any).await;
    let accepting = async {
        let stream = setup.listener.accept().await.unwrap().0;
        serve(stream).await;
    };
    let asking = async {
        assert_eq!(setup.ask(setup.acquire().await).await, 200);
        assert!(setup.pool.idle(&setup.destination).is_some());
        setup
            .clock
            .sleep_until(setup.clock.now() + ORIGIN_IDLE)
            .await;
        setup.pool.reap();
        assert!(setup.pool.idle(&setup.destination).is_none());
    };
    // The origin's side ends because the connection is closed.
    tokio::join!(accepting, asking);
}

#[tokio::test(start_paused = true)]
async fn a_dial_whose_request_has_left_is_pooled() {
    let setup = setup(ProtocolChoice::Any).await;
    for _ in 0..3 {
        let mut left = Box::pin(setup.acquire());
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(left.as_mut().poll(cx)));
        assert!(once.await.is_pending());
    }
    let (stream, _) = setup.listener.accept().await.unwrap();
    Tasks::new().spawn_detached(serve(stream));
    assert_eq!(setup.ask(setup.acquire().await).await, 200);
    assert!(setup.pool.idle(&setup.destination).is_some());
}

/// More destinations than connections: idle connections make room, and if all are in use, a further
/// one waits.
#[tokio::test]
async fn p13_isolation_idle_connections_make_room_for_other_destinations() {
    let setup = setup(ProtocolChoice::Http1).await;
    let destination = |owner: usize| Destination {
        owner: u64::try_from(owner).ok(),
        ..setup.destination.clone()
    };
    for owner in 0..MAX * 3 {
        let destination = destination(owner);
        let lease = setup.pool.acquire(&destination, &setup.policy);
        drop(lease.await.unwrap());
    }
    let mut leases = Vec::new();
    for owner in 0..MAX {
        let destination = destination(owner);
        let lease = setup.pool.acquire(&destination, &setup.policy);
        leases.push(lease.await.unwrap());
    }
    // A further connection waits, and gets the place of one that becomes idle.
    let egress = &setup.policy.egress;
    let tunnel = setup.pool.tcp(&setup.destination.origin, egress);
    let mut tunnel = std::pin::pin!(tunnel);
    let early = tokio::time::timeout(Duration::from_secs(1), tunnel.as_mut()).await;
    assert!(early.is_err());
    drop(leases.pop());
    let opened = tunnel.await.unwrap();
    drop((opened, leases));
}

/// If all connections to origins are in use, a request waits and is then refused as `origin-busy`.
///
/// Reaches the bound `CONNECT_TIMEOUT`.
#[tokio::test(start_paused = true)]
async fn p14_a_request_waits_for_the_permit_of_a_connection_for_a_bounded_time() {
    let setup = setup(ProtocolChoice::Http1).await;
    let mut permits = Vec::new();
    for _ in 0..MAX {
        permits.push(setup.pool.0.permit().await.unwrap());
    }
    let began = setup.clock.now();
    let refused = setup.pool.0.permit().await.err().unwrap();
    assert!(matches!(refused, OriginError::Busy), "{refused}");
    assert_eq!(setup.clock.now().since(began).as_secs(), 15);
    permits.pop();
    assert!(setup.pool.0.permit().await.is_ok());
}

/// Reaches the bound `ORIGIN_IDLE_MAX`.
#[tokio::test]
async fn p14_the_idle_connections_to_an_origin_are_bounded() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let setup = setup_of(ProtocolChoice::Http1, 1000).await;
    let accepting = async {
        loop {
            let stream = setup.listener.accept().await.unwrap().0;
            Tasks::new().spawn_detached(serve(stream));
        }
    };
    let counting = async {
        let mut leases = Vec::new();
        for _ in 0..ORIGIN_IDLE_MAX + 9 {
            leases.push(setup.acquire().await);
        }
        drop(leases);
        let mut idle = Vec::new();
        while let Some(lease) = setup.pool.idle(&setup.destination) {
            idle.push(lease);
        }
        idle.len()
    };
    let idle = tokio::select! {
        () = accepting => unreachable!("the origin accepts without an end"),
        idle = counting => idle,
    };
    assert_eq!(idle, ORIGIN_IDLE_MAX);
}
