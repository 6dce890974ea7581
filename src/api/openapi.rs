//! OpenAPI 3.1 description of the API. The schemas come from the types that parse the calls, and
//! the paths from a table that a test compares with the API.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::acquire::{AcquireRequest, PermitName};
use super::buffers::{PauseSpec, PurgeSpec, RedriveSpec};
use super::report::WorkReport;
use crate::spool::{BufferSpec, ItemSpec};

/// Description of one call: method, path, schema of the request body if it takes one, status on
/// success and summary.
type Described = (&'static str, &'static str, GivenBody, u16, &'static str);
type GivenBody = &'static [fn(&mut SchemaGenerator) -> Schema];

macro_rules! calls {
    ($($method:ident $path:literal $(, $body:ty)? => $status:literal, $summary:literal;)+) => {
        &[$((
            stringify!($method),
            $path,
            &[$(SchemaGenerator::subschema_for::<$body>)?],
            $status,
            $summary,
        )),+]
    };
}

/// All calls of the API, in the order of the document.
const CALLS: &[Described] = calls! {
    get "/v1/buffers" => 200, "Lists all buffers";
    post "/v1/buffers", BufferSpec => 201, "Creates a buffer";
    get "/v1/buffers/{buffer}" => 200, "Returns a buffer by id or name";
    patch "/v1/buffers/{buffer}", BufferSpec => 200, "Changes the given fields of a buffer";
    delete "/v1/buffers/{buffer}" => 200, "Removes a buffer; with `?force=true` also if it has unsent items";
    get "/v1/buffers/{buffer}/items" => 200, "Returns a page of items, oldest first";
    post "/v1/buffers/{buffer}/items", ItemSpec => 201, "Pushes an item; the response follows when the item is durable";
    post "/v1/buffers/{buffer}/batch", Vec<ItemSpec> => 201, "Pushes several items in order, all or none";
    get "/v1/buffers/{buffer}/stats" => 200, "Returns the number of items in each state and the reason for which the first one waits";
    post "/v1/buffers/{buffer}/pause", PauseSpec => 200, "Stops sending items until the buffer is resumed";
    post "/v1/buffers/{buffer}/resume" => 200, "Continues sending items of a paused buffer";
    post "/v1/buffers/{buffer}/purge", PurgeSpec => 200, "Removes the items that are in a given state";
    post "/v1/buffers/{buffer}/redrive", RedriveSpec => 200, "Sends dead letters and expired items again";
    get "/v1/items/{item}" => 200, "Returns an item by id; with `?body=true` also its stored request";
    delete "/v1/items/{item}" => 200, "Cancels an item that is not in flight";
    get "/v1/items/{item}/attempts" => 200, "Returns the attempts of an item, latest first";
    get "/v1/items/{item}/response" => 200, "Returns the origin's last response, 202 if the item is not over, or 410 if it is over without a complete response; `Prefer: wait=N` waits for up to N seconds";
    post "/v1/items/{item}/cancel" => 200, "Cancels an item that is not in flight";
    post "/v1/items/{item}/retry" => 200, "Sends an item as soon as the limits allow it";
    post "/v1/items/{item}/skip" => 200, "Moves an item to the dead letters";
    get "/v1/attempts" => 200, "Returns a page of attempts of all buffers, latest first";
    get "/v1/openapi.json" => 200, "Returns this document";
    post "/v1/targets/{target}/acquire", AcquireRequest => 200, "Waits for a slot of the target, and answers when it is due";
    post "/v1/targets/{target}/release", PermitName => 200, "Returns a permit";
    post "/v1/targets/{target}/renew", PermitName => 200, "Extends the hold time of a permit";
    post "/v1/targets/{target}/report", WorkReport => 200, "Settles the cost of the work with a permit, and says if its origin refused it";
};

/// Builds the OpenAPI document with all calls and schemas.
pub(super) fn document() -> Value {
    let mut schemas = SchemaGenerator::default();
    let mut paths = Map::new();
    for &(method, path, body, status, what) in CALLS {
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
        for schema in body {
            let schema = schema(&mut schemas);
            call["requestBody"] =
                json!({ "content": { "application/json": { "schema": schema } } });
        }
        paths.entry(path).or_insert_with(|| json!({}))[method] = call;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "outpace", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_call_with_its_fields() {
        let document = document();
        let fields = &document["components"]["schemas"]["BufferSpec"]["properties"];
        for field in "name url method headers rate_limit max_retries backoff".split(' ') {
            assert!(fields.get(field).is_some(), "{field}");
        }
        let items = &document["paths"]["/v1/buffers/{buffer}/items"];
        assert!(items.get("get").is_some() && items["post"]["requestBody"].is_object());
        let calls = document["paths"].as_object().unwrap().values();
        let count: usize = calls.map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(count, CALLS.len());
    }
}
