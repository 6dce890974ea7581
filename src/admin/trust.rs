//! `GET /ca.pem` and `/bundle.pem`: the certificates that apps on other machines trust.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Admin;
use crate::intercept::bundle_text;
use crate::origin::Roots;

/// Media type of certificates in PEM form (RFC 8555 section 9.1).
pub(super) const PEM: &str = "application/pem-certificate-chain";

/// Answers with the certificate of the CA, and during a rotation with both.
pub(super) async fn ca(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, PEM)], admin.leaves.ca().pem())
}

/// Answers with the system's roots, followed by the certificate of the CA.
pub(super) async fn bundle(State(admin): State<Admin>) -> impl IntoResponse {
    let ca = admin.leaves.ca();
    let read =
        tokio::task::spawn_blocking(move || bundle_text(&ca, Roots::system().certificates()));
    // Reading the system's files cannot panic, and without them the CA alone is of use.
    let text = read.await.unwrap_or_default();
    ([(header::CONTENT_TYPE, PEM)], text)
}
