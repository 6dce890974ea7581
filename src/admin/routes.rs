//! Table of the admin routes. The router and the OpenAPI document are both built from it.

use std::convert::Infallible;
use std::sync::LazyLock;

use axum::routing::{MethodRouter, delete, get, patch, post};
use axum::{Json, Router, middleware};
use serde_json::{Map, Value, json};

use super::authorize::{self, Guard};
use super::limits::LimitChange;
use super::reload::{ReloadSpec, Reloaded};
use super::status::{self, StatusReply};
use super::views::{
    BlockList, ForgetReply, LiftReply, PinReply, PortProblem, ReplicaList, SpoolProblem,
};
use super::{
    Admin, blocks, explain, limits, no_query, readyz, reload, replicas, scrape, sessions, trust,
};
use crate::api::{CallSpec, PortDescription, spool_calls};
use crate::exchange::CommandReport;
use crate::policy::Role;

/// Route with its description. Without a role it needs no token.
struct Route {
    call: CallSpec,
    needs: Option<Role>,
    handler: MethodRouter<Admin>,
}

const READ: &str = "The token needs the role `read` or `operate`.";
const OPERATE: &str = "The token needs the role `operate`.";

impl Route {
    fn open(call: CallSpec, handler: MethodRouter<Admin>) -> Self {
        Self {
            // Probes carry no token, and reveal only the readiness.
            call: call.secured(json!([])),
            needs: None,
            handler,
        }
    }

    fn metrics(call: CallSpec, handler: MethodRouter<Admin>) -> Self {
        let needs =
            "On loopback no token is needed, unless one with the role `metrics` is configured.";
        Self {
            call: call.needs(needs).secured(json!([{ "operator": [] }, {}])),
            needs: Some(Role::Metrics),
            handler,
        }
    }

    fn read(call: CallSpec, handler: MethodRouter<Admin>) -> Self {
        Self {
            call: call.needs(READ),
            needs: Some(Role::Read),
            handler,
        }
    }

    fn operate(call: CallSpec, handler: MethodRouter<Admin>) -> Self {
        Self {
            call: call.needs(OPERATE),
            needs: Some(Role::Operate),
            handler,
        }
    }
}

/// Returns all routes, apart from those of the spool, which the API describes.
fn routes() -> Vec<Route> {
    let groups = [probes(), figures(), of_process(), of_targets()];
    groups.into_iter().flatten().collect()
}

/// Describes the routes for orchestrators and scrapers.
fn probes() -> Vec<Route> {
    let text = "text/plain";
    vec![
        Route::open(
            CallSpec::get("/healthz", "healthz", "Answers as long as the process does")
                .answers_as::<String>("200", text, "The process answers."),
            get(async || "ok\n"),
        ),
        Route::open(
            CallSpec::get(
                "/readyz",
                "readyz",
                "Returns 200 if the process takes requests",
            )
            .answers_as::<String>("200", text, "The process is ready.")
            .answers_as::<String>(
                "503",
                text,
                "The process is not ready, with the reason.",
            ),
            get(readyz),
        ),
        // Certificates are public. An app needs them before it has any credential.
        Route::open(
            CallSpec::get(
                "/ca.pem",
                "ca_certificate",
                "Returns the certificate of outpace's CA",
            )
            .answers_as::<String>(
                "200",
                trust::PEM,
                "Certificate, or two during a rotation.",
            ),
            get(trust::ca),
        ),
        Route::open(
            CallSpec::get(
                "/bundle.pem",
                "ca_bundle",
                "Returns the system's roots and the certificate of outpace's CA",
            )
            .answers_as::<String>("200", trust::PEM, "Certificates, the CA's last."),
            get(trust::bundle),
        ),
        Route::metrics(
            CallSpec::get(
                "/metrics",
                "metrics",
                "Returns the metrics in the format that `Accept` prefers",
            )
            .answers_as::<String>("200", text, "Metrics of this process.")
            .answers_as::<String>("200", "application/openmetrics-text", ""),
            get(scrape::scrape),
        ),
    ]
}

/// Describes the routes that show the state of this process and of the ledger.
fn figures() -> Vec<Route> {
    let header = "Header field of the request, as `name: value`.";
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    vec![
        Route::read(
            CallSpec::get(
                "/v1/openapi.json",
                "get_admin_description",
                "Returns this document",
            )
            .answers::<Map<String, Value>>("200", "OpenAPI document of this port."),
            get(async || Json(document())),
        ),
        Route::read(
            CallSpec::get(
                "/v1/replicas",
                "list_replicas",
                "Lists the replicas that share the ledger",
            )
            .answers::<ReplicaList>("200", "Replicas, also the silent ones."),
            get(replicas::list),
        ),
        Route::read(
            CallSpec::get(
                "/v1/status",
                "status",
                "Returns the state of all targets, of the ledger and of the spool",
            )
            .answers::<StatusReply>("200", "State of this process."),
            get(status::status),
        ),
        Route::read(
            CallSpec::get(
                "/v1/explain",
                "explain",
                "Explains the limits of a request and its expected wait",
            )
            .query("url", "Absolute URL of the request.", text_schema())
            .required()
            .query(
                "method",
                "Method of the request, GET by default.",
                text_schema(),
            )
            .query("header", header, texts)
            .query("body", "Body of the request.", text_schema())
            .query(
                "client",
                "Name of the client that sends the request.",
                text_schema(),
            )
            .query(
                "client_ip",
                "Address of the client that sends the request.",
                text_schema(),
            )
            .answers::<Map<String, Value>>("200", "Explanation, for people and scripts."),
            get(explain::asked),
        ),
    ]
}

/// Describes the routes that act on this process.
fn of_process() -> Vec<Route> {
    vec![
        Route::operate(
            CallSpec::get(
                "/v1/attend",
                "attend",
                "Holds a session of `outpace run` open",
            )
            .answers_as::<String>(
                "200",
                sessions::LINES,
                "One line of JSON. The response then stays open until the client disconnects.",
            )
            .fails(503, "outpace is shutting down."),
            get(sessions::open_session),
        ),
        Route::operate(
            CallSpec::get(
                "/v1/attend/{session}",
                "attendReport",
                "Reports on the requests of a session of `outpace run`",
            )
            .answers::<CommandReport>("200", "Requests of the command so far, and problems.")
            .fails(404, "The session is not open."),
            get(sessions::report),
        ),
        Route::operate(
            CallSpec::post("/v1/reload", "reload", "Reads the configuration file now")
                .takes::<ReloadSpec>()
                .answers::<Reloaded>("200", "The file is in force.")
                .fails(
                    409,
                    "The file is refused, and the previous policy stays in force.",
                )
                .fails(422, "The body has an unknown field or a wrong type.")
                .fails(503, "outpace is shutting down."),
            post(reload::reload),
        ),
    ]
}

/// Describes the routes for the limits and blocks of a target.
fn of_targets() -> Vec<Route> {
    let known = |call: CallSpec| call.fails(404, "The target or the limit is not configured.");
    let stored = |call: CallSpec| known(call).fails(503, "The ledger cannot be reached.");
    let one = |call: CallSpec| {
        call.query("limit", "Only blocks of this limit.", text_schema())
            .query(
                "key",
                "Only blocks of this key, or of its digest.",
                text_schema(),
            )
    };
    let limit = "/v1/targets/{target}/limits/{limit}";
    vec![
        Route::read(
            known(one(CallSpec::get(
                "/v1/targets/{target}/blocks",
                "list_blocks",
                "Lists the scopes that the origin blocks",
            )))
            .answers::<BlockList>("200", "Blocks of the target."),
            get(blocks::list),
        ),
        Route::operate(
            stored(one(CallSpec::delete(
                "/v1/targets/{target}/blocks",
                "lift_blocks",
                "Lifts blocks on all replicas",
            )))
            .answers::<LiftReply>("200", "The blocks are lifted."),
            delete(blocks::lift),
        ),
        Route::operate(
            stored(CallSpec::patch(
                limit,
                "pin_limit",
                "Pins a limit for all replicas",
            ))
            .takes::<LimitChange>()
            .answers::<PinReply>("200", "The limit is pinned.")
            .fails(422, "The values do not fit the limit."),
            patch(limits::pin),
        ),
        Route::operate(
            stored(CallSpec::delete(
                limit,
                "unpin_limit",
                "Removes the pin of a limit",
            ))
            .answers::<PinReply>("200", "The limit has no pin."),
            delete(limits::unpin),
        ),
        Route::operate(
            stored(CallSpec::delete(
                "/v1/targets/{target}/limits/{limit}/usage",
                "forget_settlements",
                "Forgets what settlements added to the estimates of a limit",
            ))
            .query("key", "Only this key, as its source has it.", text_schema())
            .query(
                "digest",
                "Only this key, as `outpace explain` shows it.",
                text_schema(),
            )
            .answers::<ForgetReply>("200", "The settlements are forgotten.")
            .fails(422, "The limit has no such key."),
            delete(limits::forget_settled),
        ),
    ]
}

fn text_schema() -> Value {
    json!({ "type": "string" })
}

impl Admin {
    /// Builds the router from the table, without the guard of the port.
    pub(super) fn routes(&self) -> Router<Self> {
        let guarded = |handler: MethodRouter<Self, Infallible>, needs: Role| {
            let guard = Guard::new(self.clone(), needs);
            handler.layer(middleware::from_fn_with_state(guard, authorize::authorize))
        };
        let mut router = Router::new();
        for Route {
            call,
            needs,
            mut handler,
        } in routes()
        {
            if let Some(role) = needs {
                if !call.has_query() {
                    handler = handler.layer(middleware::from_fn(no_query));
                }
                handler = guarded(handler, role);
            }
            router = router.route(call.path, handler);
        }
        // The API has the table of these calls.
        for path in ["/v1/buffers", "/v1/buffers/{*rest}", "/v1/items/{*rest}"] {
            let changes = post(super::spool).patch(super::spool).delete(super::spool);
            router = router
                .route(path, guarded(get(super::spool), Role::Read))
                .route(path, guarded(changes, Role::Operate));
        }
        router.route("/v1/attempts", guarded(get(super::spool), Role::Read))
    }
}

/// Returns the OpenAPI document of the admin port, which is built once.
fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    &DOCUMENT
}

fn build() -> Value {
    let own: Vec<CallSpec> = routes().into_iter().map(|route| route.call).collect();
    let spool: Vec<CallSpec> = spool_calls()
        .iter()
        .map(|call| {
            let needs = match call.method {
                http::Method::GET => READ,
                _ => OPERATE,
            };
            call.clone().needs(needs).problems::<SpoolProblem<'_>>()
        })
        .collect();
    let port = PortDescription {
        title: "outpace admin port",
        schemes: json!({
            "operator": {
                "type": "http",
                "scheme": "bearer",
                "description": "Either `admin.token` or the text of the file `admin-token`.",
            },
        }),
        security: json!([{ "operator": [] }]),
        refusals: vec![
            (400, "A parameter or the body is invalid."),
            (401, "The token is missing or wrong."),
            (
                403,
                "The token's role does not allow the call, or a web page of another site sent it.",
            ),
            (415, "The body has no type or another type than JSON."),
            (421, "The `Host` is not a name of this port."),
        ],
    };
    port.document::<PortProblem<'_>>(own.iter().chain(&spool))
}
