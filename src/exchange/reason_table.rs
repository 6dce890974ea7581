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
                    "The request is invalid or incomplete.",
                    "Correct the part of the request that `detail` describes.",
                ),
            ),
            Self::Misdirected => row(
                "misdirected",
                StatusCode::MISDIRECTED_REQUEST,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The request's host or port differs from that of its CONNECT.",
                    "Open a CONNECT to the request's own host and port.",
                ),
            ),
            Self::ExpectationFailed => row(
                "expectation-failed",
                StatusCode::EXPECTATION_FAILED,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The `Expect` header has a value other than `100-continue`.",
                    "Remove the `Expect` header.",
                ),
            ),
            Self::MethodNotAllowed => row(
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The method is TRACE, a CONNECT inside a CONNECT, or wrong for this API call.",
                    "Use another method. `GET /v1/openapi.json` lists the methods of the API.",
                ),
            ),
            Self::LoopDetected => row(
                "loop-detected",
                StatusCode::LOOP_DETECTED,
                "proxy_loop_detected",
                (Refused, Warn),
                (
                    "The request leads back to outpace itself.",
                    "Remove outpace's address from the host's DNS entry, `routes`, `egress.resolve` or the upstream proxy.",
                ),
            ),
            Self::ClientUnknown => row(
                "client-unknown",
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request to the proxy has no valid client name and token.",
                    "Use the proxy URL `http://NAME:TOKEN@HOST:PORT` with a client from `clients`.",
                ),
            ),
            Self::NoRoute => row(
                "no-route",
                StatusCode::NOT_FOUND,
                "destination_not_found",
                (Refused, Debug),
                (
                    "No entry of `routes` matches the request.",
                    "Set outpace as the client's proxy (`HTTPS_PROXY`), or add the host to `routes`.",
                ),
            ),
            Self::HostNotAllowed => row(
                "host-not-allowed",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "No target matches the host, and `unmatched: refuse` is set.",
                    "Add the host to the `hosts` of a target, or set `unmatched: tunnel`.",
                ),
            ),
            Self::PortNotAllowed => row(
                "port-not-allowed",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "CONNECT to this port is not allowed.",
                    "Add the port to `connect_ports`, or add `host:port` to the `hosts` of a target.",
                ),
            ),
            Self::AddressProhibited => row(
                "address-prohibited",
                StatusCode::FORBIDDEN,
                "destination_ip_prohibited",
                (Refused, Debug),
                (
                    "The host's address is not public, and `egress.allow` does not list it.",
                    "Add the address to `egress.allow`, or bypass outpace with `NO_PROXY`.",
                ),
            ),
            Self::CrossSite => row(
                "cross-site",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Warn),
                (
                    "A web page of another site sent a request to which outpace adds credentials.",
                    "Send the request from a program instead of a web page.",
                ),
            ),
            Self::WaitTooLong => row(
                "wait-too-long",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The request would have to wait longer than its max wait.",
                    "Retry after the time in `Retry-After`, or raise the smaller of `Outpace-Max-Wait` and `max_wait`.",
                ),
            ),
            Self::QueueFull => row(
                "queue-full",
                StatusCode::TOO_MANY_REQUESTS,
                "http_request_denied",
                (Refused, Warn),
                (
                    "The target's queue already holds `max_waiting` requests.",
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
                    "Check the spelling of the host, the DNS resolver and `egress.resolve`.",
                ),
            ),
            Self::OriginRefused => row(
                "origin-refused",
                StatusCode::BAD_GATEWAY,
                "connection_refused",
                (Failed, Debug),
                (
                    "The origin did not accept the connection. Nothing was sent.",
                    "Check that the origin is running and reachable from outpace's machine.",
                ),
            ),
            Self::OriginConnectTimeout => row(
                "origin-connect-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "connection_timeout",
                (Failed, Debug),
                (
                    "The connection to the origin timed out. Nothing was sent.",
                    "Check that the origin is reachable from outpace's machine.",
                ),
            ),
            Self::OriginCertificate => row(
                "origin-certificate",
                StatusCode::BAD_GATEWAY,
                "tls_certificate_error",
                (Failed, Warn),
                (
                    "outpace could not verify the origin's certificate. Nothing was sent.",
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
                    "The proxy in `egress.upstream_proxy` did not connect to the origin. Nothing was sent.",
                    "Check the URL and the credentials in `egress.upstream_proxy`.",
                ),
            ),
            Self::OriginBroke => row(
                "origin-broke",
                StatusCode::BAD_GATEWAY,
                "connection_terminated",
                (Failed, Debug),
                (
                    "The origin's connection broke after the request was sent. The request may have taken effect.",
                    "If a repetition is safe, allow retries with `Idempotency-Key` or `idempotent: true`.",
                ),
            ),
            Self::OriginTimeout => row(
                "origin-timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "http_response_timeout",
                (Failed, Debug),
                (
                    "The origin did not respond in time. The request may have taken effect.",
                    "Check the effect of the request before you repeat it.",
                ),
            ),
            Self::OriginProtocol => row(
                "origin-protocol",
                StatusCode::BAD_GATEWAY,
                "http_protocol_error",
                (Failed, Warn),
                (
                    "The origin sent an invalid HTTP response.",
                    "Correct the fault in the origin's server that `detail` describes.",
                ),
            ),
            Self::ClientTokenUnknown => row(
                "client-token-unknown",
                StatusCode::UNAUTHORIZED,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The route or API call has no valid client name and token.",
                    "Send `Outpace-Client-Token: NAME:TOKEN`. If `clients` is not set, the API accepts only local calls.",
                ),
            ),
            Self::InnerNotHttp => row(
                "inner-not-http",
                StatusCode::BAD_REQUEST,
                "http_request_error",
                (Rejected, Warn),
                (
                    "The client sent neither TLS nor HTTP inside its CONNECT.",
                    "To pace connections of another protocol, set `tls: tunnel` on the target.",
                ),
            ),
            Self::InnerTls => row(
                "inner-tls",
                StatusCode::BAD_REQUEST,
                "tls_protocol_error",
                (Rejected, Debug),
                (
                    "The TLS handshake with the client inside its CONNECT failed.",
                    "Use TLS 1.2 or 1.3, with the CONNECT's host as server name (SNI).",
                ),
            ),
            Self::InnerDistrusted => row(
                "inner-distrusted",
                StatusCode::BAD_REQUEST,
                "tls_alert_received",
                (Rejected, Debug),
                (
                    "The client does not trust outpace's CA.",
                    "Run the client with the variables that `outpace env` prints.",
                ),
            ),
            Self::NoSuchCall => row(
                "no-such-call",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The API path, the target or the permit does not exist.",
                    "Correct the name that `detail` shows, or acquire a new permit.",
                ),
            ),
            Self::NoSuchScope => row(
                "no-such-scope",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The target has no such `lane`, or `key` is missing or not needed.",
                    "Correct the `lane` or the `key` as `detail` describes.",
                ),
            ),
            Self::NotFound => row(
                "not-found",
                StatusCode::NOT_FOUND,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The buffer or item does not exist.",
                    "Use an id from `GET /v1/buffers` or `GET /v1/buffers/{id}/items`.",
                ),
            ),
            Self::Conflict => row(
                "conflict",
                StatusCode::CONFLICT,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The buffer name is taken, or the current state forbids the request.",
                    "Use another buffer name, or first change the state that `detail` describes.",
                ),
            ),
            Self::KeyReused => row(
                "idempotency-key-reused",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_error",
                (Rejected, Debug),
                (
                    "The `Idempotency-Key` was already used for a different request.",
                    "Use a new `Idempotency-Key` for each request.",
                ),
            ),
            Self::NotSpoolable => row(
                "not-spoolable",
                StatusCode::UNPROCESSABLE_ENTITY,
                "http_request_denied",
                (Refused, Debug),
                (
                    "A header field is secret, and the encryption key `spool.key` is not set.",
                    "Set `spool.key`, or let the target add the field (`set_headers`).",
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
                    "Retry later, or raise `spool.max`, purge history or free disk space.",
                ),
            ),
            Self::SpoolUnavailable => row(
                "spool-unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "proxy_internal_error",
                (Failed, Warn),
                (
                    "The spool's disk or database cannot be used.",
                    "Retry later. If outpace has stopped after a disk failure, restart it.",
                ),
            ),
            Self::SpoolDisabled => row(
                "spool-disabled",
                StatusCode::NOT_FOUND,
                "http_request_denied",
                (Rejected, Debug),
                (
                    "outpace runs without a spool.",
                    "Add `spool: {}` to the configuration, then restart outpace.",
                ),
            ),
            Self::ScopeMissing => row(
                "scope-missing",
                StatusCode::FORBIDDEN,
                "http_request_denied",
                (Refused, Debug),
                (
                    "The client lacks the permission (API scope) for this call.",
                    "Add the scope that `detail` names to the client's `scopes`.",
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
