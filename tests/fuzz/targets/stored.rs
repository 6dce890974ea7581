//! Stored rows: damaged or foreign content is an error or a value, and never opens as another one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outpace::random::Random;
use outpace::spool::{
    AttemptOutcome, BufferConfig, Item, ItemStatus, OUTCOMES, Request, SealLabel, Sealer,
    destination, step,
};

use super::{Target, text};

pub(crate) const TARGET: Target = Target {
    name: "stored",
    seeds: &[
        br#"{"url":"https://a.test/b","method":"POST","headers":[["a","b"]],"max_retries":5}"#,
        br#"{"backoff":{"type":"exponential","base":1000,"max":3600000},"guarantee":"at_most_once"}"#,
        br#"{"owner":{"client":"c"},"timeout_ms":-1,"max_age_ms":9223372036854775807,"clients":[]}"#,
        br#"{"backoff":{"type":"list","each":[-1,9223372036854775807]},"on_exhausted":"block"}"#,
        br#"{"destination":"https://a.test:443","path":"/a?b","headers":[["a","b"]],"reply":true}"#,
        br#"{"sealed":"2.0011223344556677.AAECAwQ=","client":"c","metadata":{"a":null}}"#,
        br#"{"metadata":{"n":[31.245270191439438,5e-324,0.1,-1e300]}}"#,
        b"https://u:p@A.test:8443/b?c#d",
        b"http://[::1]",
        b"2.0011223344556677.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=",
    ],
    run,
};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const LABEL: SealLabel<'_> = SealLabel {
    kind: "item",
    id: "a",
    destination: "https://a.test:443",
};
const OTHER: SealLabel<'_> = SealLabel { id: "b", ..LABEL };

fn run(data: &[u8]) {
    check_sealed(data);
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let stored = serde_json::to_string(&request).unwrap();
        let again = serde_json::from_str::<Request>(&stored).unwrap();
        assert_eq!(again, request);
        check_steps(&BufferConfig::default(), &request);
    }
    if let Ok(config) = serde_json::from_slice::<BufferConfig>(data) {
        let stored = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<BufferConfig>(&stored).unwrap(),
            config
        );
        check_steps(&config, &Request::default());
    }
    if let Some(url) = text(data) {
        let named = destination(url);
        assert_eq!(destination(&named), named, "{url:?} has two destinations");
    }
}

/// Checks that nothing opens except what was sealed under the same key and label.
fn check_sealed(data: &[u8]) {
    let sealer = Sealer::new([KEY], Random::seeded(7));
    assert!(sealer.open(&LABEL, Bytes::copy_from_slice(data)).is_err());
    assert!(text(data).is_none_or(|text| sealer.open_text(&LABEL, text).is_err()));
    let sealed = sealer.seal(&LABEL, Bytes::copy_from_slice(data)).unwrap();
    assert_eq!(sealer.open(&LABEL, sealed.clone()).unwrap(), data);
    assert!(sealer.open(&OTHER, sealed.clone()).is_err());
    let at = data.iter().fold(0, |sum, byte| sum + usize::from(*byte)) % sealed.len();
    let mut damaged = sealed.to_vec();
    damaged[at] ^= 1;
    assert!(
        sealer.open(&LABEL, damaged.into()).is_err(),
        "byte {at} does not matter"
    );
    assert!(sealer.open(&LABEL, sealed.slice(..at)).is_err());
    let written = sealer.seal_text(&LABEL, data.to_vec()).unwrap();
    assert_eq!(sealer.open_text(&LABEL, &written).unwrap(), data);
}

/// Takes every decision about an item with these numbers.
fn check_steps(config: &BufferConfig, request: &Request) {
    let item = Item {
        id: Arc::from("a"),
        buffer: 1,
        seq: 1,
        status: ItemStatus::InFlight,
        request: request.clone(),
        kept: 0,
        not_before: config.timeout_ms,
        expires: config.max_age_ms,
        attempts: config.max_retries,
        retries: config.max_retries,
        refusals: config.concurrency,
        maybe_duplicate: false,
        finished: None,
        last_status: None,
        last_error: None,
    };
    let answered = [200, 404, 429, 503].map(|status| AttemptOutcome::Answered {
        status,
        retry_after: Some(Duration::MAX).filter(|_| status > 400),
    });
    let others = [
        AttemptOutcome::Held {
            wait: Duration::MAX,
        },
        AttemptOutcome::Unsent { passing: true },
        AttemptOutcome::Unknown,
        AttemptOutcome::Interrupted,
    ];
    for outcome in answered.iter().chain(&others) {
        for now in [0, 1_792_567_620_000, i64::MAX] {
            let next = step(&item, config, outcome, now, 0.5);
            let is_known = OUTCOMES.contains(&next.word) || next.word == "expired";
            assert!(is_known, "{}", next.word);
            assert!(next.status != ItemStatus::Waiting || next.not_before >= now);
        }
    }
}
