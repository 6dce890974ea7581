//! Table of the reasons, each with its status code, error type, level and texts.

use http::StatusCode;

use super::reason::{Level, ReasonRow};
use crate::telemetry::ExchangeOutcome;

/// Defines [`Reason`] with all its rows, so that no reason can exist without its row.
macro_rules! reasons {
    ($($name:ident, $token:literal, $status:ident, $error:literal, $outcome:ident, $level:ident:
        $meaning:literal,
        $remedy:literal;)+) => {
        /// Reason for a response that outpace generated instead of the origin.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = $meaning] $name),+
        }

        impl Reason {
            /// All reasons, in the order of the rows in `docs/errors.md`.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the row of this reason, from which its responses and log lines are made.
            pub const fn row(self) -> ReasonRow {
                match self {
                    $(Self::$name => ReasonRow {
                        token: $token,
                        status: StatusCode::$status,
                        proxy_error: $error,
                        outcome: ExchangeOutcome::$outcome,
                        level: Level::$level,
                        meaning: $meaning,
                        remedy: $remedy,
                    }),+
                }
            }
        }
    };
}

// Each row has the name, the token, the status code, the error type of RFC 9209, the outcome and
// the level, and then the meaning and the remedy.
reasons! {
    MalformedRequest, "malformed-request", BAD_REQUEST, "http_request_error", Rejected, Debug:
        "The request is invalid or incomplete.",
        "Correct the part of the request that `detail` describes.";
    HeadTooLarge, "head-too-large", REQUEST_HEADER_FIELDS_TOO_LARGE, "http_request_error", Rejected, Debug:
        "The request's head exceeds a bound of outpace.",
        "Send fewer or shorter header fields.";
    UriTooLong, "uri-too-long", URI_TOO_LONG, "http_request_error", Rejected, Debug:
        "The request-target is too long.",
        "Shorten the path or the query, or send the data in a body.";
    Misdirected, "misdirected", MISDIRECTED_REQUEST, "http_request_error", Rejected, Debug:
        "The request's host or port differs from that of its CONNECT.",
        "Open a CONNECT to the request's own host and port.";
    UnknownHost, "unknown-host", MISDIRECTED_REQUEST, "http_request_denied", Refused, Debug:
        "The `Host` of the request is not a name of this listener. A web page could have given its own name outpace's address (DNS rebinding).",
        "Use `localhost`, a loopback address or the host of `public_url`, or list the name in the `hosts` of the listener or route.";
    ExpectationFailed, "expectation-failed", EXPECTATION_FAILED, "http_request_error", Rejected, Debug:
        "The `Expect` header has a value other than `100-continue`.",
        "Remove the `Expect` header.";
    MethodNotAllowed, "method-not-allowed", METHOD_NOT_ALLOWED, "http_request_denied", Refused, Debug:
        "The method is not forwarded. outpace forwards no TRACE, and no CONNECT inside a CONNECT.",
        "Use another method.";
    LoopDetected, "loop-detected", LOOP_DETECTED, "proxy_loop_detected", Refused, Warn:
        "The request leads back to outpace itself.",
        "Make sure that the host does not resolve to outpace's own address, in DNS or in `egress.resolve`. Then check that `routes` and `egress.upstream_proxy` do not name outpace.";
    ClientUnknown, "client-unknown", PROXY_AUTHENTICATION_REQUIRED, "http_request_denied", Refused, Debug:
        "The request to the proxy has no valid client name and token.",
        "Use the proxy URL `http://NAME:TOKEN@HOST:PORT` with a client from `clients`.";
    NoRoute, "no-route", NOT_FOUND, "destination_not_found", Refused, Debug:
        "No entry of `routes` matches the request.",
        "Set outpace as the client's proxy (`HTTPS_PROXY`), use the path `/to/HOST/…` for a host of a target, or add the host to `routes`.";
    HostNotAllowed, "host-not-allowed", FORBIDDEN, "http_request_denied", Refused, Debug:
        "No target matches the host, and `unmatched: refuse` is set.",
        "Add the host to the `hosts` of a target, or set `unmatched: tunnel`.";
    PortNotAllowed, "port-not-allowed", FORBIDDEN, "http_request_denied", Refused, Debug:
        "The port is not allowed. CONNECT reaches 443, other requests reach 443 and 80, and both reach the listed ports.",
        "Add the port to `connect_ports`, or add `host:port` to the `hosts` of a target.";
    AddressProhibited, "address-prohibited", FORBIDDEN, "destination_ip_prohibited", Refused, Debug:
        "The host's address is not public, and `egress.allow` does not list it.",
        "Add the address to `egress.allow`, or bypass outpace with `NO_PROXY`.";
    CrossSite, "cross-site", FORBIDDEN, "http_request_denied", Refused, Warn:
        "A browser sent the request for a web page of another origin. outpace refuses such requests to the API, to routes and to targets with credentials (`set_headers`).",
        "Send the request from a program instead of a web page.";
    CredentialsNeedTls, "credentials-need-tls", FORBIDDEN, "http_request_denied", Refused, Warn:
        "The operator's credentials (`set_headers`, or `headers` of a declared buffer) would leave without TLS, or to a port that they are not meant for.",
        "Use https and a port of the target's `hosts`. Only if the origin has no TLS, set `set_headers_over_http: true` on the target.";
    WaitTooLong, "wait-too-long", TOO_MANY_REQUESTS, "http_request_denied", Refused, Debug:
        "The request would have to wait longer than its max wait.",
        "Retry after the time in `Retry-After`. To allow a longer wait, raise the target's `max_wait`. If the client sends `Outpace-Max-Wait`, raise that too.";
    QueueFull, "queue-full", TOO_MANY_REQUESTS, "http_request_denied", Refused, Warn:
        "The target's queue already holds `max_waiting` requests.",
        "Retry after the time in `Retry-After`, or raise the target's `max_waiting`.";
    TooManyHosts, "too-many-hosts", TOO_MANY_REQUESTS, "http_request_denied", Refused, Debug:
        "Many CONNECTs to new hosts came at once, and each needs a new certificate.",
        "Retry after the time in `Retry-After`. If the requests need no pacing, exclude the hosts from the target or set `tls: tunnel` on it.";
    ClientShareFull, "client-share-full", TOO_MANY_REQUESTS, "http_request_denied", Refused, Debug:
        "The client already holds its share of the bound that `detail` names: of a queue, of permits or of memory.",
        "Retry after the time in `Retry-After`, send fewer requests at the same time, or raise the client's `share`.";
    MemoryFull, "memory-full", SERVICE_UNAVAILABLE, "http_request_denied", Refused, Warn:
        "The request would have to wait, but waiting requests and their bodies already occupy `bodies.memory_total`.",
        "Retry after the time in `Retry-After`, or raise `bodies.memory_total`.";
    LedgerUnavailable, "ledger-unavailable", SERVICE_UNAVAILABLE, "http_request_denied", Refused, Debug:
        "The ledger's database does not take bookings, and this replica has no fallback share for the request.",
        "Retry after the time in `Retry-After`. `detail` and the log name the cause; repair the database, or choose `on_outage`.";
    NotBookable, "not-bookable", BAD_REQUEST, "http_request_error", Rejected, Debug:
        "The ledger's database refuses a key or the cost of the request. Nothing was sent, and other requests are not affected.",
        "Correct the value that the target's limit uses as `key` or `cost`. If the value is valid, report the error in the log.";
    OriginUnresolved, "origin-unresolved", BAD_GATEWAY, "dns_error", Failed, Debug:
        "The host name could not be resolved.",
        "Check the spelling of the host, the DNS resolver and `egress.resolve`.";
    OriginRefused, "origin-refused", BAD_GATEWAY, "connection_refused", Failed, Debug:
        "The origin did not accept the connection. Nothing was sent.",
        "Check that the origin is running and reachable from outpace's machine.";
    OriginConnectTimeout, "origin-connect-timeout", GATEWAY_TIMEOUT, "connection_timeout", Failed, Debug:
        "The connection to the origin timed out. Nothing was sent.",
        "Check that the origin is reachable from outpace's machine.";
    OriginCertificate, "origin-certificate", BAD_GATEWAY, "tls_certificate_error", Failed, Warn:
        "outpace could not verify the origin's certificate. Nothing was sent.",
        "If a private CA issued the certificate, add that CA to `egress.roots`.";
    OriginTls, "origin-tls", BAD_GATEWAY, "tls_protocol_error", Failed, Warn:
        "The TLS handshake with the origin failed. Nothing was sent.",
        "Check that the origin supports TLS 1.2 or 1.3 on that port. Then check that no firewall between outpace and the origin closes the connection.";
    OriginClientCertificate, "origin-client-certificate", BAD_GATEWAY, "tls_alert_received", Failed, Warn:
        "The origin accepts only clients with a TLS certificate that it trusts. The request was not processed.",
        "Set `egress.client_certs` for the host, or `tls: tunnel` on the target if the client has the certificate.";
    OriginBusy, "origin-busy", SERVICE_UNAVAILABLE, "connection_limit_reached", Failed, Debug:
        "All connections to the origin are in use. Nothing was sent.",
        "Retry later. If this is frequent, set or lower a `concurrent` limit, so that the target's requests wait in its queue.";
    OriginDeclined, "origin-declined", BAD_GATEWAY, "http_response_incomplete", Failed, Debug:
        "The origin ended the connection or the stream and declared that it did not process the request.",
        "Retry the request. If this is frequent, set or lower a `concurrent` limit on the target.";
    ParentProxy, "parent-proxy", BAD_GATEWAY, "destination_unavailable", Failed, Warn:
        "The parent proxy did not connect to the origin. Nothing was sent.",
        "Check the URL and the credentials in `egress.upstream_proxy`, or in `HTTPS_PROXY` of the shell that called `outpace run`.";
    OriginBroke, "origin-broke", BAD_GATEWAY, "connection_terminated", Failed, Debug:
        "The origin's connection broke after the request was sent. The request may have taken effect.",
        "If a repetition is safe, allow retries with `Idempotency-Key` or `idempotent: true`.";
    OriginTimeout, "origin-timeout", GATEWAY_TIMEOUT, "http_response_timeout", Failed, Debug:
        "The origin did not respond in time. The request may have taken effect.",
        "Check the effect of the request before you repeat it.";
    OriginStalled, "origin-stalled", GATEWAY_TIMEOUT, "connection_write_timeout", Failed, Debug:
        "The origin took no bytes of the request body for `body_idle_timeout`. The request may have taken effect.",
        "Check that the origin reads request bodies, or raise the target's `body_idle_timeout`.";
    BodyTimeout, "body-timeout", REQUEST_TIMEOUT, "http_request_error", Rejected, Debug:
        "The client sent no bytes of its request body for `body_idle_timeout`.",
        "Send the body without long pauses, or raise the target's `body_idle_timeout`.";
    ClientStalled, "client-stalled", REQUEST_TIMEOUT, "http_request_error", Rejected, Debug:
        "The client took no bytes of the response for `body_idle_timeout`. outpace reset the connection or the HTTP/2 stream.",
        "Read the response to its end, or raise the target's `body_idle_timeout`.";
    OriginProtocol, "origin-protocol", BAD_GATEWAY, "http_protocol_error", Failed, Warn:
        "The origin sent an invalid HTTP response.",
        "Report the fault that `detail` describes to the origin's operator.";
    ClientTokenUnknown, "client-token-unknown", UNAUTHORIZED, "http_request_denied", Refused, Debug:
        "A request to a route or the API has no valid client name and token.",
        "If `clients` are configured, send `Outpace-Client-Token: NAME:TOKEN`. If not, call the API on outpace's own machine, at a loopback address such as 127.0.0.1.";
    InnerNotHttp, "inner-not-http", BAD_REQUEST, "http_request_error", Rejected, Warn:
        "The client sent neither TLS nor HTTP inside its CONNECT.",
        "To pace connections of another protocol, set `tls: tunnel` on the target.";
    InnerTls, "inner-tls", BAD_REQUEST, "tls_protocol_error", Rejected, Debug:
        "The TLS handshake with the client inside its CONNECT failed.",
        "Use TLS 1.2 or 1.3, with the CONNECT's host as server name (SNI).";
    InnerDistrusted, "inner-distrusted", BAD_REQUEST, "tls_alert_received", Rejected, Debug:
        "The client does not trust outpace's CA.",
        "Run the client with the variables that `outpace env` prints.";
    NoSuchCall, "no-such-call", NOT_FOUND, "http_request_error", Rejected, Debug:
        "The API has no call with this path.",
        "Correct the path. `GET /v1/openapi.json` lists all calls.";
    CallMethod, "call-method-not-allowed", METHOD_NOT_ALLOWED, "http_request_error", Rejected, Debug:
        "The API call exists with other methods only.",
        "Use a method that `Allow` lists.";
    CallInvalid, "call-invalid", BAD_REQUEST, "http_request_error", Rejected, Debug:
        "The body or a parameter of the API call is invalid.",
        "Correct the value that `detail` describes.";
    NoSuchTarget, "no-such-target", NOT_FOUND, "http_request_error", Rejected, Debug:
        "The configuration has no target with this name.",
        "Use a target that `detail` lists, or add it to `targets`.";
    NoSuchPermit, "no-such-permit", NOT_FOUND, "http_request_error", Rejected, Debug:
        "The permit does not exist at this replica: it was released, it has expired, or another replica gave it.",
        "Acquire a new permit, and send later calls to the replica that gave it.";
    UnsupportedType, "unsupported-type", UNSUPPORTED_MEDIA_TYPE, "http_request_error", Rejected, Debug:
        "The body of an API call has no `Content-Type`, or one that any web page may send.",
        "Send `Content-Type: application/json`, or `application/octet-stream` to push a plain body.";
    NoSuchScope, "no-such-scope", UNPROCESSABLE_ENTITY, "http_request_error", Rejected, Debug:
        "The `lane` is unknown, or the `key` is missing or not used by any limit.",
        "Correct the `lane` or the `key` as `detail` describes.";
    NotFound, "not-found", NOT_FOUND, "http_request_error", Rejected, Debug:
        "The buffer or item does not exist.",
        "Use an id from `GET /v1/buffers` or `GET /v1/buffers/{id}/items`.";
    NoResponse, "no-response", GONE, "http_request_error", Rejected, Debug:
        "The item has ended, but there is no response to return: it ended without a complete response of the origin.",
        "Read `state` and `last_error` in `GET /v1/items/{id}`, or push the request again.";
    Conflict, "conflict", CONFLICT, "http_request_error", Rejected, Debug:
        "The buffer name is taken, or the state of the buffer or item forbids the request.",
        "Use another buffer name, or first change the state that `detail` describes.";
    KeyReused, "idempotency-key-reused", UNPROCESSABLE_ENTITY, "http_request_error", Rejected, Debug:
        "The `Idempotency-Key` was already used for a different request.",
        "Use a new `Idempotency-Key` for each request.";
    NotSpoolable, "not-spoolable", UNPROCESSABLE_ENTITY, "http_request_denied", Refused, Debug:
        "A header field holds a credential, and the encryption key `spool.key` is not set.",
        "Set `spool.key`, or let the target add the field (`set_headers`).";
    NotStorable, "not-storable", BAD_REQUEST, "http_request_error", Rejected, Debug:
        "The spool's database refuses a value of the request. Nothing was stored, and other requests are not affected.",
        "Correct the value that `detail` describes.";
    BodyTooLarge, "body-too-large", PAYLOAD_TOO_LARGE, "http_request_error", Rejected, Debug:
        "The body is too large to be stored.",
        "Send a smaller body or batch, or raise `spool.max_body`.";
    SpoolFull, "spool-full", INSUFFICIENT_STORAGE, "http_request_denied", Refused, Warn:
        "The spool, or its disk, has no room for the push. Stored items are still delivered.",
        "Retry later, and change the bound that `detail` names: `spool.max`, `spool.min_free` or the disk.";
    SpoolShareFull, "spool-share-full", INSUFFICIENT_STORAGE, "http_request_denied", Refused, Debug:
        "The client has used its share of the spool. Other clients can still push.",
        "Retry later, let the client purge finished items, or raise its `spool` in `clients`.";
    PushThrottled, "push-throttled", TOO_MANY_REQUESTS, "http_request_denied", Refused, Debug:
        "The client pushes more items per second than one client may.",
        "Retry after `Retry-After`, or push several items with one call of `batch`.";
    SpoolUnavailable, "spool-unavailable", SERVICE_UNAVAILABLE, "proxy_internal_error", Failed, Warn:
        "The spool's disk or database cannot be used.",
        "Retry later. If outpace has stopped after a disk failure, restart it.";
    SpoolDisabled, "spool-disabled", NOT_FOUND, "http_request_denied", Rejected, Debug:
        "outpace runs without a spool.",
        "Add `spool: {}` to the configuration, then restart outpace.";
    ScopeMissing, "scope-missing", FORBIDDEN, "http_request_denied", Refused, Debug:
        "The client lacks the permission (API scope) for this call.",
        "Add the scope that `detail` names to the client's `scopes`.";
    OperatorsOnly, "operators-only", FORBIDDEN, "http_request_denied", Refused, Debug:
        "Only operators may change, stop or empty this buffer.",
        "Use `outpace buffers` and `outpace items`, or the same call on the admin port.";
    OverrideNotAllowed, "override-not-allowed", FORBIDDEN, "http_request_denied", Refused, Debug:
        "The buffer does not allow items with this method or path.",
        "Leave `method` and `path` out, or list them in the buffer's `allow`.";
    Internal, "internal", INTERNAL_SERVER_ERROR, "proxy_internal_error", Failed, Warn:
        "An internal error occurred in outpace.",
        "Report the error together with the log.";
}
