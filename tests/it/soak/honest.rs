//! Ten honest clients, each of which uses outpace in its own way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::token;
use crate::harness::buffers::call_with;
use crate::harness::{Client, Program, Proto};

/// Interval at which each client asks.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time in which a request must have its response to count.
const IN_TIME: Duration = Duration::from_secs(5);

/// Number of requests of one client, and of those that got the right response in time.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    way: Way,
    asked: u32,
    right: u32,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} of {}", self.way, self.right, self.asked)
    }
}

impl Tally {
    /// Returns the part of the requests that got the right response in time.
    pub(super) fn share(&self) -> f64 {
        f64::from(self.right) / f64::from(self.asked.max(1))
    }
}

/// The way in which one client uses outpace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    PlainUpload,
    PlainRetried,
    InsideHttp1,
    InsideHttp2,
    InsideUpload,
    Route,
    Relayed,
    Items,
    Permits,
}

const WAYS: [Way; 10] = [
    Way::Plain,
    Way::PlainUpload,
    Way::PlainRetried,
    Way::InsideHttp1,
    Way::InsideHttp2,
    Way::InsideUpload,
    Way::Route,
    Way::Relayed,
    Way::Items,
    Way::Permits,
];

pub(super) fn names() -> Vec<String> {
    (0..WAYS.len()).map(|n| format!("honest-{n}")).collect()
}

/// Returns the value of `Proxy-Authorization` of a client.
pub(super) fn basic(name: &str) -> String {
    let pair = format!("{name}:{}", token(name));
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    )
}

/// The program with what its clients need to use it.
pub(super) struct Site {
    program: Arc<Program>,
    origin_ca: String,
    route: SocketAddr,
}

impl Site {
    pub(super) async fn new(program: Arc<Program>, origin_ca: String, route: u16) -> Self {
        let site = Self {
            program,
            origin_ca,
            route: SocketAddr::from(([127, 0, 0, 1], route)),
        };
        let name = &names()[8];
        let buffer = json!({ "name": name, "url": "http://plain.test/item", "concurrency": 4 });
        let (status, made) = site.api(name, "POST", "/buffers", buffer).await;
        assert_eq!(status, 201, "{made}");
        site
    }

    async fn api(&self, name: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let token = format!("{name}:{}", token(name));
        let fields = [("outpace-client-token", &*token), ("prefer", "wait=4")];
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        call_with(&self.program, method, path, body, &fields).await
    }

    /// Writes the configuration anew with another rate, and waits until it is in force.
    pub(super) async fn reload(&self) {
        let path = self.program.config_path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (old, new) = match text.contains("\"400/1s\"") {
            true => ("\"400/1s\"", "\"401/1s\""),
            false => ("\"401/1s\"", "\"400/1s\""),
        };
        let is_reload = |event: &Value| {
            let message = event["message"].as_str();
            message.is_some_and(|message| message.starts_with("the configuration was reloaded"))
        };
        let before = self
            .program
            .events()
            .iter()
            .filter(|event| is_reload(event))
            .count();
        std::fs::write(&path, text.replace(old, new)).unwrap();
        self.program.nth_event(before + 1, is_reload).await;
    }

    /// Lets all clients ask at their interval until `end`.
    pub(super) async fn work(&self, end: Instant) -> Vec<Tally> {
        let each = WAYS
            .iter()
            .enumerate()
            .map(|(number, way)| self.client(number, *way, end));
        futures_util::future::join_all(each).await
    }

    async fn client(&self, number: usize, way: Way, end: Instant) -> Tally {
        let (mut asked, mut right) = (0, 0);
        let name = format!("honest-{number}");
        let mut open = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        // A slow response costs the throughput of its client.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        while ticks.tick().await < end {
            asked += 1;
            let mark = format!("{name}-{asked}");
            let asking = tokio::time::timeout(IN_TIME, self.ask(way, &name, &mark, &mut open));
            match asking.await {
                Ok(Some(())) => right += 1,
                Ok(None) | Err(_) => open = None,
            }
        }
        Tally { way, asked, right }
    }

    /// Sends one request and returns `Some` if its response is the right one.
    async fn ask(&self, way: Way, name: &str, mark: &str, open: &mut Option<Client>) -> Option<()> {
        match way {
            Way::Items => return self.item(name, mark).await,
            Way::Permits => return self.permit(name).await,
            _ => {}
        }
        if open.is_none() {
            *open = Some(self.connect(way, name).await?);
        }
        let client = open.as_mut()?;
        let (path, upload) = match way {
            Way::PlainUpload | Way::InsideUpload => ("/length", 32 * 1024),
            Way::PlainRetried => ("/flaky", 0),
            _ => ("/ok", 0),
        };
        let uri = match way {
            Way::Plain | Way::PlainUpload | Way::PlainRetried => {
                format!("http://plain.test{path}?{mark}")
            }
            Way::Relayed => format!("/ok?{mark}"),
            _ => format!("{path}?{mark}"),
        };
        let method = if upload > 0 { "PUT" } else { "GET" };
        let mut request = client.request(method, &uri);
        if way == Way::Route {
            // A route on loopback accepts only its own names.
            let headers = request.headers_mut()?;
            headers.insert("host", http::HeaderValue::from_static("plain.test"));
        }
        let request = request
            .header("proxy-authorization", basic(name))
            .header("outpace-client-token", format!("{name}:{}", token(name)))
            .header("x-key", name);
        let request = request.body(Full::new(Bytes::from(vec![b'u'; upload])));
        let response = client.try_ask(request.ok()?).await?;
        let expected = match upload {
            0 => mark.to_owned(),
            upload => format!("{mark}&{upload}"),
        };
        is_right(&response, &expected).then_some(())
    }

    async fn connect(&self, way: Way, name: &str) -> Option<Client> {
        let (host, proto) = match way {
            Way::Route => return Client::try_to(self.route, Proto::Http1).await,
            Way::Plain | Way::PlainUpload | Way::PlainRetried => {
                return Client::try_to(self.program.listen, Proto::Http1).await;
            }
            Way::Relayed => ("tunnel.test", Proto::Http1),
            Way::InsideHttp2 => ("api.test", Proto::Http2),
            _ => ("api.test", Proto::Http1),
        };
        let ca = match way {
            Way::Relayed => self.origin_ca.clone(),
            _ => self.program.ca(),
        };
        let fields = format!("Proxy-Authorization: {}\r\n", basic(name));
        let tcp = Client::connect(&self.program, &format!("{host}:443"), &fields)
            .await
            .ok()?;
        let tls = Client::tls(tcp, host, proto, &ca).await.ok()?;
        Some(Client::over(tls, proto).await)
    }

    /// Pushes an item and waits for the response to its delivery.
    async fn item(&self, name: &str, mark: &str) -> Option<()> {
        let items = format!("/buffers/{name}/items");
        let item = json!({ "body": mark });
        let (status, pushed) = self.api(name, "POST", &items, item).await;
        let id = pushed["id"].as_str().filter(|_| status == 201)?;
        let path = format!("/items/{id}/response");
        let (status, _) = self.api(name, "GET", &path, Value::Null).await;
        (status == 200).then_some(())
    }

    /// Acquires a permit and releases it.
    async fn permit(&self, name: &str) -> Option<()> {
        let path = "/v1/targets/api/acquire";
        let asked = json!({ "key": name, "hold": "10s", "max_wait": "2s" });
        let (status, held) = self.api(name, "POST", path, asked).await;
        let permit = held["permit"].as_str().filter(|_| status == 200)?;
        let path = "/v1/targets/api/release";
        let (status, _) = self
            .api(name, "POST", path, json!({ "permit": permit }))
            .await;
        (status == 200 || status == 204).then_some(())
    }
}

fn is_right(response: &Response<Bytes>, expected: &str) -> bool {
    response.status() == 200 && response.body() == expected
}
