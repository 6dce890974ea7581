//! Descriptions of all calls of the API. A call without a description here does not exist, because
//! each request is compared with them first.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::acquire::{AcquireRequest, PermitName};
use super::buffers::{PauseSpec, PurgeSpec, RedriveSpec};
use super::describe::{AnyBytes, CallSpec, PortDescription};
use super::report::WorkReport;
use super::views::{
    AcquireReply, AttemptPage, BatchReply, BufferList, BufferView, DeleteReply, ItemPage, ItemView,
    PurgeReply, RedriveReply, ReleaseReply, RenewReply, ReportReply, StatsReply, WaitingReply,
};
use crate::exchange::{Problem, Reason};
use crate::spool::{BufferSpec, ItemSpec, ItemStatus, OUTCOMES};

const READ: &str = "A client needs the scope `read`.";
const PUSH: &str = "A client needs the scope `push`.";
const MANAGE: &str = "A client needs the scope `manage`.";
const PUSH_LINES: &str = "A client needs the scope `push`. The body may also be \
    `application/x-ndjson`, with one object per line.";
const KEY: &str = "Idempotency key of the push. The same key with the same content returns the \
    first result.";
const REPLAYED: &str = "Response of the origin with its own status and body, marked by \
    `Outpace-Replay`, or an error.";
const BYTES: &str = "application/octet-stream";

/// Calls for buffers, items and attempts, which operators may make, too.
static SPOOL_CALLS: LazyLock<Vec<CallSpec>> = LazyLock::new(|| {
    let groups = [
        buffers(),
        of_buffer(),
        pushes(),
        changes(),
        items(),
        item_changes(),
    ];
    let calls = groups.into_iter().flatten();
    let spool = [Reason::SpoolDisabled, Reason::SpoolUnavailable];
    calls.map(|call| call.refuses(&spool)).collect()
});

/// All other calls of the API.
static TARGET_CALLS: LazyLock<Vec<CallSpec>> = LazyLock::new(targets);

/// Returns the descriptions of the calls for buffers, items and attempts.
pub fn spool_calls() -> &'static [CallSpec] {
    &SPOOL_CALLS
}

pub(super) fn all() -> impl Iterator<Item = &'static CallSpec> {
    SPOOL_CALLS.iter().chain(TARGET_CALLS.iter())
}

/// Returns the OpenAPI document of the API, which is built once.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    &DOCUMENT
}

fn build() -> Value {
    let common = [
        Reason::CallInvalid,
        Reason::ClientTokenUnknown,
        Reason::CrossSite,
        Reason::UnsupportedType,
        Reason::UnknownHost,
    ];
    let common = common.map(Reason::row);
    let port = PortDescription {
        title: "outpace API",
        schemes: json!({
            "clientBearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "NAME:TOKEN",
                "description": "Name and token of a client of the configuration.",
            },
            "clientToken": {
                "type": "apiKey",
                "in": "header",
                "name": "Outpace-Client-Token",
                "description": "Name and token of a client, as `NAME:TOKEN`.",
            },
        }),
        // Without `clients` in the configuration, callers on loopback need no token.
        security: json!([{ "clientBearer": [] }, { "clientToken": [] }, {}]),
        refusals: common.map(|row| (row.status.as_u16(), row.meaning)).into(),
    };
    port.document::<Problem<'_>>(all())
}

fn buffers() -> Vec<CallSpec> {
    let shape = [
        Reason::ScopeMissing,
        Reason::HostNotAllowed,
        Reason::PortNotAllowed,
        Reason::Conflict,
        Reason::NotStorable,
        Reason::NotSpoolable,
        Reason::SpoolFull,
        Reason::SpoolShareFull,
    ];
    let known = [Reason::ScopeMissing, Reason::NotFound];
    let own = [Reason::NotFound, Reason::OperatorsOnly];
    vec![
        CallSpec::get("/v1/buffers", "list_buffers", "Lists all buffers")
            .needs(READ)
            .answers::<BufferList>("200", "Buffers that the caller may see.")
            .refuses(&[Reason::ScopeMissing]),
        CallSpec::post("/v1/buffers", "create_buffer", "Creates a buffer")
            .needs(MANAGE)
            .takes::<BufferSpec>()
            .answers::<BufferView>("200", "The same buffer exists already.")
            .answers::<BufferView>("201", "The buffer is created.")
            .refuses(&shape),
        CallSpec::get(
            "/v1/buffers/{buffer}",
            "get_buffer",
            "Returns a buffer by its id or name",
        )
        .needs(READ)
        .answers::<BufferView>("200", "The buffer.")
        .refuses(&known),
        CallSpec::patch(
            "/v1/buffers/{buffer}",
            "change_buffer",
            "Changes the given fields of a buffer",
        )
        .needs(MANAGE)
        .takes::<BufferSpec>()
        .answers::<BufferView>("200", "The changed buffer.")
        .refuses(&shape)
        .refuses(&own),
        CallSpec::delete("/v1/buffers/{buffer}", "delete_buffer", "Removes a buffer")
            .needs(MANAGE)
            .query(
                "force",
                "Remove the buffer although it has unsent items.",
                flag(),
            )
            .answers::<DeleteReply>("200", "The buffer is removed.")
            .refuses(&known)
            .refuses(&[Reason::OperatorsOnly, Reason::Conflict]),
    ]
}

/// Describes the lists and figures of one buffer.
fn of_buffer() -> Vec<CallSpec> {
    let known = [Reason::ScopeMissing, Reason::NotFound];
    vec![
        page(
            CallSpec::get(
                "/v1/buffers/{buffer}/items",
                "list_items",
                "Returns a page of items, oldest first",
            )
            .needs(READ)
            .query(
                "state",
                "Only items in this state.",
                words(&ItemStatus::ALL.map(ItemStatus::word)),
            )
            .query("item", "Only the item with this id.", text()),
        )
        .answers::<ItemPage>("200", "Items that the caller may see.")
        .refuses(&known),
        CallSpec::get(
            "/v1/buffers/{buffer}/stats",
            "buffer_stats",
            "Counts the items by state, with the cause for which the first one waits",
        )
        .needs(READ)
        .answers::<StatsReply>("200", "Figures of the buffer.")
        .refuses(&known)
        .refuses(&[Reason::OperatorsOnly]),
    ]
}

/// Describes the calls that push items into a buffer.
fn pushes() -> Vec<CallSpec> {
    let own = [
        Reason::ScopeMissing,
        Reason::NotFound,
        Reason::OperatorsOnly,
    ];
    let pushes = [
        Reason::OverrideNotAllowed,
        Reason::KeyReused,
        Reason::BodyTooLarge,
        Reason::PushThrottled,
        Reason::SpoolFull,
        Reason::SpoolShareFull,
        Reason::NotSpoolable,
    ];
    let batch = |path, id, summary| {
        CallSpec::post(path, id, summary)
            .needs(PUSH_LINES)
            .field("Idempotency-Key", KEY, text())
            .takes::<Vec<ItemSpec>>()
            .answers::<BatchReply>("200", "An earlier call pushed the items.")
            .answers::<BatchReply>("201", "All items are durable.")
            .refuses(&own)
            .refuses(&pushes)
    };
    vec![
        CallSpec::post("/v1/buffers/{buffer}/items", "push_item", "Pushes an item")
            .needs(PUSH)
            .field("Idempotency-Key", KEY, text())
            .takes::<ItemSpec>()
            .takes_as::<AnyBytes>(BYTES)
            .answers::<ItemView>("200", "An earlier call pushed the item.")
            .answers::<ItemView>("201", "The item is durable.")
            .refuses(&own)
            .refuses(&pushes),
        batch(
            "/v1/buffers/{buffer}/batch",
            "push_batch",
            "Pushes several items in order, all or none",
        ),
        batch(
            "/v1/buffers/{buffer}/items:batch",
            "push_items_batch",
            "Other name of `/v1/buffers/{buffer}/batch`",
        ),
    ]
}

/// Describes the calls that pause, resume, empty or redrive a buffer.
fn changes() -> Vec<CallSpec> {
    let own = [
        Reason::ScopeMissing,
        Reason::NotFound,
        Reason::OperatorsOnly,
    ];
    vec![
        CallSpec::post(
            "/v1/buffers/{buffer}/pause",
            "pause_buffer",
            "Stops sending items until the buffer is resumed",
        )
        .needs(MANAGE)
        .takes::<PauseSpec>()
        .answers::<BufferView>("200", "The paused buffer.")
        .refuses(&own),
        CallSpec::post(
            "/v1/buffers/{buffer}/resume",
            "resume_buffer",
            "Continues sending items of a paused buffer",
        )
        .needs(MANAGE)
        .answers::<BufferView>("200", "The resumed buffer.")
        .refuses(&own),
        CallSpec::post(
            "/v1/buffers/{buffer}/purge",
            "purge_buffer",
            "Removes the items that are in a given state",
        )
        .needs(MANAGE)
        .takes::<PurgeSpec>()
        .answers::<PurgeReply>("200", "Number of removed items.")
        .refuses(&own),
        CallSpec::post(
            "/v1/buffers/{buffer}/redrive",
            "redrive_buffer",
            "Sends dead letters and expired items again",
        )
        .needs(MANAGE)
        .takes::<RedriveSpec>()
        .answers::<RedriveReply>("200", "Number of items that are sent again.")
        .refuses(&own)
        .refuses(&[Reason::Conflict]),
    ]
}

/// Describes the calls that return items and attempts.
fn items() -> Vec<CallSpec> {
    let known = [Reason::ScopeMissing, Reason::NotFound];
    let attempts = |call: CallSpec| {
        let codes = json!({ "type": "integer", "minimum": 100, "maximum": 599 });
        let call = call
            .needs(READ)
            .query("status", "Only attempts with this status code.", codes)
            .query(
                "outcome",
                "Only attempts with this outcome.",
                words(&OUTCOMES),
            );
        page(call)
            .answers::<AttemptPage>("200", "Attempts, latest first.")
            .refuses(&known)
    };
    vec![
        CallSpec::get("/v1/items/{item}", "get_item", "Returns an item by its id")
            .needs(READ)
            .query("body", "Also return the stored request.", flag())
            .answers::<ItemView>("200", "The item.")
            .refuses(&known),
        attempts(CallSpec::get(
            "/v1/items/{item}/attempts",
            "list_item_attempts",
            "Returns the attempts of an item, latest first",
        )),
        CallSpec::get(
            "/v1/items/{item}/response",
            "get_item_response",
            "Returns the origin's response that decided the item",
        )
        .needs(READ)
        .field(
            "Prefer",
            "`wait=N` waits for up to N seconds, at most 60.",
            text(),
        )
        .answers_as::<AnyBytes>("default", "*/*", REPLAYED)
        .answers::<WaitingReply>("202", "The item is not over.")
        .refuses(&known)
        .refuses(&[Reason::NoResponse]),
        attempts(
            CallSpec::get(
                "/v1/attempts",
                "list_attempts",
                "Returns a page of attempts of all buffers, latest first",
            )
            .query(
                "buffer",
                "Only attempts of this buffer, by its id or name.",
                text(),
            )
            .query("item", "Only attempts of this item.", text()),
        ),
    ]
}

/// Describes the calls that cancel, retry or skip an item.
fn item_changes() -> Vec<CallSpec> {
    let cancel = "Cancels an item that is not in flight";
    let retry = "Sends an item as soon as the limits allow it";
    let again = "Other name of `/v1/items/{item}/retry`";
    let skip = "Moves an item to the dead letters";
    let calls = [
        CallSpec::delete("/v1/items/{item}", "delete_item", cancel),
        CallSpec::post("/v1/items/{item}/cancel", "cancel_item", cancel),
        CallSpec::post("/v1/items/{item}/retry", "retry_item", retry),
        CallSpec::post("/v1/items/{item}/retry_now", "retry_item_now", again),
        CallSpec::post("/v1/items/{item}/skip", "skip_item", skip),
    ];
    let refusals = [
        Reason::ScopeMissing,
        Reason::NotFound,
        Reason::OperatorsOnly,
        Reason::Conflict,
    ];
    let calls = calls.into_iter().map(|call| {
        call.needs(MANAGE)
            .answers::<ItemView>("200", "The item in its new state.")
            .refuses(&refusals)
    });
    calls.collect()
}

fn targets() -> Vec<CallSpec> {
    let of_target = |call: CallSpec| call.refuses(&[Reason::NoSuchTarget, Reason::NoSuchPermit]);
    let acquire = [
        Reason::NoSuchScope,
        Reason::WaitTooLong,
        Reason::QueueFull,
        Reason::ClientShareFull,
        Reason::NotBookable,
        Reason::LedgerUnavailable,
    ];
    vec![
        CallSpec::get(
            "/v1/openapi.json",
            "get_api_description",
            "Returns this document",
        )
        .answers::<serde_json::Map<String, Value>>("200", "OpenAPI document of this port."),
        of_target(
            CallSpec::post(
                "/v1/targets/{target}/acquire",
                "acquire",
                "Waits for a slot of the target, and answers when it is due",
            )
            .takes::<AcquireRequest>()
            .answers::<AcquireReply<'_>>("200", "The slot is due.")
            .refuses(&acquire),
        ),
        of_target(
            CallSpec::post(
                "/v1/targets/{target}/release",
                "release",
                "Returns a permit",
            )
            .takes::<PermitName>()
            .answers::<ReleaseReply>("200", "The permit is released."),
        ),
        of_target(
            CallSpec::post(
                "/v1/targets/{target}/renew",
                "renew",
                "Extends the hold time of a permit",
            )
            .takes::<PermitName>()
            .answers::<RenewReply>("200", "The permit has a new hold time."),
        ),
        of_target(
            CallSpec::post(
                "/v1/targets/{target}/report",
                "report",
                "Settles the cost of the work, and records a refusal by its origin",
            )
            .takes::<WorkReport>()
            .answers::<ReportReply<'_>>("200", "The report is taken."),
        ),
    ]
}

/// Adds the parameters that all lists have.
fn page(call: CallSpec) -> CallSpec {
    let limit = json!({ "type": "integer", "minimum": 0 });
    call.query(
        "since",
        "Only entries since this instant.",
        json!({ "type": "string", "format": "date-time" }),
    )
    .query("after", "`next` of the previous page.", text())
    .query(
        "limit",
        "Number of entries on a page. A number beyond the maximum counts as the maximum.",
        limit,
    )
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn flag() -> Value {
    json!({ "type": "boolean", "default": false })
}

fn words(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}
