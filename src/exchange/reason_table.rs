//! Table from each reason to its status code, error type, level and texts.
//!
//! The match has no wildcard arm, so a new reason does not compile without its row.

use http::StatusCode;

use super::reason::{Level, Reason, ReasonRow};
use crate::telemetry::ExchangeOutcome;

impl Reason {
    /// Returns the table row of this reason, from which all its responses and log lines are made.
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
                    "The request is malformed or incomplete.",
                    "Correct the fault that `detail` names.",
                ),
            ),
            Self::Misdirected => row(
                "misdirected",
                StatusCode::MISDIRECTED_REQUEST,
                "http_request_error",
                (Rejected, Debug),
                (
                    "A request inside a CONNECT names another host than the CONNECT.",
                    "Open a new CONNECT for the other host.",
                ),
            ),
            Self::ExpectationFailed => row(
                "expectation-failed",
                StatusCode::EXPECTATION_FAILED,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The request has an `Expect` header with a value other than `100-continue`.",
                    "Remove the `Expect` header.",
                ),
            ),
            Self::MethodNotAllowed => row(
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The method is not allowed for this request.",
                    "Use another method. TRACE is never forwarded, because its response would repeat credentials.",
                ),
            ),
            Self::LoopDetected => row(
                "loop-detected",
                StatusCode::LOOP_DETECTED,
                "proxy_loop_detected",
                (Refused, Warn),
                (
                    "The request would return to this proxy.",
                    "Check the address that the host resolves to. Check `routes`, and the proxy variables in outpace's own environment.",
                ),
            ),
            Self::ClientUnknown => row(
                "client-unknown",
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The proxy accepts only known clients, and the request carries no valid client name and token.",
                    "Set the proxy URL to `http://NAME:TOKEN@HOST:PORT`, with a name and token from `clients`.",
                ),
            ),
            Self::NoRoute => row(
                "no-route",
                StatusCode::NOT_FOUND,
                "destination_not_found",
                (Refused, Debug),
                (
                    "No route of outpace matches the request.",
                    "To use outpace as a proxy, set `HTTP_PROXY` and `HTTPS_PROXY`. To use it as a server, add the host to `routes`.",
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
                    "The host has no public address, so outpace does not connect to it.",
                    "To connect through outpace, add the address to `egress.allow`. To bypass outpace, add the host to `NO_PROXY`.",
                ),
            ),
            Self::CrossSite => row(
                "cross-site",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Warn),
                (
                    "A web page of another site sent the request to a target that adds credentials.",
                    "Call the target from your own code instead of a web page.",
                ),
            ),
            Self::WaitTooLong => row(
                "wait-too-long",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request cannot be sent within its max wait.",
                    "Retry after the time in `Retry-After`. To wait longer, raise `Outpace-Max-Wait` or the target's `max_wait`, of which the smaller applies.",
                ),
            ),
            Self::QueueFull => row(
                "queue-full",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Warn),
                (
                    "The target's queue is full.",
                    "Retry after the time in `Retry-After`, or raise the target's `max_waiting`.",
                ),
            ),
            Self::OriginUnresolved => row(
                "origin-unresolved",
                StatusCode::BAD_GATEWAY,
                "dns_error",
                (Failed, Debug),
                (
                    "The host name could not be resolved.",
                    "Check the spelling of the host, the machine's DNS resolver and `egress.resolve`.",
                ),
            ),
            Self::OriginRefused => row(
                "origin-refused",
                StatusCode::BAD_GATEWAY,
                "connection_refused",
                (Failed, Debug),
                (
                    "The connection to the origin failed. Nothing was sent.",
                    "Check that the origin is running and reachable from this machine.",
                ),
            ),
            Self::OriginConnectTimeout => row(
                "origin-connect-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "connection_timeout",
                (Failed, Debug),
                (
                    "The connection to the origin timed out. Nothing was sent.",
                    "Check that the origin is reachable from this machine.",
                ),
            ),
            Self::OriginCertificate => row(
                "origin-certificate",
                StatusCode::BAD_GATEWAY,
                "tls_certificate_error",
                (Failed, Warn),
                (
                    "The origin's certificate was rejected. Nothing was sent.",
                    "If a private CA issued the certificate, add that CA to `egress.roots`.",
                ),
            ),
            Self::OriginTls => row(
                "origin-tls",
                StatusCode::BAD_GATEWAY,
                "tls_protocol_error",
                (Failed, Warn),
                (
                    "The TLS handshake with the origin failed. Nothing was sent.",
                    "Check that the origin supports TLS 1.2 or 1.3 on that port.",
                ),
            ),
            Self::ParentProxy => row(
                "parent-proxy",
                StatusCode::BAD_GATEWAY,
                "destination_unavailable",
                (Failed, Warn),
                (
                    "The parent proxy did not connect to the origin. Nothing was sent.",
                    "Check `egress.upstream_proxy` and its credentials.",
                ),
            ),
            Self::OriginBroke => row(
                "origin-broke",
                StatusCode::BAD_GATEWAY,
                "connection_terminated",
                (Failed, Debug),
                (
                    "The connection to the origin broke after the request was sent. The request may have taken effect.",
                    "If the request is safe to repeat, send an `Idempotency-Key` or set `idempotent: true` on the target. outpace can then retry it.",
                ),
            ),
            Self::OriginTimeout => row(
                "origin-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "http_response_timeout",
                (Failed, Debug),
                (
                    "The origin did not respond in time. The request may have taken effect.",
                    "Check that the origin works. Check the effect of the request before you repeat it.",
                ),
            ),
            Self::OriginProtocol => row(
                "origin-protocol",
                StatusCode::BAD_GATEWAY,
                "http_protocol_error",
                (Failed, Warn),
                (
                    "The origin sent a response that must not be forwarded.",
                    "Check the server behind that host. `detail` names the fault.",
                ),
            ),
            Self::ClientTokenUnknown => row(
                "client-token-unknown",
                StatusCode::UNAUTHORIZED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The route or the API accepts only known clients, and the request carries no valid client name and token.",
                    "Send `Outpace-Client-Token: NAME:TOKEN`, with a name and token from `clients`. Without configured `clients`, call the API from outpace's own machine.",
                ),
            ),
            Self::InnerNotHttp => row(
                "inner-not-http",
                StatusCode::BAD_REQUEST,
                "http_request_error",
                (Rejected, Warn),
                (
                    "The client sent neither TLS nor HTTP inside a CONNECT to a target. The connection was closed.",
                    "For another protocol, set `tls: tunnel` on the target. outpace then paces connections instead of requests.",
                ),
            ),
            Self::InnerTls => row(
                "inner-tls",
                StatusCode::BAD_REQUEST,
                "tls_protocol_error",
                (Rejected, Debug),
                (
                    "The TLS handshake with the client inside its CONNECT failed. The connection was closed.",
                    "Check that the client supports TLS 1.2 or 1.3 and sends the CONNECT's host as server name.",
                ),
            ),
            Self::InnerDistrusted => row(
                "inner-distrusted",
                StatusCode::BAD_REQUEST,
                "tls_alert_received",
                (Rejected, Debug),
                (
                    "The client does not trust outpace's CA. The connection was closed.",
                    "Run the client with the variables that `outpace env` prints, or set `tls: tunnel` on the target.",
                ),
            ),
            Self::NoSuchCall => row(
                "no-such-call",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The API has no such path, target or permit.",
                    "Check the path, the target's name and the permit.",
                ),
            ),
            Self::NoSuchScope => row(
                "no-such-scope",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The lane or the key does not fit the target.",
                    "Name a lane of the target. Send `key` if a limit of the target counts by it, and only then.",
                ),
            ),
            Self::NotFound => row(
                "not-found",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The buffer or item does not exist.",
                    "Check the id. `GET /v1/buffers` lists the buffers, and `GET /v1/buffers/{id}/items` lists the items of a buffer.",
                ),
            ),
            Self::Conflict => row(
                "conflict",
                StatusCode::CONFLICT,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The request conflicts with the current state of the buffer or item.",
                    "Read `detail`. Choose another name, or wait until the state allows the request.",
                ),
            ),
            Self::KeyReused => row(
                "idempotency-key-reused",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The `Idempotency-Key` was already used with a different body.",
                    "Use a new key for each request.",
                ),
            ),
            Self::NotSpoolable => row(
                "not-spoolable",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request must not be stored, because it carries a secret and there is no key to encrypt it.",
                    "Set `spool.key`, or let the target add the header (`set_headers`).",
                ),
            ),
            Self::BodyTooLarge => row(
                "body-too-large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The body is too large to be stored.",
                    "Send a smaller body or batch, or raise `spool.max_body`.",
                ),
            ),
            Self::SpoolFull => row(
                "spool-full",
                StatusCode::INSUFFICIENT_STORAGE,
                "http_request_denied",
                (Refused, Warn),
                (
                    "The spool is full. Stored items are still delivered.",
                    "Retry after the time in `Retry-After`. To make room, raise `spool.max`, purge history or free disk space.",
                ),
            ),
            Self::SpoolUnavailable => row(
                "spool-unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "proxy_internal_error",
                (Failed, Warn),
                (
                    "The spool is unavailable.",
                    "Retry later, and read the log. After a disk failure outpace exits, and its supervisor must restart it.",
                ),
            ),
            Self::SpoolDisabled => row(
                "spool-disabled",
                StatusCode::NOT_FOUND,
                "http_request_denied",
                (Rejected, Debug),
                (
                    "outpace runs without a spool.",
                    "Add `spool: {}` to the configuration of outpace.",
                ),
            ),
            Self::ScopeMissing => row(
                "scope-missing",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The client lacks the API scope for this call.",
                    "Add the scope that `detail` names to the client's `scopes` in `clients`.",
                ),
            ),
            Self::Internal => row(
                "internal",
                StatusCode::INTERNAL_SERVER_ERROR,
                "proxy_internal_error",
                (Failed, Warn),
                (
                    "An internal error occurred in outpace.",
                    "Report the error together with the log.",
                ),
            ),
        }
    }
}
