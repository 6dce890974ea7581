//! Guard of the admin port against web pages: the host, the site and the type of each request.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::{Admin, problem};
use crate::exchange::has_content;
use crate::policy::ListenerId;
use crate::semantics::{self, Authority, RequestTarget};
use crate::units::Scheme;

/// Paths of the probes. They reveal only the readiness, and orchestrators call them by any host.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// Refuses requests that a web page of another site could have sent, and answers all others.
pub(super) async fn guard(
    State(admin): State<Admin>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut response = match check(&admin, &mut request).await {
        Ok(()) => next.run(request).await,
        Err((status, text)) => problem(status, &text),
    };
    semantics::forbid_sniffing(response.headers_mut());
    response
}

/// Checks a request. A refusal is the status and the text of its response.
async fn check(admin: &Admin, request: &mut Request) -> Result<(), (StatusCode, String)> {
    if PROBES.contains(&request.uri().path()) {
        return Ok(());
    }
    let requested = semantics::classify(request);
    let requested = requested.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let named = match requested {
        RequestTarget::Origin(named) => named,
        RequestTarget::Absolute(origin) => Authority {
            host: origin.host,
            port: Some(origin.port),
        },
        RequestTarget::Connect(_) | RequestTarget::Asterisk => {
            let text = "the admin port is no proxy; send CONNECT to the proxy's port".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, text));
        }
    };
    let listener = admin.serving.admin.ip();
    let known = semantics::is_own_host(&named.host, listener)
        || admin
            .policy
            .load()
            .names_listener(ListenerId::Admin, &named.host);
    if listener.is_loopback() && !known {
        let text = format!(
            "`{}` is not a name of the admin port; use `localhost`, or add it to `admin.hosts`",
            named.host
        );
        return Err((StatusCode::MISDIRECTED_REQUEST, text));
    }
    let scheme = match admin.policy.load().tls.admin {
        Some(_) => Scheme::Https,
        None => Scheme::Http,
    };
    if semantics::is_cross_site(request.method(), request.headers(), &named, scheme) {
        let text = "cross-site: the request comes from a web page of another site".to_owned();
        return Err((StatusCode::FORBIDDEN, text));
    }
    if semantics::needs_no_preflight(request.headers()) && has_content(request.body_mut()).await {
        let text = "the body needs `Content-Type: application/json`".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    Ok(())
}
