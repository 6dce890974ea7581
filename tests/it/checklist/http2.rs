//! Table F, messages: malformed HTTP/2 requests, and an origin's refusals of streams.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;
use tokio::sync::Barrier;

use super::strange_origin::{Mode, Site, TARGET, WAYS, body};
use super::streams::{DATA, END_STREAM, Ended, Field, FrameClient, encode, frame, pseudo};
use crate::harness::scripted::{Accepted, GOAWAY, RST_STREAM, RawHttp2, SETTINGS};
use crate::harness::{Client, Origin, Proto, reply};

pub(super) const MODES: [Mode; 3] = [Mode::Plain, Mode::Intercepted, Mode::Routed];

/// Starts an origin that answers `/own/TOKEN` with the token and reads every body.
pub(super) async fn tokens() -> Origin {
    let origin = Origin::with(|_, request| async move {
        let path = request.uri().path().to_owned();
        let trailers = match request.into_body().collect().await {
            Ok(read) => read.trailers().cloned(),
            Err(_) => None,
        };
        assert!(trailers.is_none_or(|trailers| trailers.is_empty()));
        reply(200, path.rsplit('/').next().unwrap())
    });
    origin.http1().start().await
}

/// Sends each request in every ingress mode, whole and byte by byte, and asserts that it is refused,
/// never leaves, and disturbs no other client.
async fn assert_malformed(requests: &[(&str, Vec<Field<'_>>)]) {
    let site = Site::before(tokens().await, TARGET).await;
    for mode in MODES {
        let valid = pseudo(&site, mode, "GET", "/bad");
        for (name, fields) in requests {
            for split in [false, true] {
                // A field without a value here has the value of a valid request.
                let fields: Vec<_> = fields
                    .iter()
                    .map(|field| match field.1 {
                        "=" => *valid.iter().find(|known| known.0 == field.0).unwrap(),
                        _ => *field,
                    })
                    .collect();
                let mut client = FrameClient::begin(&site, mode, &[], split).await;
                client.head(1, END_STREAM, &encode(&fields)).await;
                let ended = client.ended(1).await;
                println!("{name} {mode:?} {split}: {ended:?}");
                assert!(ended.is_refusal(), "{name} {mode:?} {split}: {ended:?}");
                site.assert_own((mode, Proto::Http2), "own").await;
            }
        }
    }
    assert_none_left(&site);
}

fn assert_none_left(site: &Site) {
    for arrival in site.origin.arrivals.all() {
        assert!(arrival.uri.ends_with("/own/own"), "{arrival:?}");
    }
}

const VALID: [Field<'_>; 4] = [
    (":method", "="),
    (":scheme", "="),
    (":authority", "="),
    (":path", "="),
];

/// Returns a valid request with one further field.
fn with<'a>(field: Field<'a>) -> Vec<Field<'a>> {
    VALID.into_iter().chain([field]).collect()
}

/// Returns a valid request with another value of one pseudo-header field.
fn instead<'a>(field: Field<'a>) -> Vec<Field<'a>> {
    let replaced = VALID.into_iter().map(|known| match known.0 == field.0 {
        true => field,
        false => known,
    });
    replaced.collect()
}

/// Fields that belong to one connection (connection, keep-alive, upgrade, transfer-encoding), and TE
/// other than trailers: the request is malformed.
///
/// RFC 9113 section 8.2.2.
#[tokio::test(flavor = "multi_thread")]
async fn f01_connection_specific_fields_are_malformed() {
    let fields = [
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ];
    assert_malformed(&fields.map(|field| (field.0, with(field)))).await;
}

/// Names in upper case or with a colon, CR, LF or NUL in values, and pseudo-header fields that are
/// unknown, repeated, late, missing or not valid: the request is malformed.
///
/// RFC 9113 sections 8.2.1 and 8.3.
#[tokio::test(flavor = "multi_thread")]
async fn f02_bad_names_values_and_pseudo_fields_are_malformed() {
    let late = |name| {
        let mut fields: Vec<_> = VALID.into_iter().filter(|field| field.0 != name).collect();
        fields.extend([("x-a", "1"), (name, "=")]);
        fields
    };
    let without = |name| VALID.into_iter().filter(|field| field.0 != name).collect();
    let requests: Vec<(&str, Vec<Field<'_>>)> = vec![
        ("upper case", with(("X-Upper", "1"))),
        ("space in name", with(("x a", "1"))),
        ("colon in name", with(("x:a", "1"))),
        ("empty name", with(("", "1"))),
        ("CR", with(("x-a", "1\r2"))),
        ("LF", with(("x-a", "1\n2"))),
        ("CRLF", with(("x-a", "1\r\nx-b: 2"))),
        ("NUL", with(("x-a", "1\u{0}2"))),
        ("unknown pseudo", with((":unknown", "1"))),
        ("response pseudo", with((":status", "200"))),
        ("second method", with((":method", "GET"))),
        ("second path", with((":path", "/bad"))),
        ("late path", late(":path")),
        ("late authority", late(":authority")),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("empty path", instead((":path", ""))),
        ("path without slash", instead((":path", "bad"))),
        ("space in path", instead((":path", "/a b"))),
        ("space in method", instead((":method", "GE T"))),
        ("empty method", instead((":method", ""))),
        ("bad scheme", instead((":scheme", "1:"))),
    ];
    assert_malformed(&requests).await;
}

/// A Content-Length that differs from the bytes in DATA frames, or from another Content-Length: the
/// request is malformed and never arrives as complete.
///
/// RFC 9113 section 8.1.1.
#[tokio::test(flavor = "multi_thread")]
async fn f03_a_length_that_differs_from_the_data_is_malformed() {
    let complete = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&complete);
    let origin = Origin::with(move |_, request| {
        let noted = Arc::clone(&noted);
        async move {
            let path = request.uri().path().to_owned();
            // The head of a body that is streamed may leave before the body breaks.
            if request.into_body().collect().await.is_ok() {
                noted.lock().unwrap().push(path.clone());
            }
            reply(200, path.rsplit('/').next().unwrap())
        }
    });
    let site = Site::before(origin.http1().start().await, TARGET).await;
    let cases: [(&[&str], &[u8]); 6] = [
        (&["0"], b"abc"),
        (&["5"], b"abc"),
        (&["2"], b"abcde"),
        (&["3", "4"], b"abc"),
        (&["x"], b"abc"),
        (&["5"], b""),
    ];
    for mode in MODES {
        for (lengths, data) in cases {
            for split in [false, true] {
                let mut client = FrameClient::begin(&site, mode, &[], split).await;
                let mut fields = pseudo(&site, mode, "POST", "/bad");
                fields.extend(lengths.iter().map(|length| ("content-length", *length)));
                client.head(1, 0, &encode(&fields)).await;
                client.write(&frame(DATA, END_STREAM, 1, data)).await;
                let ended = client.ended(1).await;
                println!("{lengths:?} {mode:?} {split}: {ended:?}");
                assert!(ended.is_refusal(), "{lengths:?} {mode:?}: {ended:?}");
                site.assert_own((mode, Proto::Http2), "own").await;
            }
        }
    }
    let complete = complete.lock().unwrap();
    assert!(
        complete.iter().all(|path| path == "/own/own"),
        "{complete:?}"
    );
}

/// A pseudo-header field in the trailers: no such field reaches the origin.
///
/// RFC 9113 section 8.1.
///
/// Differs: the library reads such trailers as empty instead of refusing the request. An
/// intermediary must not forward a malformed message, and what is forwarded is well formed.
#[tokio::test(flavor = "multi_thread")]
async fn f04_a_pseudo_field_in_trailers_does_not_leave() {
    // The origin asserts that trailers are absent or empty.
    let site = Site::before(tokens().await, TARGET).await;
    for mode in MODES {
        for field in [(":path", "/other"), (":status", "200"), (":unknown", "1")] {
            for split in [false, true] {
                let mut client = FrameClient::begin(&site, mode, &[], split).await;
                let fields = pseudo(&site, mode, "POST", "/trailers");
                client.head(1, 0, &encode(&fields)).await;
                client.write(&frame(DATA, 0, 1, b"abc")).await;
                client.head(1, END_STREAM, &encode(&[field])).await;
                let ended = client.ended(1).await;
                println!("{field:?} {mode:?} {split}: {ended:?}");
                assert!(
                    ended.is_refusal() || ended == Ended::Answered(200),
                    "{ended:?}"
                );
                site.assert_own((mode, Proto::Http2), "own").await;
            }
        }
    }
}

/// A header list over 64 KiB: a 431 on its stream, and the connection serves further requests. One
/// over 256 KiB: a 431, or the end of the connection.
///
/// RFC 9113 section 10.5.1, RFC 6585 section 5.
///
/// Reaches the bound `HTTP2_HEAD` on proxy, route, intercepted.
/// Reaches the bound `H2_HEADER_LIST` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn f05_a_header_list_beyond_the_bound_is_a_431() {
    let site = Site::before(tokens().await, TARGET).await;
    for mode in MODES {
        for (size, is_fatal) in [(50_000, false), (70_000, false), (300_000, true)] {
            let value = "a".repeat(size / 4);
            let mut fields = pseudo(&site, mode, "GET", "/own/large");
            fields.extend(["x-a", "x-b", "x-c", "x-d"].map(|name| (name, value.as_str())));
            let mut client = FrameClient::begin(&site, mode, &[], false).await;
            client.head(1, END_STREAM, &encode(&fields)).await;
            let ended = client.ended(1).await;
            println!("{size} {mode:?}: {ended:?}");
            let expected = if size > 65_536 { 431 } else { 200 };
            let is_closed = is_fatal && matches!(ended, Ended::GoneAway(_) | Ended::Closed);
            assert!(
                is_closed || ended == Ended::Answered(expected),
                "{size} {ended:?}"
            );
            if !is_fatal {
                let fields = pseudo(&site, mode, "GET", "/own/own");
                client.head(3, END_STREAM, &encode(&fields)).await;
                assert_eq!(client.ended(3).await, Ended::Answered(200));
            }
            site.assert_own((mode, Proto::Http2), "own").await;
        }
    }
}

/// A stream that the origin refuses, or that is above the last stream of its GOAWAY: the request is
/// sent again, also a POST.
///
/// RFC 9113 section 8.7.
#[tokio::test(flavor = "multi_thread")]
async fn f08_a_refused_stream_is_sent_again() {
    // REFUSED_STREAM, or GOAWAY with NO_ERROR or ENHANCE_YOUR_CALM and the last stream 0.
    for (kind, code) in [(RST_STREAM, 7), (GOAWAY, 0), (GOAWAY, 11)] {
        let script = move |accepted: Accepted| async move {
            let number = accepted.number;
            let stream = accepted.tls.accept(accepted.stream).await.unwrap();
            let Some(mut http2) = RawHttp2::begin(stream, &[]).await else {
                return;
            };
            let Some(first) = http2.request().await else {
                return;
            };
            match (number, kind) {
                (0, RST_STREAM) => {
                    http2.send(kind, 0, first, &[0, 0, 0, code]).await;
                }
                (0, _) => {
                    http2.send(kind, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]).await;
                    // An immediate close could reset the connection before its GOAWAY is read.
                    while http2.next().await.is_some() {}
                    return;
                }
                _ => http2.ok(first).await,
            }
            http2.serve().await;
        };
        for way in WAYS {
            let (origin, _) = Origin::scripted(&[b"h2"], script).await;
            let site = Site::before_tls(origin, TARGET).await;
            let seen = site.ask(way, "POST", "/").await;
            seen.assert_whole(200, "");
            // A stream that was refused while its connection was dialled counts as one attempt.
            println!("{kind} {code} {way:?}: {:?}", seen.all("outpace-attempts"));
        }
    }
}

/// An origin that lowers SETTINGS_MAX_CONCURRENT_STREAMS while requests are open: further requests
/// wait for a stream, and all of them end.
///
/// RFC 9113 section 5.1.2.
#[tokio::test(flavor = "multi_thread")]
async fn f09_fewer_streams_in_the_middle_end_in_no_deadlock() {
    const REQUESTS: usize = 40;
    let script = |accepted: Accepted| {
        async move {
            let number = accepted.number;
            let stream = accepted.tls.accept(accepted.stream).await.unwrap();
            // SETTINGS_MAX_CONCURRENT_STREAMS has the identifier 3.
            let mut http2 = RawHttp2::begin(stream, &[0, 3, 0, 0, 0, 10]).await.unwrap();
            let mut open = Vec::new();
            while let Some(stream) = http2.request().await {
                open.push(stream);
                if stream == 7 {
                    http2.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]).await;
                }
                // Four streams of the first connection are open when the maximum falls.
                if number > 0 || stream > 7 || open.len() >= 4 {
                    for stream in open.drain(..) {
                        http2.ok(stream).await;
                    }
                }
            }
        }
    };
    let (origin, accepted) = Origin::scripted(&[b"h2"], script).await;
    let site = Arc::new(Site::before_tls(origin, TARGET).await);
    let barrier = Arc::new(Barrier::new(REQUESTS));
    let mut tasks = tokio::task::JoinSet::new();
    for way in WAYS.into_iter().cycle().take(REQUESTS) {
        let (site, barrier) = (Arc::clone(&site), Arc::clone(&barrier));
        tasks.spawn(async move {
            barrier.wait().await;
            site.ask(way, "POST", "/").await.status
        });
    }
    let statuses = tasks.join_all().await;
    println!("{} connections", accepted.load(Ordering::SeqCst));
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

/// Two hosts with one address and one certificate: each has its own connection, so no request is
/// misdirected. A 421 of the origin is passed on.
///
/// RFC 9113 section 9.1.1, RFC 9110 section 15.5.20.
///
/// Differs: no request is repeated after a 421, because it never leaves on the connection of another
/// host. The RFC permits the repetition and does not ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn f10_connections_are_not_shared_by_hosts() {
    let origin = Origin::with(|_, request| async move {
        reply(
            421,
            request.uri().authority().map_or("-", |host| host.as_str()),
        )
    });
    let more = TARGET.replace("api.test, ", "api.test, other.test, ");
    let site = Site::before_tls(origin.start().await, &more).await;
    for (number, host) in ["api.test", "other.test"].into_iter().enumerate() {
        for proto in [Proto::Http1, Proto::Http2] {
            let mut client = Client::intercepted(&site.program, host, proto).await;
            let uri = match proto {
                Proto::Http1 => "/".to_owned(),
                Proto::Http2 => format!("https://{host}/"),
            };
            let mut request = http::Request::builder().uri(uri);
            if proto == Proto::Http1 {
                request = request.header("host", host);
            }
            let response = client.ask(request.body(body("")).unwrap()).await;
            assert_eq!(
                (response.status().as_u16(), &**response.body()),
                (421, host.as_bytes())
            );
        }
        let connections = site.origin.arrivals.connections.load(Ordering::SeqCst);
        assert_eq!(connections, number + 1, "{host}");
    }
    assert_eq!(site.origin.arrivals.count(), 4);
}
