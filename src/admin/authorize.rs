//! Authentication of operators by their tokens, and permission by their roles.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Admin;
use crate::connections::ConnectionSlot;
use crate::policy::{Operator, Policy, Role};
use crate::semantics::bearer_token;
use crate::throttle::{AuthFailure, ListenerKind};

/// Peer of an admin connection, with the slot of the connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) slot: Arc<ConnectionSlot>,
}

/// State of one guarded group of routes, with the role that they need.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    admin: Admin,
    needs: Role,
}

impl Guard {
    /// Guards routes that need the role `needs`.
    pub(super) const fn new(admin: Admin, needs: Role) -> Self {
        Self { admin, needs }
    }

    /// Returns true if these routes need no token. Such are the metrics on loopback, unless a token
    /// for them is configured.
    fn is_open(&self, policy: &Policy) -> bool {
        let is_for_metrics = |operator: &Operator| operator.role == Role::Metrics;
        self.needs == Role::Metrics
            && self.admin.serving.admin.ip().is_loopback()
            && !policy.operators.iter().any(is_for_metrics)
    }
}

/// Answers 401 to a request without a known token, and 403 to a role that does not allow the call.
pub(super) async fn authorize(
    State(guard): State<Guard>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let policy = guard.admin.policy.load_full();
    if guard.is_open(&policy) {
        peer.slot.establish();
        return next.run(request).await;
    }
    let offered = bearer_token(request.headers());
    let matches = |operator: &&Operator| offered.is_some_and(|text| operator.token.matches(text));
    let Some(operator) = policy.operators.iter().find(matches) else {
        let cause = match request.headers().contains_key(header::AUTHORIZATION) {
            true => AuthFailure::Wrong,
            false => AuthFailure::Missing,
        };
        let throttle = Arc::clone(&guard.admin.throttle);
        throttle
            .failed(peer.address, ListenerKind::Admin, cause)
            .await;
        return unauthorized();
    };
    peer.slot.establish();
    if operator.role < guard.needs {
        let (has, needs) = (operator.role.word(), guard.needs.word());
        let text = format!("the token has the role `{has}`, and this call needs `{needs}`");
        return super::problem(StatusCode::FORBIDDEN, &text);
    }
    let access = operator.access.clone();
    request.extensions_mut().insert(access.clone());
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = access.revoked() => unauthorized(),
    }
}

fn unauthorized() -> Response {
    let text = "the admin token is missing or wrong; send `Authorization: Bearer TOKEN`, with `admin.token` or the text of the file `admin-token` in the data directory";
    let mut response = super::problem(StatusCode::UNAUTHORIZED, text);
    let challenge = header::HeaderValue::from_static("Bearer");
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, challenge);
    response.into_response()
}
