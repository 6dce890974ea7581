//! The API's own description (OpenAPI 3.1), made from the types that read the calls and from one table of
//! calls, which a test holds against the calls themselves.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::acquire::{AcquireRequest, PermitName};
use super::buffers::{PauseSpec, PurgeSpec, RedriveSpec};
use crate::spool::{BufferSpec, ItemSpec};

/// What a call is given.
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

/// One call: method, path, what it is given, the status of success, what it does.
pub(super) type Described = (&'static str, &'static str, Given, u16, &'static str);

/// All calls.
pub(super) const CALLS: [Described; 25] = [
    ("get", "/v1/buffers", Given::Nothing, 200, "All buffers"),
    ("post", "/v1/buffers", Given::Buffer, 201, "Makes a buffer"),
    (
        "get",
        "/v1/buffers/{buffer}",
        Given::Nothing,
        200,
        "One buffer, by id or name",
    ),
    (
        "patch",
        "/v1/buffers/{buffer}",
        Given::Buffer,
        200,
        "Changes what is written",
    ),
    (
        "delete",
        "/v1/buffers/{buffer}",
        Given::Nothing,
        200,
        "Removes a buffer; `?force=true` with what is to be sent",
    ),
    (
        "get",
        "/v1/buffers/{buffer}/items",
        Given::Nothing,
        200,
        "A page of items, oldest first",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/items",
        Given::Item,
        201,
        "Keeps an item; answered when it is on disk",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/batch",
        Given::Batch,
        201,
        "Keeps several items: all or none, one after the other",
    ),
    (
        "get",
        "/v1/buffers/{buffer}/stats",
        Given::Nothing,
        200,
        "How many stand where, and what the first waits for",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/pause",
        Given::Pause,
        200,
        "Sends nothing more until it is resumed",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/resume",
        Given::Nothing,
        200,
        "Goes on",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/purge",
        Given::Purge,
        200,
        "Removes items",
    ),
    (
        "post",
        "/v1/buffers/{buffer}/redrive",
        Given::Redrive,
        200,
        "Sends dead letters and expired items again",
    ),
    ("get", "/v1/items/{item}", Given::Nothing, 200, "One item"),
    (
        "delete",
        "/v1/items/{item}",
        Given::Nothing,
        200,
        "Takes it back",
    ),
    (
        "get",
        "/v1/items/{item}/attempts",
        Given::Nothing,
        200,
        "What was sent, latest first",
    ),
    (
        "get",
        "/v1/items/{item}/response",
        Given::Nothing,
        200,
        "The origin's last response as it was; 202 while it is not over; `Prefer: wait=N` waits",
    ),
    (
        "post",
        "/v1/items/{item}/cancel",
        Given::Nothing,
        200,
        "Takes it back",
    ),
    (
        "post",
        "/v1/items/{item}/retry",
        Given::Nothing,
        200,
        "Sends it as soon as limits allow",
    ),
    (
        "post",
        "/v1/items/{item}/skip",
        Given::Nothing,
        200,
        "Puts it with the dead letters",
    ),
    (
        "get",
        "/v1/attempts",
        Given::Nothing,
        200,
        "A page of attempts of all buffers, latest first",
    ),
    (
        "get",
        "/v1/openapi.json",
        Given::Nothing,
        200,
        "This document",
    ),
    (
        "post",
        "/v1/targets/{target}/acquire",
        Given::AcquireRequest,
        200,
        "Answers when the turn is there",
    ),
    (
        "post",
        "/v1/targets/{target}/release",
        Given::Permit,
        200,
        "Gives a permit back",
    ),
    (
        "post",
        "/v1/targets/{target}/renew",
        Given::Permit,
        200,
        "Holds a permit longer",
    ),
];

/// The document.
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
                status.to_string(): { "description": "Done", "content": { "application/json": {} } },
                "default": { "description": "Why not (RFC 9457)", "content": { "application/problem+json": {} } },
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
