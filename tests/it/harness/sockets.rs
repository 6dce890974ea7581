//! Listening sockets that the test holds and hands to each program in turn, as systemd does.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use tokio::process::Command;

use super::program;

/// Sockets with their names, which a program finds by `LISTEN_FDS`.
pub(crate) struct HeldSockets(Vec<(&'static str, TcpListener)>);

impl HeldSockets {
    /// Listens on a free port of 127.0.0.1 for each name.
    pub(crate) fn listen(names: &[&'static str]) -> Self {
        let bound = names.iter().map(|name| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            (*name, listener)
        });
        Self(bound.collect())
    }

    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.0[index].1.local_addr().unwrap()
    }

    /// Returns a command that runs the program with the sockets as its descriptors from 3 on.
    pub(crate) fn program(&self) -> Activated {
        let mut script = String::from("export LISTEN_PID=$$; exec");
        let mut held = Vec::new();
        for (index, (_, listener)) in self.0.iter().enumerate() {
            // The script must not overwrite a descriptor that it still has to move.
            let copy = fcntl_dupfd_cloexec(listener, 100).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            let from = copy.as_raw_fd();
            script.push_str(&format!(" {}<&{from} {from}<&-", index + 3));
            held.push(copy);
        }
        script.push_str("; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_outpace")]);
        for (name, value) in program().as_std().get_envs() {
            if value.is_none() {
                command.env_remove(name);
            }
        }
        let names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
        command
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .kill_on_drop(true)
            .stdin(std::process::Stdio::null());
        Activated {
            command,
            _held: held,
        }
    }
}

/// Command with the sockets that it inherits, which must live until it is started.
pub(crate) struct Activated {
    pub(crate) command: Command,
    _held: Vec<OwnedFd>,
}
