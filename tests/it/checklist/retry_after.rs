//! Table E, `Retry-After`: values that an origin should not send.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::strange_origin::{Mode, Site, TARGET, WAYS};
use crate::harness::{Origin, Proto, reply};

/// Values of `Retry-After` that give no information.
const WITHOUT_INFORMATION: [&str; 8] = [
    "-1",
    "0",
    "soon",
    "",
    "1e99",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "1000000000",
    "18446744073709551616",
];

/// A Retry-After that is negative, zero, past, absurd or garbage: it gives no information, so the
/// backoff counts. Of several values the longest counts, and a fraction is kept.
///
/// RFC 9110 section 10.2.3.
///
/// Differs: the table reads a past date as zero, but an origin that still refuses gives no
/// information by it. The RFC leaves the use of the field to the recipient.
#[tokio::test(flavor = "multi_thread")]
async fn e14_an_absurd_retry_after_gives_no_information() {
    let waits: [(&[&str], u64); 4] = [
        (&["1.2"], 1200),
        (&["1", "2"], 2000),
        (&["2", "junk", "1"], 2000),
        (&["1, 2"], 2000),
    ];
    let nothing = WITHOUT_INFORMATION.map(|value| (vec![value], 100));
    let waits = waits.map(|(lines, least)| (lines.to_vec(), least));
    let rows: Vec<_> = nothing.into_iter().chain(waits).collect();
    let lines: Vec<_> = rows.iter().map(|row| row.0.clone()).collect();
    let refused = Arc::new(Mutex::new(HashSet::new()));
    let origin = Origin::with(move |_, request| {
        let (path, refused) = (request.uri().path().to_owned(), Arc::clone(&refused));
        let number = path.split('/').nth(1).unwrap().parse::<usize>().unwrap();
        let lines = lines[number].clone();
        async move {
            if !refused.lock().unwrap().insert(path) {
                return reply(200, "ok");
            }
            let mut answer = reply(429, "later");
            for line in lines {
                let line = line.parse().unwrap();
                answer.headers_mut().append("retry-after", line);
            }
            answer
        }
    });
    let more = format!("{TARGET}    retry: {{ backoff: 1ms }}\n");
    let site = Site::before(origin.start().await, &more).await;
    for (way, (number, (lines, least))) in WAYS.into_iter().cycle().zip(rows.iter().enumerate()) {
        let began = Instant::now();
        let seen = site
            .ask(way, "POST", &format!("/{number}/{way:?}").replace(' ', ""))
            .await;
        let took = began.elapsed();
        seen.assert_whole(200, "ok");
        assert_eq!(seen.all("outpace-attempts"), ["2"], "{lines:?}");
        let range = Duration::from_millis(least - 2)..Duration::from_secs(10);
        assert!(range.contains(&took), "{lines:?}: {took:?}");
    }
}

/// A Retry-After far in the future: the block is cut to its bound, and the client gets the origin's
/// refusal at once.
///
/// RFC 9110 section 10.2.3.
#[tokio::test(flavor = "multi_thread")]
async fn e14_a_far_retry_after_is_capped_and_told_at_once() {
    for value in ["999999999", "Fri, 31 Dec 2100 23:59:59 GMT", "100000d"] {
        let origin = Origin::with(move |_, _| async move {
            let mut answer = reply(429, "later");
            let value = value.parse().unwrap();
            answer.headers_mut().insert("retry-after", value);
            answer
        });
        let site = Site::before(origin.start().await, TARGET).await;
        let way = (Mode::Plain, Proto::Http1);
        let seen = site.ask(way, "POST", "/").await;
        seen.assert_whole(429, "later");
        assert_eq!(seen.all("retry-after"), [value]);
        // The block holds the next request for at most 15 min.
        let next = site.ask(way, "GET", "/").await;
        assert_eq!(next.status, 429, "{next:?}");
        let seconds = next.all("retry-after")[0].parse::<u64>().unwrap();
        assert!((880..=900).contains(&seconds), "{value}: {seconds}");
        assert_eq!(site.origin.arrivals.count(), 1);
    }
}
