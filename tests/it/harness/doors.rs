//! The ways by which a web page could come in, each with a call that reads and one that changes.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

use super::buffers::SPOOL;
use super::{Client, Origin, Program, Proto, free_port};

/// Target whose requests carry the operator's credentials.
pub(crate) const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    limits: [{ name: pace, rate: \"10000/1s\" }]\n    set_headers_over_http: true\n    set_headers: { authorization: \"Bearer operator\" }\n";

/// One way by which a web page could come in, with a call that reads and a call that changes.
pub(crate) struct Door {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// Host that belongs to the listener, with its port.
    pub(crate) own: String,
    pub(crate) reads: &'static str,
    pub(crate) changes: (&'static str, &'static str, &'static str),
    /// Credentials of an operator, for the admin port.
    token: Option<String>,
}

/// Starts a program with a listener of each kind, and returns the ways into it.
pub(crate) async fn doors(origin: &Origin) -> (Program, Vec<Door>) {
    let port = free_port();
    let config = format!(
        "{TARGET}{SPOOL}unmatched: refuse\nroutes:\n  - {{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}\n  - {{ host: r.internal, to: \"http://plain.test\" }}\n"
    );
    let program = Program::before(origin, &config).await;
    let acquire = ("POST", "/v1/targets/api/acquire", "{}");
    let pin = ("PATCH", "/v1/targets/api/limits/pace", r#"{"burst":3}"#);
    let pay = ("POST", "/pay", "{}");
    let proxy = program.listen;
    let route: SocketAddr = ([127, 0, 0, 1], port).into();
    let door = |name, address: SocketAddr, host: &str, reads, changes| Door {
        name,
        address,
        own: format!("{host}:{}", address.port()),
        reads,
        changes,
        token: program.admin_token().filter(|_| name == "admin"),
    };
    let all = vec![
        door("api", proxy, "localhost", "/buffers", acquire),
        door("port route", route, "127.0.0.1", "/list", pay),
        door("host route", proxy, "r.internal", "/list", pay),
        door("admin", program.admin, "[::1]", "/v1/status", pin),
    ];
    (program, all)
}

impl Door {
    /// Sends a request with these fields and returns the response.
    pub(crate) async fn ask(
        &self,
        proto: Proto,
        (method, path, body): (&str, &str, &str),
        host: &str,
        fields: &[(&str, &str)],
    ) -> Response<Bytes> {
        let mut client = Client::to(self.address, proto).await;
        let mut request = Request::builder().method(method);
        request = match proto {
            Proto::Http1 => request.uri(path).header("host", host),
            Proto::Http2 => request.uri(format!("http://{host}{path}")),
        };
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in fields {
            let value = value.replace("OWN", &self.own);
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        client.ask(request.body(body).unwrap()).await
    }

    /// Returns the protocols of the listener. The admin port speaks HTTP/1.1 only.
    pub(crate) fn protocols(&self) -> &'static [Proto] {
        match self.name {
            "admin" => &[Proto::Http1],
            _ => &[Proto::Http1, Proto::Http2],
        }
    }
}
