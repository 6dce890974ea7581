//! Reports on the requests of a command that `outpace run` follows: how many were paced, and what kept
//! others from it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reason::Reason;
use super::record::{Ingress, Record, Sink};
use crate::bounds::COMMAND_PROBLEMS;
use crate::sync::lock;

/// Requests of one session of `outpace run` that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandReport {
    /// Requests to targets, and tunnels to them.
    pub to_targets: u64,
    /// Requests and tunnels to hosts of no target.
    pub to_others: u64,
    /// Requests to observed targets that would have been held.
    pub not_held: u64,
    /// Kinds of problems that a client cannot show by itself, in the order of their first occurrence.
    pub problems: Vec<CommandProblem>,
}

/// Problem of a connection, such as a client that does not trust the CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandProblem {
    /// Token of the reason, for example `inner-distrusted`.
    pub reason: String,
    /// Host that the client asked for, or null if it is unknown.
    pub host: Option<String>,
    /// Cause in this case as text.
    pub detail: String,
    /// Advice for the user as text.
    pub remedy: String,
    /// Number of times that this reason ended a connection to this host.
    pub count: u64,
}

/// Reports of all open sessions. A record counts in each of them, because a connection does not say
/// from which command it comes.
#[derive(Debug, Default)]
pub struct CommandReports {
    open: AtomicUsize,
    sessions: Mutex<BTreeMap<u64, CommandReport>>,
}

impl CommandReports {
    /// Begins an empty report and returns its number.
    pub fn begin(&self) -> u64 {
        let mut sessions = lock(&self.sessions);
        let number = sessions.last_key_value().map_or(1, |(last, _)| last + 1);
        sessions.insert(number, CommandReport::default());
        self.open.store(sessions.len(), Ordering::Release);
        number
    }

    /// Returns the report so far, or `None` if it has ended.
    pub fn so_far(&self, number: u64) -> Option<CommandReport> {
        lock(&self.sessions).get(&number).cloned()
    }

    /// Ends the report of a session.
    pub fn end(&self, number: u64) {
        let mut sessions = lock(&self.sessions);
        sessions.remove(&number);
        self.open.store(sessions.len(), Ordering::Release);
    }
}

impl Sink for CommandReports {
    fn consume(&self, record: &Record) {
        // Almost every process has no session, and then nothing is locked.
        let is_of_command = !matches!(
            record.ingress,
            Ingress::Api | Ingress::Spool | Ingress::Direct
        );
        if self.open.load(Ordering::Acquire) == 0 || !(is_of_command || record.reason.is_some()) {
            return;
        }
        for report in lock(&self.sessions).values_mut() {
            report.count(record);
        }
    }
}

impl CommandReport {
    fn count(&mut self, record: &Record) {
        let problem = record.reason.filter(|reason| is_hidden(*reason, record));
        match (problem, &record.target) {
            (Some(reason), _) => return self.note(reason, record),
            (None, Some(_)) => self.to_targets += 1,
            (None, None) if record.origin.is_some() => self.to_others += 1,
            (None, None) => {}
        }
        self.not_held += u64::from(record.would_hold.is_some());
    }

    fn note(&mut self, reason: Reason, record: &Record) {
        let row = reason.row();
        let host = record.origin.as_ref().map(|origin| origin.authority());
        let same = |known: &&mut CommandProblem| known.reason == row.token && known.host == host;
        if let Some(known) = self.problems.iter_mut().find(same) {
            known.count += 1;
        } else if self.problems.len() < COMMAND_PROBLEMS {
            self.problems.push(CommandProblem {
                reason: row.token.to_owned(),
                host,
                detail: record.detail.clone().unwrap_or_default(),
                remedy: row.remedy.to_owned(),
                count: 1,
            });
        }
    }
}

/// Returns true if the command must know the reason: most clients hide the body of a refused CONNECT,
/// a failed handshake has no response, and some refusals concern the set-up.
fn is_hidden(reason: Reason, record: &Record) -> bool {
    record.method == Method::CONNECT && reason != Reason::WaitTooLong
        || matches!(
            reason,
            Reason::ClientUnknown
                | Reason::ParentProxy
                | Reason::AddressProhibited
                | Reason::HostNotAllowed
                | Reason::PortNotAllowed
        )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::exchange::{ClientIdentity, Error, Recorder};
    use crate::units::{HostName, Origin, Scheme};

    /// Reaches the bound `COMMAND_PROBLEMS`.
    #[tokio::test(start_paused = true)]
    async fn each_open_session_counts_requests_and_hidden_problems() {
        let reports = Arc::new(CommandReports::default());
        let sinks: Vec<Arc<dyn Sink>> = vec![Arc::clone(&reports) as Arc<dyn Sink>];
        let recorder = Arc::new(Recorder::new(Clock::anchored(0), 7, sinks));
        let client = ClientIdentity::ourselves();
        let end = |host: &str, target: Option<&str>, method: Method, reason: Option<Reason>| {
            let mut record = recorder.begin(Ingress::Tunnel, &client);
            record.method = method;
            record.origin = Some(Origin {
                scheme: Scheme::Https,
                host: HostName::parse(host).unwrap(),
                port: 443,
            });
            record.target = target.map(Arc::from);
            if let Some(reason) = reason {
                record.refused(&Error::new(reason, "a cause"));
            }
            record.end();
        };
        end("before.test", Some("api"), Method::GET, None);
        let (one, other) = (reports.begin(), reports.begin());
        end("api.test", Some("api"), Method::GET, None);
        end(
            "api.test",
            Some("api"),
            Method::GET,
            Some(Reason::WaitTooLong),
        );
        end("other.test", None, Method::CONNECT, None);
        reports.end(other);
        for _ in 0..3 {
            end(
                "api.test",
                None,
                Method::CONNECT,
                Some(Reason::InnerDistrusted),
            );
        }
        for number in 0..2 * COMMAND_PROBLEMS {
            let host = format!("h{number}.test");
            end(&host, None, Method::CONNECT, Some(Reason::PortNotAllowed));
        }
        let report = reports.so_far(one).unwrap();
        assert_eq!((report.to_targets, report.to_others), (2, 1));
        assert_eq!(report.problems.len(), COMMAND_PROBLEMS);
        assert_eq!(report.problems[0].count, 3);
        assert_eq!(report.problems[0].host.as_deref(), Some("api.test"));
        assert_eq!(reports.so_far(other), None);
        assert_eq!(reports.begin(), one + 1);
    }
}
