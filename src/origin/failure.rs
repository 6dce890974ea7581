//! Classification of hyper's errors by what they say about the request: not sent, not processed,
//! refused for good, or unknown.

use http::Request;
use hyper::client::conn::TrySendError;
use rustls::AlertDescription;

use super::OriginError;
use super::io::ClientRefusal;
use super::pool::SendError;

/// Returns the error of a request that got no response. `B` is the body that hyper was given.
pub(super) fn of_request<B>(mut error: TrySendError<Request<B>>) -> SendError<B> {
    match error.take_message() {
        Some(request) => SendError::Unsent(Box::new(request)),
        None => SendError::Failed(of_exchange(&error.into_error())),
    }
}

/// Returns the origin's refusal of this client instead of the error that followed from it.
pub(super) fn or<B>(error: SendError<B>, refusal: &ClientRefusal) -> SendError<B> {
    refusal.take().map_or(error, SendError::Failed)
}

/// Returns the error of a connection that failed before its first request.
pub(super) fn handshake(error: &hyper::Error) -> OriginError {
    match of_exchange(error) {
        OriginError::Broken(cause) => {
            OriginError::Refused(format!("connected, but the HTTP handshake failed: {cause}"))
        }
        refused => refused,
    }
}

/// Returns what an error says about the request for which it was reported.
fn of_exchange(error: &hyper::Error) -> OriginError {
    // hyper's text is general, and its sources name the actual cause.
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return of_http2(h2);
        }
        if let Some(alert) = alert(cause) {
            return of_alert(alert);
        }
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    match error.is_parse() {
        true => OriginError::Unreadable(text),
        false => OriginError::Broken(text),
    }
}

/// Returns the error of a body that failed together with its head.
pub(super) fn of_body(error: Box<dyn std::error::Error + Send + Sync>) -> OriginError {
    let failed = match error.downcast::<hyper::Error>() {
        Ok(error) => of_exchange(&error),
        Err(error) => OriginError::Broken(error.to_string()),
    };
    match failed {
        OriginError::Broken(cause) => {
            OriginError::Broken(format!("the response broke off: {cause}"))
        }
        failed => failed,
    }
}

fn of_http2(error: &h2::Error) -> OriginError {
    let text = error.to_string();
    let reason = error.reason();
    if error.is_remote() && reason == Some(h2::Reason::HTTP_1_1_REQUIRED) {
        return OriginError::Http1Required;
    }
    // A GOAWAY is reported only to requests on streams that the origin did not process (RFC 9113
    // section 6.8). Requests on earlier streams continue, or get the error of the transport.
    if error.is_remote() && (error.is_go_away() || reason == Some(h2::Reason::REFUSED_STREAM)) {
        return OriginError::Unprocessed {
            cause: text,
            going_away: error.is_go_away(),
        };
    }
    // The library itself ends a stream or a connection only if the origin broke the protocol.
    if error.is_library() {
        return OriginError::Unreadable(text);
    }
    OriginError::Broken(text)
}

/// Returns the refusal of this client that a failed read of a TLS stream reports, if it does.
pub(super) fn refusal(error: &std::io::Error) -> Option<OriginError> {
    let alert = alert(error).filter(|alert| refuses_client(*alert));
    alert.map(of_alert)
}

/// Returns the TLS alert that is the cause of an error, if there is one.
fn alert(cause: &(dyn std::error::Error + 'static)) -> Option<AlertDescription> {
    let io = cause.downcast_ref::<std::io::Error>();
    let inner = io.and_then(|io| io.get_ref()?.downcast_ref::<rustls::Error>());
    match inner.or_else(|| cause.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    }
}

fn of_alert(alert: AlertDescription) -> OriginError {
    match refuses_client(alert) {
        true => OriginError::ClientCertificate(told(alert)),
        false => OriginError::Broken(told(alert)),
    }
}

/// Returns true if the alert says that the origin does not accept this client, whose certificate is
/// missing or wrong (RFC 8446 section 6.2).
pub(super) const fn refuses_client(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::NoCertificate
    )
}

/// Formats an alert for messages, for example `the TLS alert "certificate required"`.
pub(super) fn told(alert: AlertDescription) -> String {
    let name = format!("{alert:?}");
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && words.ends_with(char::is_lowercase) {
            words.push(' ');
        }
        words.push(letter);
    }
    format!("the TLS alert \"{}\"", words.to_lowercase())
}
