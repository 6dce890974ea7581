//! Choice of the scope that a refusal of the origin blocks, and the origin's words for operators.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::Exchange;
use super::plan::Plan;
use super::refusal::unblock_command;
use crate::bounds::{BLOCK_TEXT, RETRY_WAIT_MIN};
use crate::clock::Instant;
use crate::ledger::{BlockCause, BlockScope, ScopedBlock};
use crate::pace;
use crate::policy::{KeySecret, Limit, LimitKey, Scope, Source, Target};
use crate::semantics::is_credential;
use crate::signals::{Signal, SignalScope};

/// Builds the block of a refused request until `until`, as the origin and the block's cap set it.
pub(super) fn block_of(
    plan: &Plan<'_>,
    target: &Target,
    signal: &Signal,
    status: u16,
    (now, until): (Instant, Instant),
    secret: &KeySecret,
) -> ScopedBlock {
    let credential = plan.credential.as_ref();
    let credential = credential.map(|value: &HeaderValue| pace::digest(value, secret));
    let (field, value) = signal.source.clone().unwrap_or_default();
    let path = plan.template.path().path();
    let asked = signal.demand.not_before;
    ScopedBlock {
        scope: scope_of(&signal.scope, target, &plan.scope, credential.as_ref()),
        since: now,
        until,
        asked: asked.unwrap_or(Instant::ZERO),
        longer: asked.is_some_and(|asked| asked > now + target.block_max),
        cause: BlockCause {
            status,
            field: cut(&field),
            value: cut(&value),
            path: cut(path),
        },
        rest: Instant::ZERO,
    }
}

impl Exchange {
    /// Blocks the scope of work that its origin has refused, as a worker reports it. Without `after`
    /// the block lasts for the first backoff of the target. Returns the scope and the block's length.
    pub fn refuse_work(
        &self,
        target: &Arc<Target>,
        scope: &Scope,
        after: Option<Duration>,
    ) -> (BlockScope, Duration) {
        let now = self.clock.now();
        let wait = after.unwrap_or(target.retry.backoff).max(RETRY_WAIT_MIN);
        let value = after.map_or_else(String::new, |after| after.as_secs_f64().to_string());
        let block = ScopedBlock {
            scope: scope_of(&SignalScope::Unknown, target, scope, None),
            since: now,
            until: now + wait.min(target.block_max),
            asked: after.map_or(Instant::ZERO, |after| now + after),
            longer: wait > target.block_max,
            cause: BlockCause {
                status: 429,
                field: after.map_or("", |_| "retry_after").into(),
                value: cut(&value),
                path: "a report".into(),
            },
            rest: Instant::ZERO,
        };
        let told = (block.scope.clone(), block.until.since(now));
        self.impose(target, block);
        self.metrics_of(target).limited();
        told
    }

    /// Adds a block of the target and logs it with its cause.
    pub(super) fn impose(&self, target: &Arc<Target>, block: ScopedBlock) {
        let wait = |until: Instant| (until.since(block.since).as_secs_f64() * 1e3).round() / 1e3;
        tracing::info!(target_name = %target.name, scope = %block.scope, status = block.cause.status,
            field = %block.cause.field, value = %block.cause.value, path = %block.cause.path,
            wait_s = wait(block.until), origin_wait_s = block.asked().map(wait),
            remedy = unblock_command(&target.name, &block.scope),
            "the origin refused a request; its scope is blocked");
        self.pacer.impose(target, block);
    }
}

/// Chooses the scope that a signal blocks. Without a statement of the origin it is the most specific
/// keyed limit of the request, then its matching limit, and then the target. Without a keyed limit
/// the block concerns the client's own credential only.
fn scope_of(
    said: &SignalScope,
    target: &Target,
    scope: &Scope,
    credential: Option<&Arc<str>>,
) -> BlockScope {
    let applied = || {
        let limits = scope.limits.iter();
        limits.filter_map(|index| Some((index, target.limits.get(index)?)))
    };
    let of_limit = |(index, limit): (usize, &Limit)| BlockScope {
        limit: Some(Arc::clone(&limit.name)),
        key: scope
            .shared_key(index)
            .filter(|_| limit.key.is_some())
            .cloned(),
        credential: None,
    };
    let is_keyed = applied().any(|(_, limit)| limit.key.is_some());
    let own = |scope: BlockScope| BlockScope {
        credential: credential.cloned().filter(|_| !is_keyed),
        ..scope
    };
    let is_of_credential = |source: &Source| match source {
        Source::Header(name) => is_credential(name.as_str()),
        _ => false,
    };
    let by_credential = |limit: &Limit| {
        let sources = limit.key.as_ref().map_or(&[][..], LimitKey::sources);
        sources.iter().any(is_of_credential)
    };
    match said {
        SignalScope::Target => return BlockScope::default(),
        SignalScope::Credential => {
            let keyed = applied().find(|(_, limit)| by_credential(limit));
            return keyed.map_or_else(|| own(BlockScope::default()), of_limit);
        }
        SignalScope::Resource(name) => {
            let named = applied().find(|(_, limit)| *limit.name == **name);
            if let Some(named) = named {
                return own(of_limit(named));
            }
        }
        SignalScope::Unknown | SignalScope::Host | SignalScope::Endpoint | SignalScope::Object => {}
    }
    let rank = |limit: &Limit| {
        let is_matched = limit.matcher.is_some();
        (limit.key.is_some(), is_matched, by_credential(limit))
    };
    let narrow = applied().filter(|(_, limit)| limit.key.is_some() || limit.matcher.is_some());
    // The first of equal limits counts.
    let best = narrow.first_max_by_key(|(_, limit)| rank(limit));
    own(best.map_or_else(BlockScope::default, of_limit))
}

/// Maximum of an iterator by a key, of which the first of equal elements counts.
trait FirstMax: Iterator + Sized {
    fn first_max_by_key<K: Ord>(self, key: impl Fn(&Self::Item) -> K) -> Option<Self::Item> {
        self.reduce(|best, next| if key(&next) > key(&best) { next } else { best })
    }
}

impl<I: Iterator> FirstMax for I {}

/// Returns the beginning of a text for logs and messages. Other characters than visible ASCII and
/// blanks become question marks.
fn cut(text: &str) -> Arc<str> {
    let shown = |c: char| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    };
    text.chars()
        .take(BLOCK_TEXT)
        .map(shown)
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Bound, LimitSet, Matcher};

    fn limit(name: &str, key: Option<&'static str>, matched: bool) -> Limit {
        let key = key.map(|name| match name {
            "/model" => Source::Json(name.into()),
            name => Source::Header(http::HeaderName::from_static(name)),
        });
        Limit {
            key: key.map(Into::into),
            matcher: matched.then(Matcher::default),
            ..Limit::new(name, Bound::Concurrent(1))
        }
    }

    /// Returns the limit, key and credential that a signal blocks, for a request with key `kN` in
    /// the limit at position N.
    fn chosen(said: &SignalScope, limits: Vec<Limit>, credential: Option<&str>) -> String {
        let mut set = LimitSet::default();
        (0..limits.len()).for_each(|index| set.insert(index));
        let keys = (0..limits.len()).map(|index| (index, format!("k{index}").into()));
        let scope = Scope::plain(set).with(keys.collect(), Vec::new());
        let target = Target::named("t", limits);
        let BlockScope {
            limit,
            key,
            credential,
        } = scope_of(said, &target, &scope, credential.map(Into::into).as_ref());
        let shown = [limit, key, credential]
            .map(|part| part.map_or("-".to_owned(), |part| part.to_string()));
        shown.join(" ")
    }

    #[test]
    fn p7_a_signal_blocks_the_most_specific_scope_of_its_request() {
        use SignalScope::{Credential, Endpoint, Host, Object, Resource, Target as All, Unknown};
        let all = || limit("all", None, false);
        let search = || limit("search", None, true);
        let key = || limit("key", Some("authorization"), false);
        let model = || limit("model", Some("/model"), false);
        let page = || limit("page", Some("/model"), true);
        let search_pool = Resource("search".into());
        let other_pool = Resource("other".into());
        for (said, limits, credential, expected) in [
            (&Unknown, vec![all()], None, "- - -"),
            (&Unknown, vec![all()], Some("c"), "- - c"),
            (&Unknown, vec![all(), search()], None, "search - -"),
            (&Unknown, vec![all(), search()], Some("c"), "search - c"),
            (&Unknown, vec![all(), key()], Some("c"), "key k1 -"),
            (&Unknown, vec![model(), key()], Some("c"), "key k1 -"),
            (&Unknown, vec![search(), model()], None, "model k1 -"),
            (&Unknown, vec![key(), page()], None, "page k1 -"),
            (&Host, vec![all()], Some("c"), "- - c"),
            (&Endpoint, vec![all(), search()], None, "search - -"),
            (&Object, vec![key()], None, "key k0 -"),
            (&All, vec![key(), page()], Some("c"), "- - -"),
            (&Credential, vec![page(), key()], Some("c"), "key k1 -"),
            (&Credential, vec![all()], Some("c"), "- - c"),
            (&Credential, vec![all()], None, "- - -"),
            (&search_pool, vec![search(), all()], Some("c"), "search - c"),
            (&other_pool, vec![search(), key()], None, "key k1 -"),
        ] {
            assert_eq!(chosen(said, limits, credential), expected, "{said:?}");
        }
    }

    /// Reaches the bound `BLOCK_TEXT`.
    #[test]
    fn p10_closed_the_words_of_an_origin_are_short_and_visible() {
        let long = "9".repeat(5000);
        let short = "9".repeat(BLOCK_TEXT);
        for (text, shown) in [
            ("30", "30"),
            ("a\u{1b}[2Jb", "a?[2Jb"),
            ("\u{202e}x\n", "?x?"),
            (&long, &short),
        ] {
            assert_eq!(&*cut(text), shown);
        }
    }
}
