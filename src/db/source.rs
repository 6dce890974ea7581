//! The source of a database's URL, which may be a file that changes while outpace runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::url::{DatabaseUrl, UrlError};
use crate::files;
use crate::policy::Secret;
use crate::sync::lock;

/// Source of the URL of a database.
#[derive(Debug, Clone)]
pub struct DatabaseSource {
    url: Secret,
    file: Option<PathBuf>,
}

// A new content of the file is no change of the configuration, because the file is read again.
impl PartialEq for DatabaseSource {
    fn eq(&self, other: &Self) -> bool {
        match (&self.file, &other.file) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, None) => self.url == other.url,
            _ => false,
        }
    }
}

impl Eq for DatabaseSource {}

impl DatabaseSource {
    /// Creates a source from a URL and the file that it was read from, if it was read from one.
    pub fn new(url: Secret, file: Option<PathBuf>) -> Self {
        Self { url, file }
    }

    /// Returns hosts, ports and database name for messages, without user and password. The text is a
    /// dash for a URL that cannot be used.
    pub fn place(&self) -> String {
        let url = DatabaseUrl::parse(self.url.reveal());
        url.map_or_else(|_invalid| "-".to_owned(), |url| url.place())
    }
}

/// URL in use, which follows the content of its file.
pub(super) struct CurrentUrl {
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

struct Known {
    text: Secret,
    url: Arc<DatabaseUrl>,
    /// True once a warning has been logged about an unusable content of the file.
    is_warned: bool,
}

impl CurrentUrl {
    pub(super) fn new(source: &DatabaseSource) -> Result<Self, UrlError> {
        let url = DatabaseUrl::parse(source.url.reveal())?;
        Ok(Self {
            file: source.file.clone(),
            known: Mutex::new(Known {
                text: source.url.clone(),
                url: Arc::new(url),
                is_warned: false,
            }),
        })
    }

    /// Returns the URL as it was last read.
    pub(super) fn known(&self) -> Arc<DatabaseUrl> {
        Arc::clone(&lock(&self.known).url)
    }

    /// Reads the file again and returns the URL. A content that cannot be used is ignored, because
    /// a file may be read while it is written.
    pub(super) fn read_again(&self) -> Arc<DatabaseUrl> {
        let Some(file) = &self.file else {
            return self.known();
        };
        let read = files::read_regular(file);
        let mut known = lock(&self.known);
        let cause = match read {
            Ok(text) if text.trim_end() == known.text.reveal() => {
                known.is_warned = false;
                return Arc::clone(&known.url);
            }
            Ok(text) => match DatabaseUrl::parse(text.trim_end()) {
                Ok(url) => {
                    *known = Known {
                        text: Secret::new(text.trim_end()),
                        url: Arc::new(url),
                        is_warned: false,
                    };
                    tracing::info!(
                        file = %file.display(),
                        "the URL of the ledger's database has been read again"
                    );
                    return Arc::clone(&known.url);
                }
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut known.is_warned, true) {
            tracing::warn!(
                file = %file.display(),
                %cause,
                "the file of `ledger.postgres.url` cannot be used, so the previous URL stays; correct the file"
            );
        }
        Arc::clone(&known.url)
    }
}
