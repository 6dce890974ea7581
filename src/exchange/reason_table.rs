//! The one table from reason to wire. No wildcard arm: a new reason does not compile without its row.

use http::StatusCode;

use super::reason::{Level, Reason, ReasonRow};
use crate::telemetry::ExchangeOutcome;

impl Reason {
    /// The table.
    #[deny(clippy::wildcard_enum_match_arm)]
    #[expect(clippy::too_many_lines, reason = "it is a table: one row per reason")]
    pub const fn row(self) -> ReasonRow {
        use ExchangeOutcome::{Failed, Refused, Rejected};
        use Level::{Debug, Warn};
        const fn row(
            token: &'static str,
            status: StatusCode,
            proxy_error: &'static str,
            (outcome, level): (ExchangeOutcome, Level),
            (meaning, remedy): (&'static str, &'static str),
        ) -> ReasonRow {
            ReasonRow {
                token,
                status,
                proxy_error,
                outcome,
                level,
                meaning,
                remedy,
            }
        }
        match self {
            Self::MalformedRequest => row(
                "malformed-request",
                StatusCode::BAD_REQUEST,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The request is not one that can be forwarded safely.",
                    "Correct what the detail names; a client library does it by itself.",
                ),
            ),
            Self::Misdirected => row(
                "misdirected",
                StatusCode::MISDIRECTED_REQUEST,
                "http_request_error",
                (Rejected, Debug),
                (
                    "A request inside a CONNECT named another host than the CONNECT.",
                    "Open a new CONNECT for the other host.",
                ),
            ),
            Self::ExpectationFailed => row(
                "expectation-failed",
                StatusCode::EXPECTATION_FAILED,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The request expects something other than `100-continue`.",
                    "Leave the `Expect` field out.",
                ),
            ),
            Self::MethodNotAllowed => row(
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "TRACE is not forwarded: it would show credentials to whoever reads the response.",
                    "Use another method.",
                ),
            ),
            Self::LoopDetected => row(
                "loop-detected",
                StatusCode::LOOP_DETECTED,
                "proxy_loop_detected",
                (Refused, Warn),
                (
                    "The request would come back to this proxy.",
                    "Look where the host resolves to, at `routes`, and at proxy variables in outpace's own environment.",
                ),
            ),
            Self::ClientUnknown => row(
                "client-unknown",
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The proxy is for known clients, and the request did not prove to be of one.",
                    "Write the proxy's URL as `http://NAME:TOKEN@HOST:PORT` with a name and token from `clients`.",
                ),
            ),
            Self::NoRoute => row(
                "no-route",
                StatusCode::NOT_FOUND,
                "destination_not_found",
                (Refused, Debug),
                (
                    "The request was addressed to outpace itself, and no route has that host.",
                    "Set `HTTP_PROXY` and `HTTPS_PROXY` instead of calling outpace as a server, or add the host to `routes`.",
                ),
            ),
            Self::HostNotAllowed => row(
                "host-not-allowed",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "No target matches the host, and `unmatched: refuse` is set.",
                    "Add the host to a target, or set `unmatched: tunnel`.",
                ),
            ),
            Self::PortNotAllowed => row(
                "port-not-allowed",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "CONNECT to this port is not allowed.",
                    "Add the port to `connect_ports`, or name it in a target's host (`host:port`).",
                ),
            ),
            Self::AddressProhibited => row(
                "address-prohibited",
                StatusCode::FORBIDDEN,
                "destination_ip_prohibited",
                (Refused, Debug),
                (
                    "The host has only addresses that are not public.",
                    "If the app should reach it without outpace, add the host to `NO_PROXY`; if outpace should dial it, add the address to `egress.allow`.",
                ),
            ),
            Self::CrossSite => row(
                "cross-site",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Warn),
                (
                    "A web page of another site sent the request, and the target sets credentials.",
                    "Call the target from your own code, not from a page.",
                ),
            ),
            Self::WaitTooLong => row(
                "wait-too-long",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request's turn comes later than it may be held.",
                    "Come back after `Retry-After`, or allow more with `Outpace-Max-Wait` or the target's `max_wait`.",
                ),
            ),
            Self::QueueFull => row(
                "queue-full",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Warn),
                (
                    "As many requests wait for the target as may.",
                    "Come back after `Retry-After`; or raise the target's `max_waiting`.",
                ),
            ),
            Self::OriginUnresolved => row(
                "origin-unresolved",
                StatusCode::BAD_GATEWAY,
                "dns_error",
                (Failed, Debug),
                (
                    "The host has no address.",
                    "Check the spelling, the resolver of the machine, or `egress.resolve`.",
                ),
            ),
            Self::OriginRefused => row(
                "origin-refused",
                StatusCode::BAD_GATEWAY,
                "connection_refused",
                (Failed, Debug),
                (
                    "No connection to the origin; nothing was sent.",
                    "Check that the origin is up and reachable from this machine.",
                ),
            ),
            Self::OriginConnectTimeout => row(
                "origin-connect-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "connection_timeout",
                (Failed, Debug),
                (
                    "No connection to the origin in time; nothing was sent.",
                    "Check that the origin is reachable from this machine.",
                ),
            ),
            Self::OriginCertificate => row(
                "origin-certificate",
                StatusCode::BAD_GATEWAY,
                "tls_certificate_error",
                (Failed, Warn),
                (
                    "The origin's certificate was not accepted; nothing was sent.",
                    "If the origin has a private CA, add it to `egress.roots`.",
                ),
            ),
            Self::OriginTls => row(
                "origin-tls",
                StatusCode::BAD_GATEWAY,
                "tls_protocol_error",
                (Failed, Warn),
                (
                    "TLS with the origin failed; nothing was sent.",
                    "Check that the origin speaks TLS 1.2 or 1.3 on that port.",
                ),
            ),
            Self::ParentProxy => row(
                "parent-proxy",
                StatusCode::BAD_GATEWAY,
                "destination_unavailable",
                (Failed, Warn),
                (
                    "The parent proxy did not connect to the origin; nothing was sent.",
                    "Check `egress.upstream_proxy` and its credentials.",
                ),
            ),
            Self::OriginBroke => row(
                "origin-broke",
                StatusCode::BAD_GATEWAY,
                "connection_terminated",
                (Failed, Debug),
                (
                    "The connection broke after the request was sent; it may have taken effect.",
                    "If the request is safe to repeat, send `Idempotency-Key` or set `idempotent: true` on the target.",
                ),
            ),
            Self::OriginTimeout => row(
                "origin-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "http_response_timeout",
                (Failed, Debug),
                (
                    "The origin did not answer in time; the request may have taken effect.",
                    "Check the origin.",
                ),
            ),
            Self::OriginProtocol => row(
                "origin-protocol",
                StatusCode::BAD_GATEWAY,
                "http_protocol_error",
                (Failed, Warn),
                (
                    "The origin answered in a way that must not be passed on.",
                    "Check what stands behind that host.",
                ),
            ),
            Self::ClientTokenUnknown => row(
                "client-token-unknown",
                StatusCode::UNAUTHORIZED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The route is for known clients, and the request did not prove to be of one.",
                    "Send `Outpace-Client-Token: NAME:TOKEN` with a name and token from `clients`.",
                ),
            ),
            Self::InnerNotHttp => row(
                "inner-not-http",
                StatusCode::BAD_REQUEST,
                "http_request_error",
                (Rejected, Warn),
                (
                    "Inside a CONNECT to a target came neither TLS nor HTTP; the connection was closed.",
                    "For another protocol set `tls: tunnel` on the target: then connections are paced.",
                ),
            ),
            Self::InnerTls => row(
                "inner-tls",
                StatusCode::BAD_REQUEST,
                "tls_protocol_error",
                (Rejected, Debug),
                (
                    "TLS with the client inside its CONNECT failed; the connection was closed.",
                    "Check that the client speaks TLS 1.2 or 1.3 and names the CONNECT's host.",
                ),
            ),
            Self::InnerDistrusted => row(
                "inner-distrusted",
                StatusCode::BAD_REQUEST,
                "tls_alert_received",
                (Rejected, Debug),
                (
                    "The client does not trust outpace's CA; the connection was closed.",
                    "Run the client with the variables that `outpace env` prints, or set `tls: tunnel` on the target.",
                ),
            ),
            Self::NoSuchCall => row(
                "no-such-call",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The API has no such call, target or permit.",
                    "Check the path and the name; README lists the calls.",
                ),
            ),
            Self::NoSuchScope => row(
                "no-such-scope",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The target has no such lane, or its limits need a key that was not given.",
                    "Name a lane of the target, and give `key` exactly where a limit counts by key.",
                ),
            ),
            Self::NotFound => row(
                "not-found",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "There is no such buffer or item.",
                    "Check the id; `GET /v1/buffers` lists the buffers, `GET /v1/buffers/{id}/items` their items.",
                ),
            ),
            Self::Conflict => row(
                "conflict",
                StatusCode::CONFLICT,
                "http_request_error",
                (Rejected, Debug),
                (
                    "What is asked does not fit how things are.",
                    "See `detail`: another name, or another moment.",
                ),
            ),
            Self::KeyReused => row(
                "idempotency-key-reused",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The `Idempotency-Key` was used before, for something else.",
                    "Use a key of its own for each request.",
                ),
            ),
            Self::NotKept => row(
                "not-kept",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request must not be kept on disk: it carries a secret, and there is no key to seal it with.",
                    "Set `spool.key`, or let the target set the field (`set_headers`).",
                ),
            ),
            Self::BodyTooLarge => row(
                "body-too-large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The body is larger than what is kept.",
                    "Send less, or raise `spool.max_body`.",
                ),
            ),
            Self::SpoolFull => row(
                "spool-full",
                StatusCode::INSUFFICIENT_STORAGE,
                "http_request_denied",
                (Refused, Warn),
                (
                    "The spool has no room for more; what it keeps goes on being delivered.",
                    "Come back after `Retry-After`; or raise `spool.max`, purge history, or free the disk.",
                ),
            ),
            Self::SpoolAway => row(
                "spool-away",
                StatusCode::SERVICE_UNAVAILABLE,
                "proxy_internal_error",
                (Failed, Warn),
                (
                    "The spool cannot be used now; nothing was kept.",
                    "See the log; a disk that fails ends outpace, and its supervisor should start it again.",
                ),
            ),
            Self::SpoolOff => row(
                "spool-off",
                StatusCode::NOT_FOUND,
                "http_request_denied",
                (Rejected, Debug),
                (
                    "This outpace keeps nothing: it has no spool.",
                    "Write `spool: {}` in its configuration.",
                ),
            ),
            Self::ScopeMissing => row(
                "scope-missing",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The client is known, and may not do that.",
                    "Give it the scope in `clients: scopes`.",
                ),
            ),
            Self::Internal => row(
                "internal",
                StatusCode::INTERNAL_SERVER_ERROR,
                "proxy_internal_error",
                (Failed, Warn),
                (
                    "Something broke inside outpace.",
                    "Please report it with the log.",
                ),
            ),
        }
    }
}
