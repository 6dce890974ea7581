//! Reading of an origin's response as a [`Signal`]: its demand on this request, the scope it speaks
//! of, and the limits that it shows.
//!
//! All functions are pure. Negative, absurd and unreadable values count as absent, so a broken
//! origin changes nothing.

mod demand;
mod fields;
mod name;
mod peek;
mod scope;
mod source;
mod structured;
mod values;

#[cfg(test)]
#[expect(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tables of examples"
)]
mod tests;

pub use peek::Peek;
pub use scope::SignalScope;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use crate::clock::Instant;
use crate::policy::SignalRules;

/// The parts of a response that may hold a signal, and the time of their arrival.
#[derive(Debug, Clone, Copy)]
pub struct ResponseView<'a> {
    /// Status code of the response.
    pub status: StatusCode,
    /// Fields of the response's head.
    pub headers: &'a HeaderMap,
    /// Beginning of the body, if it was read.
    pub peek: Option<&'a Peek>,
    /// Instant of the arrival, from which waits are counted.
    pub now: Instant,
    /// Calendar time of the arrival, for instants of an origin that sends no `Date`.
    pub wall: SystemTime,
}

/// Content of a response, as far as it concerns limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// Consequence for the request, and the earliest instant of a retry.
    pub demand: Demand,
    /// Part of the API for which the signal holds, as far as the response says.
    pub scope: SignalScope,
    /// Name and value of the field that names the wait, or `None` if none does.
    pub source: Option<(String, String)>,
    /// Unit of the limit that refused the request, if the body names it.
    pub unit: Option<LimitUnit>,
    /// Limits that the response shows, at most
    /// [`SIGNAL_DIMENSIONS`](crate::bounds::SIGNAL_DIMENSIONS).
    pub dimensions: Vec<Dimension>,
}

/// Consequence of a response for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Meaning of the response for the request.
    pub kind: SignalKind,
    /// Instant before which the origin does not want the request again, or `None` if it names none.
    pub not_before: Option<Instant>,
    /// True if the origin certainly did not process the request.
    pub unprocessed: bool,
}

/// Meaning of a response for the limits of an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SignalKind {
    /// Response that refuses nothing because of a limit.
    #[default]
    None,
    /// A limit is reached, and a wait makes room again.
    Limited,
    /// The origin has too much work for a short time.
    Overloaded,
    /// A quota is spent, and a retry is useless.
    QuotaExhausted,
    /// Another request holds the object of this request.
    Lock,
}

/// One limit of the origin, as a response shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimension {
    /// Unit in which the limit counts.
    pub unit: LimitUnit,
    /// Name of the limit or its pool, if the response has one. At most 128 bytes.
    pub label: Option<Box<str>>,
    /// Amount that the limit allows in its window.
    pub limit: Option<u64>,
    /// Length of the limit's window.
    pub window: Option<Duration>,
    /// Amount that is left in the window, rounded down.
    pub remaining: Option<u64>,
    /// Instant at which the limit is full again, as the origin says.
    pub reset: Option<Instant>,
}

/// The unit in which a limit of an origin counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitUnit {
    /// Number of requests of any size.
    Requests,
    /// Tokens of a model, input and output together.
    Tokens,
    /// Tokens of the input of a model.
    InputTokens,
    /// Tokens of the output of a model.
    OutputTokens,
    /// Points, costs or credits that the API computes per request.
    Points,
    /// Images that a model makes.
    Images,
    /// Requests that run at the same time.
    Concurrency,
    /// Bytes of content that are transferred.
    Bytes,
}

/// Reads a response by the general rules and those of its target.
pub fn read(response: &ResponseView<'_>, rules: &SignalRules) -> Signal {
    let fields = fields::read(response);
    let demand = demand::demand(response, rules, &fields.dimensions);
    Signal {
        demand,
        source: source::source(response, rules, demand),
        scope: scope::scope(response, demand.kind, &fields),
        unit: response.peek.and_then(Peek::unit),
        dimensions: fields.dimensions,
    }
}

/// Returns the instant at which all limits with nothing left are full again, or `None` if there are
/// none or their reset is unknown.
fn exhausted_until(dimensions: &[Dimension]) -> Option<Instant> {
    let spent = |dimension: &&Dimension| dimension.remaining == Some(0);
    let spent = dimensions.iter().filter(spent);
    spent.filter_map(|dimension| dimension.reset).max()
}
