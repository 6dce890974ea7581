//! Passwords in a file in the format of `.pgpass`.

use super::{DEFAULT_PORT, DatabaseHost, HostPlace};
use crate::policy::Secret;

/// Returns the password of the first line that fits, in the format of `.pgpass`.
pub(super) fn password_of(
    text: &str,
    host: &DatabaseHost,
    user: &str,
    database: Option<&str>,
) -> Option<Secret> {
    let name = match &host.server {
        HostPlace::Host(name) | HostPlace::Socket(name) => name,
        HostPlace::Default => "localhost",
    };
    let port = host.port.unwrap_or(DEFAULT_PORT).to_string();
    let wanted = [name, &port, database.unwrap_or(user), user];
    text.lines().find_map(|line| {
        let fields = fields_of(line);
        let (password, keys) = fields.split_last()?;
        let fits = keys.len() == wanted.len()
            && keys
                .iter()
                .zip(wanted)
                .all(|(key, wanted)| key == "*" || key == wanted);
        fits.then(|| Secret::new(password.as_str()))
    })
}

/// Splits a line at its colons. A backslash makes the next character literal.
fn fields_of(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (c, fields.last_mut()) {
            (':', _) => fields.push(String::new()),
            ('\\', Some(field)) => field.extend(characters.next()),
            (c, Some(field)) => field.push(c),
            (_, None) => {}
        }
    }
    fields
}
