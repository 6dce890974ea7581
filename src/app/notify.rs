//! Messages about the state of this process to its supervisor, such as systemd, by the protocol of
//! `sd_notify(3)`.

use std::io;
use std::net;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::Parts;
use crate::clock::Clock;
use crate::config::process_environment;
use crate::policy::Policy;

/// Margin between the deadline of a drain and the time by which the supervisor ends the process.
const MARGIN: Duration = Duration::from_secs(5);

/// Supervisor that started this process, if it asked for messages.
#[derive(Debug, Clone)]
pub(super) struct Supervisor {
    /// Value of `NOTIFY_SOCKET`: the path of a socket, or its abstract name after `@`.
    socket: Option<String>,
}

impl Supervisor {
    pub(super) fn from_environment() -> Self {
        let socket = process_environment("NOTIFY_SOCKET");
        Self {
            socket: socket.filter(|socket| !socket.is_empty()),
        }
    }

    /// Reports that all listeners accept connections.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports the begin of a reload, which ends with [`Self::ready`].
    pub(super) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// Reports the begin of a drain, and asks for the time that it may take.
    pub(super) fn stopping(&self, timeout: Duration) {
        let micros = (timeout + MARGIN).as_micros();
        let seconds = timeout.as_secs();
        self.send(&format!(
            "STOPPING=1\nSTATUS=draining for at most {seconds} s\nEXTEND_TIMEOUT_USEC={micros}"
        ));
    }

    /// Reports a state that operators see in `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// Reports forever that this process works, twice as often as its supervisor asks for. Returns at
    /// once if it does not ask.
    pub(super) async fn keep_alive(self, clock: Clock) {
        let Some(within) = watchdog() else {
            return;
        };
        loop {
            self.send("WATCHDOG=1");
            clock.sleep_until(clock.now() + within / 2).await;
        }
    }

    /// Sends one message. A failure is only logged, because a supervisor may be absent for a moment.
    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = send(socket, message) {
            tracing::debug!(%error, socket, "a message to the supervisor could not be sent");
        }
    }
}

/// Returns the time after which the supervisor restarts a silent process, if it watches this one.
fn watchdog() -> Option<Duration> {
    let micros = process_environment("WATCHDOG_USEC")?.parse().ok()?;
    let pid = process_environment("WATCHDOG_PID");
    let is_ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
    let within = Duration::from_micros(micros);
    (is_ours && !within.is_zero()).then_some(within)
}

fn send(socket: &str, message: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A supervisor that does not read must not stop this process.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address(socket)?)?;
    Ok(())
}

fn address(socket: &str) -> io::Result<SocketAddr> {
    match socket.strip_prefix('@') {
        #[cfg(any(target_os = "android", target_os = "linux"))]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(name)
        }
        _ => SocketAddr::from_pathname(socket),
    }
}

/// Tells the log and the supervisor that all listeners accept connections.
pub(super) fn announce(
    shared: &Parts,
    (listen, admin): (net::SocketAddr, net::SocketAddr),
    policy: &Policy,
) {
    let alive = shared.supervisor.clone().keep_alive(shared.clock.clone());
    shared.tasks.spawn_detached(alive);
    shared.supervisor.ready(&serving_state(listen, policy));
    tracing::info!(
        %listen, %admin, targets = policy.targets.len(),
        open_files = shared.open_files, connections = shared.bounds.clients, version = env!("CARGO_PKG_VERSION"), "ready"
    );
}

/// Returns the state of a process that serves, for `systemctl status`.
pub(super) fn serving_state(listen: net::SocketAddr, policy: &Policy) -> String {
    let targets = policy.targets.len();
    format!("serving {targets} targets on {listen}")
}
