//! Texts of the refusals by the pacer, with their numbers.

use std::sync::Arc;
use std::time::Duration;

use super::admission::{AdmissionContext, AttemptError};
use super::error::Error;
use super::reason::Reason;
use crate::bounds::LEDGER_GAP_WAIT;
use crate::clock::Instant;
use crate::ledger::{BlockCause, BlockScope, LedgerGap, ScopedBlock};
use crate::pace::{Refusal, RefusalKind, Ticket};

impl AdmissionContext<'_> {
    /// Builds the refusal of the request with its numbers.
    pub(super) fn refused(&self, ticket: &Ticket, refusal: &Refusal) -> AttemptError {
        let now = self.clock.now();
        let is_late = refusal.kind == RefusalKind::WaitTooLong;
        let by_block = match &refusal.blocked {
            Some(block) => Some((**block).clone()),
            None if is_late => self
                .pacer
                .target_block(&ticket.target)
                .filter(|block| block.next_attempt() > ticket.deadline),
            None => None,
        };
        let is_unbooked = is_late && by_block.is_none();
        let gap = is_unbooked.then(|| self.pacer.gap(&ticket.target, &ticket.scope));
        let error = match (by_block, gap.flatten()) {
            (Some(block), _) => held(ticket, refusal, &block, now),
            (None, Some(gap)) => unavailable(ticket, &gap, now),
            (None, None) => refused(ticket, refusal, now),
        };
        AttemptError::Refused(error)
    }
}

/// Builds the refusal of a request that the ledger cannot book, with the cause and the time.
fn unavailable(ticket: &Ticket, gap: &LedgerGap, now: Instant) -> Error {
    let name = &ticket.target.name;
    let limit = gap.zero.and_then(|index| ticket.target.limits.get(index));
    let since = match gap.since {
        Some(since) => format!("for {}", seconds(now.since(since))),
        None => "since the start".to_owned(),
    };
    let share = limit.map_or_else(String::new, |limit| {
        format!(
            ", and the fallback share of this replica is nothing of limit `{}` ({})",
            limit.name, limit.bound
        )
    });
    let after = match gap.until {
        Some(until) => format!(
            "; its fallback share applies in {}",
            seconds(until.since(now))
        ),
        None => String::new(),
    };
    let cause = &gap.cause;
    let detail = format!(
        "the ledger of target `{name}` has been unreachable {since}{share}{after}: {cause}"
    );
    let wait = gap.until.map_or(LEDGER_GAP_WAIT, |until| until.since(now));
    let mut error = Error::new(Reason::LedgerUnavailable, detail);
    error.limit = limit.map(|limit| Arc::clone(&limit.name));
    error.after(wait)
}

/// Builds the refusal of a request that a block holds, in the words of the origin.
fn held(ticket: &Ticket, refusal: &Refusal, block: &ScopedBlock, now: Instant) -> Error {
    let (name, wait) = (&ticket.target.name, refusal.available.since(now));
    let text = format!("target `{name}`: {}", describe_block(block, now, wait));
    let mut error = Error::new(Reason::WaitTooLong, text);
    error.remedy = Some(remedy(name, block));
    error.limit.clone_from(&refusal.held_by);
    error.after(wait)
}

/// Builds the refusal with its numbers: the limit, the wait, the max wait and the queue length.
fn refused(ticket: &Ticket, refusal: &Refusal, now: Instant) -> Error {
    let wait = refusal.available.since(now);
    let patience = ticket.deadline.since(ticket.arrived);
    let name = &ticket.target.name;
    let cause = match &refusal.held_by {
        Some(limit) => {
            let bound = ticket
                .target
                .limits
                .iter()
                .find(|known| known.name == *limit);
            let bound = bound
                .map(|known| format!(" ({})", known.bound))
                .unwrap_or_default();
            format!("limit `{limit}`{bound} of target `{name}`")
        }
        None => format!("target `{name}`"),
    };
    let waiting = refusal.waiting;
    let mut error = match refusal.kind {
        RefusalKind::WaitTooLong => Error::new(
            Reason::WaitTooLong,
            format!(
                "{cause} allows this request in {}, but its max wait is {}; queue length: {waiting}",
                seconds(wait),
                seconds(patience),
            ),
        ),
        RefusalKind::NotBookable => {
            let detail = format!(
                "the ledger of target `{name}` refuses a key or the cost of this request; the log of outpace has the database's error"
            );
            return Error::new(Reason::NotBookable, detail);
        }
        RefusalKind::QueueFull => Error::new(
            Reason::QueueFull,
            format!(
                "the queue of {}target `{name}` is full: {waiting} requests are waiting",
                lane(ticket)
            ),
        ),
        RefusalKind::ShareFull => Error::new(
            Reason::ClientShareFull,
            format!(
                "client `{}` has its share of the queue of {}target `{name}`: {waiting} of its requests are waiting",
                ticket.share.as_ref().map_or("-", |share| &share.holder),
                lane(ticket),
            ),
        ),
    };
    error.limit = refusal.held_by.clone();
    error.after(wait)
}

/// Describes a block in the words of the origin, for a request that would have to wait for `wait`.
pub fn describe_block(block: &ScopedBlock, now: Instant, wait: Duration) -> String {
    let BlockCause {
        status,
        field,
        value,
        path,
    } = &block.cause;
    let said = match (field.is_empty(), value.is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!(" and a wait in its {field}"),
        (false, false) => format!(" and `{field}: {value}`"),
    };
    let origin = match block.asked() {
        None => "; the origin names no time".to_owned(),
        Some(asked) => {
            let longer = match block.longer {
                true => ", which is longer than `block_max`",
                false => "",
            };
            let asked = seconds(asked.since(now));
            format!("; the origin wants none for {asked}{longer}")
        }
    };
    format!(
        "the origin blocks {}: it answered {path} with {status}{said} {} ago; the next attempt may leave in {}{origin}",
        block.scope,
        seconds(now.since(block.since)),
        seconds(wait),
    )
}

/// Returns the remedy for a request that a block holds for too long.
fn remedy(target: &str, block: &ScopedBlock) -> String {
    let command = unblock_command(target, &block.scope);
    match block.longer {
        true => format!(
            "A longer max wait does not help. `outpace blocks {target}` shows the block. If the origin accepts such requests again, lift it with `{command}`."
        ),
        false => format!(
            "Retry after the time in `Retry-After`. To allow a longer wait, raise the target's `max_wait` and the client's `Outpace-Max-Wait`. `outpace blocks {target}` shows the block, and `{command}` lifts it."
        ),
    }
}

/// Returns the command that lifts the blocks of this scope.
pub fn unblock_command(target: &str, scope: &BlockScope) -> String {
    let key = scope.key.as_ref().or(scope.credential.as_ref());
    let parts = [("limit", scope.limit.as_ref()), ("key", key)];
    let parts = parts.map(|(name, value)| Some(format!(" --{name}={}", quoted(value?))));
    let parts: String = parts.into_iter().flatten().collect();
    format!("outpace unblock {}{parts}", quoted(target))
}

/// Quotes a word for a shell unless it has plain characters only. A key comes from a client, so it
/// may hold any visible character.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@%+=,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns the lane of a ticket for a message. The text is empty for a target without lanes.
fn lane(ticket: &Ticket) -> String {
    let lane = ticket.target.lanes.get(usize::from(ticket.scope.lane));
    lane.map_or_else(String::new, |lane| format!("lane `{}` of ", lane.name))
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_closed_a_command_quotes_the_key_of_a_client() {
        let scope = |limit: Option<&str>, key: Option<&str>, credential: Option<&str>| BlockScope {
            limit: limit.map(Into::into),
            key: key.map(Into::into),
            credential: credential.map(Into::into),
        };
        for (scope, options) in [
            (scope(None, None, None), ""),
            (scope(Some("search"), None, None), " --limit=search"),
            (scope(None, None, Some("0af3")), " --key=0af3"),
            (
                scope(Some("l"), None, Some("0af3")),
                " --limit=l --key=0af3",
            ),
            (
                scope(Some("m"), Some("gpt-4o:mini"), None),
                " --limit=m --key=gpt-4o:mini",
            ),
            (
                scope(Some("m"), Some("$(id)"), None),
                " --limit=m --key='$(id)'",
            ),
            (
                scope(Some("m"), Some("a;b|c"), None),
                " --limit=m --key='a;b|c'",
            ),
            (
                scope(Some("m"), Some("it's"), None),
                r" --limit=m --key='it'\''s'",
            ),
        ] {
            assert_eq!(
                unblock_command("api", &scope),
                format!("outpace unblock api{options}")
            );
        }
    }
}
