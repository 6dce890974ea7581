//! Origin that records the bytes of each connection, reads them with the strict parser, and answers
//! each known request with the response that its case has drawn.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::check;
use crate::model::{Fate, Meant, token_in};
use crate::replies::Reply;
use crate::strict;

/// Requests that are remembered per lane, so that a late arrival is still known.
const REMEMBERED: usize = 200;

/// A request that may arrive, and the response to it.
struct Known {
    meant: Arc<Meant>,
    fate: Fate,
    reply: Arc<Reply>,
    arrived: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    order: VecDeque<String>,
    faults: Vec<String>,
}

/// Record of all connections to one lane's host.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<State>);

impl Recorder {
    /// Announces a request before it is sent.
    pub(crate) fn announce(&self, meant: &Arc<Meant>, fate: Fate, reply: &Arc<Reply>) {
        let mut state = self.0.lock().unwrap();
        let known = Known {
            meant: Arc::clone(meant),
            fate,
            reply: Arc::clone(reply),
            arrived: Vec::new(),
        };
        state.known.insert(meant.token.clone(), known);
        state.order.push_back(meant.token.clone());
        if state.order.len() > REMEMBERED {
            let oldest = state.order.pop_front().unwrap_or_default();
            state.known.remove(&oldest);
        }
    }

    /// Returns the bytes of each arrival of a request.
    pub(crate) fn arrived(&self, token: &str) -> Vec<Vec<u8>> {
        let state = self.0.lock().unwrap();
        let known = state.known.get(token);
        known.map(|known| known.arrived.clone()).unwrap_or_default()
    }

    /// Returns the faults since the last call.
    pub(crate) fn faults(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().faults)
    }

    fn fault(&self, problem: &str, bytes: &[u8]) {
        let text = format!("at the origin: {problem}\n  bytes: {}", crate::shown(bytes));
        self.0.lock().unwrap().faults.push(text);
    }

    /// Checks a complete request. Returns its response, or `None` if no request with its token was
    /// sent.
    fn arrive(&self, message: &strict::Message, bytes: &[u8]) -> Option<Arc<Reply>> {
        let mut state = self.0.lock().unwrap();
        let known = token_in(&message.start).and_then(|token| state.known.get_mut(token));
        let (problem, reply) = match known {
            None => (Some("a request that no client sent".to_owned()), None),
            Some(known) => {
                known.arrived.push(bytes.to_vec());
                let problem = match (known.fate, known.arrived.len()) {
                    (_, 2..) => Some("one request arrived twice".to_owned()),
                    (Fate::Never, _) => Some("an incomplete or ambiguous request left".to_owned()),
                    (fate, _) => check::leaving(&known.meant, message, fate != Fate::Must).err(),
                };
                (problem, Some(Arc::clone(&known.reply)))
            }
        };
        drop(state);
        if let Some(problem) = problem {
            self.fault(&problem, bytes);
        }
        reply
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut bytes = Vec::new();
        loop {
            match strict::request(&bytes) {
                Err(problem) => return self.fault(&problem, &bytes),
                Ok(Some((message, used))) => {
                    let rest = bytes.split_off(used);
                    if !rest.is_empty() {
                        self.fault("bytes after a request", &rest);
                    }
                    let Some(reply) = self.arrive(&message, &bytes) else {
                        return;
                    };
                    bytes.clear();
                    if play(&mut stream, &reply).await.is_err() || reply.closes {
                        let _ended = stream.shutdown().await;
                        return;
                    }
                }
                // The end of a connection amid a request is the sign of an incomplete request.
                Ok(None) => match stream.read_buf(&mut bytes).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                },
            }
        }
    }
}

async fn play(stream: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> std::io::Result<()> {
    for piece in &reply.pieces {
        stream.write_all(piece).await?;
        stream.flush().await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Starts the origin of one lane, with and without TLS on the same port.
pub(crate) async fn listen(tls: TlsAcceptor, recorder: Arc<Recorder>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(accept(stream, tls.clone(), Arc::clone(&recorder)));
        }
    });
    address
}

async fn accept(stream: TcpStream, tls: TlsAcceptor, recorder: Arc<Recorder>) {
    let _unsupported = stream.set_nodelay(true);
    let mut first = [0];
    // A TLS connection begins with a handshake record (RFC 8446 section 5.1).
    match stream.peek(&mut first).await {
        Ok(1) if first == [22] => {
            if let Ok(stream) = tls.accept(stream).await {
                recorder.serve(stream).await;
            }
        }
        Ok(1) => recorder.serve(stream).await,
        Ok(_) | Err(_) => {}
    }
}
