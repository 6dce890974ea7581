//! Listening sockets that the supervisor of this process holds, such as systemd. The sockets outlive
//! the process, so connections wait in their backlog during a restart.

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::SockRef;

use super::StartError;
use crate::config::process_environment;

/// Listening sockets that this process has inherited and not used yet.
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<InheritedSocket>);

/// Listening socket with its name in `LISTEN_FDNAMES`.
#[derive(Debug)]
struct InheritedSocket {
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

impl InheritedSockets {
    /// Takes the sockets that `LISTEN_FDS` announces, if `LISTEN_PID` is this process. Must be called
    /// before another thread starts, because it removes both variables from the environment.
    ///
    /// # Errors
    /// Returns [`StartError::Socket`] if one of them is no listening TCP socket.
    pub fn take() -> Result<Self, StartError> {
        let pid = process_environment("LISTEN_PID");
        if pid != Some(std::process::id().to_string()) {
            return Ok(Self::default());
        }
        let names = process_environment("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut announced = ListenFd::from_env();
        let all = (0..announced.len()).map(|index| {
            let name = names.next().unwrap_or_default();
            let taken = announced.take_tcp_listener(index);
            let listener = taken.and_then(|listener| listener.ok_or_else(|| not_listening("absent")));
            let socket = listener.and_then(|listener| InheritedSocket::new(name.clone(), listener));
            socket.map_err(|error| {
                StartError::Socket(format!(
                    "socket {index} `{name}` of LISTEN_FDS cannot be used: {error}; announce TCP sockets with `ListenStream=ADDRESS:PORT` only"
                ))
            })
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Returns true if no socket is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the socket with this address and returns it. If there is none, the socket named `key`
    /// is taken.
    pub(super) fn remove(&mut self, key: &str, address: SocketAddr) -> Option<TcpListener> {
        let mut all = self.0.iter();
        let found = all
            .position(|socket| is_same(socket.address, address))
            .or_else(|| self.0.iter().position(|socket| socket.name == key));
        found.map(|index| self.0.swap_remove(index).listener)
    }

    /// Checks that every socket was used, because clients of another one would wait forever.
    pub(super) fn check_used(&self) -> Result<(), StartError> {
        let Some(InheritedSocket { name, address, .. }) = self.0.first() else {
            return Ok(());
        };
        Err(StartError::Socket(format!(
            "the inherited socket {address} `{name}` belongs to no listener of the configuration; set `listen`, `admin.listen` or the route to {address}, or remove the socket from its unit"
        )))
    }
}

impl InheritedSocket {
    fn new(name: String, listener: TcpListener) -> std::io::Result<Self> {
        if !SockRef::from(&listener).is_listener()? {
            return Err(not_listening("it does not listen"));
        }
        listener.set_nonblocking(true)?;
        Ok(Self {
            name,
            address: listener.local_addr()?,
            listener,
        })
    }
}

fn not_listening(cause: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, cause)
}

/// Returns true if a socket with this address serves a listener with the address `wanted`. All
/// unspecified IP addresses are equal, because one socket can serve IPv6 and IPv4.
fn is_same(address: SocketAddr, wanted: SocketAddr) -> bool {
    let (one, other) = (address.ip(), wanted.ip());
    let both_any = one.is_unspecified() && other.is_unspecified();
    address.port() == wanted.port() && (both_any || one.to_canonical() == other.to_canonical())
}
