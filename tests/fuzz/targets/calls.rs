//! Bodies and queries of API calls: an accepted buffer or item can be stored and read again.

use outpace::admin::{Question, explain};
use outpace::config::{Environment, parse};
use outpace::policy::Policy;
use outpace::spool::{BufferConfig, BufferSpec, ItemSpec};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "calls",
    seeds: &[
        br#"{"name":"a","url":"https://a.test/b","method":"put","headers":{"A":"b"},"rate_limit":0.5}"#,
        br#"{"max_retries":3,"backoff":[1,"2s"],"order":"strict","timeout":"30s","max_age":3600}"#,
        br#"{"backoff":{"type":"linear","base":1,"max":"1h"},"concurrency":10,"order":"none"}"#,
        br#"{"delivery":"at_most_once","on_exhausted":"block","allow":{"methods":["a"],"paths":["*"]}}"#,
        br#"{"body":"{\"id\":1}","headers":{"A":"b"},"path":"/a","delay":1.5,"dedup_key":"a"}"#,
        br#"{"json":[1e300,null],"not_before":"2026-11-21T12:00:00Z","metadata":{"a":["\u0000"]}}"#,
        br#"{"body_base64":"AAE=","expires_at":"2036-11-21T12:00:00Z"}"#,
        b"url=https%3A%2F%2Fa.test%2Fv1&method=POST&header=X-User:+a&client=c&body=%7B%22a%22:1%7D",
        b"url=http://[::1]:80/?user=a%00b&header=x-user:%C3%A9",
    ],
    run,
};

fn run(data: &[u8]) {
    if let Ok(spec) = serde_json::from_slice::<BufferSpec>(data)
        && let Ok(config) = spec.apply(BufferConfig::default())
    {
        check_buffer(&config);
        assert_eq!(
            spec.apply(config.clone()),
            Ok(config),
            "a second time changes it"
        );
    }
    if let Ok(item) = serde_json::from_slice::<ItemSpec>(data) {
        let (bytes, now) = (item.bytes(), 1_792_567_620_000);
        assert!(bytes.is_err() || bytes.unwrap().len() <= 6 * data.len());
        if let Ok((from, until)) = item.times(now, &BufferConfig::default()) {
            assert!(until.is_none_or(|until| until > from));
        }
    }
    let pairs = url::form_urlencoded::parse(data).into_owned();
    let question = Question::from_pairs(pairs);
    let written = question
        .pairs()
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()));
    assert_eq!(Question::from_pairs(written), question);
    thread_local!(static POLICY: Policy = policy());
    if let Ok(told) = POLICY.with(|policy| explain(policy, &question, None)) {
        assert_eq!(told["url"], *question.url);
    }
}

fn check_buffer(config: &BufferConfig) {
    let stored = serde_json::to_string(config).unwrap();
    assert_eq!(
        serde_json::from_str::<BufferConfig>(&stored).unwrap(),
        *config
    );
    assert!((1..=1000).contains(&config.concurrency));
    assert!(
        config
            .rate_limit
            .is_none_or(|rate| rate.is_finite() && rate > 0.0)
    );
    assert!(config.timeout_ms >= 0 && config.max_age_ms.is_none_or(|age| age >= 0));
    for (retries, draw) in [(0, 0.0), (1, 0.5), (u32::MAX, 0.999)] {
        assert!(config.backoff.wait(retries, draw) >= 0);
    }
}

fn policy() -> Policy {
    let text = "clients: [{ name: c, token: 0123456789abcdef }]\n\
                targets:\n\
                - name: a\n\
                \x20 hosts: [a.test, \"*.b.test\", \"[::1]\"]\n\
                \x20 limits:\n\
                \x20 - { rate: 10/1s, key: \"header:x-user\", match: { path: \"/v1/*\" } }\n\
                \x20 - { rate: 10/1s, key: \"query:user\" }\n\
                \x20 - { rate: 10/1s, key: path }\n";
    let environment: &Environment = &|_| None;
    let loaded = parse("config.yaml".as_ref(), text, environment, 1);
    loaded.unwrap().config.policy
}
