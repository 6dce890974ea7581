//! OpenAPI 3.1 description of the API. The schemas come from the types that parse the calls, and
//! the paths from a table that a test compares with the API.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::acquire::{AcquireRequest, PermitName};
use super::buffers::{PauseSpec, PurgeSpec, RedriveSpec};
use crate::spool::{BufferSpec, ItemSpec};

/// Kind of request body that a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    Nothing,
    Buffer,
    Item,
    Batch,
    Pause,
    Purge,
    Redrive,
    AcquireRequest,
    Permit,
}

/// Description of one call: method, path, request body, status on success and summary.
pub(super) type Described = (&'static str, &'static str, Given, u16, &'static str);

/// All calls of the API, in the order of the document.
pub(super) const CALLS: [Described; 25] = [
    (
        "get",
        "/v1/buffers",
        Given::Nothing,
        200,
        "Lists all buffers",
    ),
    (
        "post",
        "/v1/buffers",
        Given::Buffer,
        201,
        "Creates a buffer",
    ),
    (
        "get",
        "/v1/buffers/{buffer}",
        Given::Nothing,
        200,
        "Returns a buffer by id or name",
    ),
    (
        "patch",
        "/v1/buffers/{buffer}",
        Given::Buffer,
        200,
        "Changes the given fields of a buffer",
    ),
    (
        "delete",
        "/v1/buffers/{buffer}",
        Given::Nothing,
        200,
        "Removes a buffer; with `?force=true` also if it has unsent items",
    ),
    (
        "get",
        "/v1/buffers/{buffer}/items",
        Given::Nothing,
        200,
        "Returns a page of items, oldest first",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/items",
        Given::Item,
        201,
        "Pushes an item; the response follows when the item is durable",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/batch",
        Given::Batch,
        201,
        "Pushes several items in order, all or none",
    ),
    (
        "get",
        "/v1/buffers/{buffer}/stats",
        Given::Nothing,
        200,
        "Returns the number of items in each state and the reason for which the first one waits",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/pause",
        Given::Pause,
        200,
        "Stops sending items until the buffer is resumed",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/resume",
        Given::Nothing,
        200,
        "Continues sending items of a paused buffer",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/purge",
        Given::Purge,
        200,
        "Removes the items that are in a given state",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/redrive",
        Given::Redrive,
        200,
        "Sends dead letters and expired items again",
    ),
    (
        "get",
        "/v1/items/{item}",
        Given::Nothing,
        200,
        "Returns an item by id",
    ),
    (
        "delete",
        "/v1/items/{item}",
        Given::Nothing,
        200,
        "Cancels an item that is not in flight",
    ),
    (
        "get",
        "/v1/items/{item}/attempts",
        Given::Nothing,
        200,
        "Returns the attempts of an item, latest first",
    ),
    (
        "get",
        "/v1/items/{item}/response",
        Given::Nothing,
        200,
        "Returns the origin's last response, or 202 if there is none yet; `Prefer: wait=N` waits for up to N seconds",
    ),
    (
        "post",
        "/v1/items/{item}/cancel",
        Given::Nothing,
        200,
        "Cancels an item that is not in flight",
    ),
    (
        "post",
        "/v1/items/{item}/retry",
        Given::Nothing,
        200,
        "Sends an item as soon as the limits allow it",
    ),
    (
        "post",
        "/v1/items/{item}/skip",
        Given::Nothing,
        200,
        "Moves an item to the dead letters",
    ),
    (
        "get",
        "/v1/attempts",
        Given::Nothing,
        200,
        "Returns a page of attempts of all buffers, latest first",
    ),
    (
        "get",
        "/v1/openapi.json",
        Given::Nothing,
        200,
        "Returns this document",
    ),
    (
        "post",
        "/v1/targets/{target}/acquire",
        Given::AcquireRequest,
        200,
        "Waits for a slot of the target, and answers when it is due",
    ),
    (
        "post",
        "/v1/targets/{target}/release",
        Given::Permit,
        200,
        "Returns a permit",
    ),
    (
        "post",
        "/v1/targets/{target}/renew",
        Given::Permit,
        200,
        "Extends the hold time of a permit",
    ),
];

/// Builds the OpenAPI document with all calls and schemas.
pub(super) fn document() -> Value {
    let mut schemas = SchemaGenerator::default();
    let mut paths = Map::new();
    for (method, path, given, status, what) in CALLS {
        let parameters: Vec<Value> = path
            .split(['{', '}'])
            .skip(1)
            .step_by(2)
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        let mut call = json!({
            "summary": what,
            "parameters": parameters,
            "responses": {
                status.to_string(): { "description": "Success", "content": { "application/json": {} } },
                "default": { "description": "Error with its problem details (RFC 9457)", "content": { "application/problem+json": {} } },
            },
        });
        if let Some(schema) = schema(&mut schemas, given) {
            call["requestBody"] =
                json!({ "content": { "application/json": { "schema": schema } } });
        }
        let known = paths
            .entry(path)
            .or_insert_with(|| Value::Object(Map::new()));
        known[method] = call;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "outpace", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn schema(schemas: &mut SchemaGenerator, given: Given) -> Option<Schema> {
    fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Option<Schema> {
        Some(schemas.subschema_for::<T>())
    }
    match given {
        Given::Nothing => None,
        Given::Buffer => of::<BufferSpec>(schemas),
        Given::Item => of::<ItemSpec>(schemas),
        Given::Batch => of::<Vec<ItemSpec>>(schemas),
        Given::Pause => of::<PauseSpec>(schemas),
        Given::Purge => of::<PurgeSpec>(schemas),
        Given::Redrive => of::<RedriveSpec>(schemas),
        Given::AcquireRequest => of::<AcquireRequest>(schemas),
        Given::Permit => of::<PermitName>(schemas),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_call_with_its_fields() {
        let document = document();
        let fields = &document["components"]["schemas"]["BufferSpec"]["properties"];
        for field in [
            "name",
            "url",
            "method",
            "headers",
            "rate_limit",
            "max_retries",
            "backoff",
        ] {
            assert!(fields.get(field).is_some(), "{field}");
        }
        let items = &document["paths"]["/v1/buffers/{buffer}/items"];
        assert!(items.get("get").is_some() && items["post"]["requestBody"].is_object());
        let calls = document["paths"].as_object().unwrap().values();
        assert_eq!(
            calls
                .map(|path| path.as_object().unwrap().len())
                .sum::<usize>(),
            CALLS.len()
        );
    }
}
