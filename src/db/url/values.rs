//! Values of the parameters in a URL.

use std::time::Duration;

use super::{SessionKind, UrlError};
use crate::bounds::{DATABASE_CONNECT_MAX, DATABASE_CONNECT_TIMEOUT};

pub(super) fn binding(value: &str) -> Result<(), UrlError> {
    match value {
        "disable" | "prefer" => Ok(()),
        "require" => Err(UrlError::Value(
            "`channel_binding=require` is not supported, because the database driver sends no channel binding; remove it and write `sslmode=verify-full`, which verifies the server by its certificate",
        )),
        _ => Err(UrlError::Value(
            "`channel_binding` is unknown; write disable or prefer",
        )),
    }
}

pub(super) fn session(value: &str) -> Result<SessionKind, UrlError> {
    match value {
        "any" => Ok(SessionKind::Any),
        "read-write" => Ok(SessionKind::ReadWrite),
        "primary" => Ok(SessionKind::Primary),
        "read-only" | "standby" | "prefer-standby" => Err(UrlError::Value(
            "`target_session_attrs` asks for a server without writes, but outpace writes; write read-write",
        )),
        _ => Err(UrlError::Value(
            "`target_session_attrs` is unknown; write read-write, primary or any",
        )),
    }
}

pub(super) fn connect_timeout(value: &str) -> Result<Duration, UrlError> {
    let told = UrlError::Value(
        "`connect_timeout` is not a number of seconds; write 0 for the default, or up to 60",
    );
    let seconds: u64 = value.parse().map_err(|_cause| told.clone())?;
    match Duration::from_secs(seconds) {
        Duration::ZERO => Ok(DATABASE_CONNECT_TIMEOUT),
        time if time <= DATABASE_CONNECT_MAX => Ok(time),
        _ => Err(told),
    }
}

/// Parses settings of the server, written as on its command line.
pub(super) fn settings_of(text: &str) -> Result<Vec<(String, String)>, UrlError> {
    let told = UrlError::Value("`options` cannot be read; write it as `-c name=value`");
    let mut words = text.split_whitespace();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") => words.next(),
            pair => pair,
        };
        let pair = pair.and_then(|pair| pair.split_once('='));
        let (name, value) = pair.ok_or_else(|| told.clone())?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Ok(settings)
}
