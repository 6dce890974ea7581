//! `GET /v1/explain`: the target, limits, keys, costs and lane of a request, and its expected wait.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, header};
use serde_json::{Value, json};

use super::{Admin, blocks, explain_limit, problem};
use crate::exchange::{Exchange, describe_block};
use crate::ledger::LedgerGap;
use crate::origin::may_dial;
use crate::policy::{
    Bound, Caller, Client, Cost, KeySecret, Limit, LimitSet, Policy, RequestJson, RequestView,
    Scope, Target, TlsMode, Unmatched,
};
use crate::semantics::own_credential;
use crate::units::{HostName, Origin, Scheme};

/// Description of the request to explain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// Absolute URL of the request.
    pub url: String,
    /// Method of the request. `None` means GET.
    pub method: Option<String>,
    /// Header fields of the request, as `name: value`.
    pub headers: Vec<String>,
    /// Body of the request, read as JSON for keys and costs.
    pub body: Option<String>,
    /// Name of the client that sends the request, if `clients` are configured.
    pub client: Option<String>,
    /// Address of the client that sends the request, for limits with the key `client_ip`.
    pub client_ip: Option<String>,
}

impl Question {
    /// Builds a question from the pairs of a query string. Unknown names are ignored.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut question = Self::default();
        for (name, value) in pairs {
            match &*name {
                "url" => question.url = value,
                "method" => question.method = Some(value),
                "header" => question.headers.push(value),
                "body" => question.body = Some(value),
                "client" => question.client = Some(value),
                "client_ip" => question.client_ip = Some(value),
                _ => {}
            }
        }
        question
    }

    /// Returns the question as the pairs of a query string.
    pub fn pairs(&self) -> Vec<(&'static str, &str)> {
        let mut pairs = vec![("url", &*self.url)];
        pairs.extend(self.method.as_deref().map(|method| ("method", method)));
        pairs.extend(self.headers.iter().map(|header| ("header", &**header)));
        pairs.extend(self.body.as_deref().map(|body| ("body", body)));
        pairs.extend(self.client.as_deref().map(|client| ("client", client)));
        pairs.extend(
            self.client_ip
                .as_deref()
                .map(|address| ("client_ip", address)),
        );
        pairs
    }

    fn head(&self) -> Result<Parts, String> {
        let method = self.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_cause| format!("`{method}` is not an HTTP method"))?;
        let mut request = Request::builder().method(method).uri(&self.url);
        for line in &self.headers {
            let wrong = || format!("`{line}` is not a header field; write it as \"name: value\"");
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let name = HeaderName::try_from(name.trim()).map_err(|_cause| wrong())?;
            let value = HeaderValue::try_from(value.trim()).map_err(|_cause| wrong())?;
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|_cause| self.not_a_url())?;
        Ok(request.into_parts().0)
    }

    fn client_ip(&self) -> Result<Option<IpAddr>, String> {
        let parse = |text: &String| {
            let parsed = text.parse();
            parsed.map_err(|_cause| {
                format!("`{text}` is not an IP address; write it as \"10.0.0.7\"")
            })
        };
        self.client_ip.as_ref().map(parse).transpose()
    }

    /// Reads the body as an exchange does. The body of a client that waits for `100 Continue` is not
    /// there yet.
    fn json(&self, target: &Target, head: &Parts) -> Option<RequestJson> {
        let body = self.body.as_deref().filter(|body| !body.is_empty())?;
        let pointers = target.json_pointers();
        let waits = head.headers.contains_key(header::EXPECT);
        Some(match waits {
            true => RequestJson::new(pointers),
            false => RequestJson::of_body(pointers, &head.headers, body.as_bytes()),
        })
    }

    fn not_a_url(&self) -> String {
        let url = &self.url;
        format!("`{url}` is not a request URL; write it as \"https://api.example.com/path\"")
    }
}

/// Upper bound for `free_now`, in requests.
const FREE_MOST: u32 = 10_000;

/// Request to explain, as far as the policy has a target for it.
pub(super) struct Subject<'p> {
    head: Parts,
    origin: Origin,
    target: &'p Arc<Target>,
    client: Option<&'p Client>,
    client_ip: Option<IpAddr>,
    json: Option<RequestJson>,
    body_bytes: u64,
}

impl<'p> Subject<'p> {
    /// Finds the target of a request. Without one the error of the inner result is the explanation.
    fn find(policy: &'p Policy, question: &Question) -> Result<Result<Self, Value>, String> {
        let head = question.head()?;
        let uri = &head.uri;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(question.not_a_url()),
        };
        let host = uri.host().and_then(|host| HostName::parse(host).ok());
        let host = host.ok_or_else(|| question.not_a_url())?;
        let port = uri.port_u16().unwrap_or_else(|| scheme.default_port());
        let origin = Origin { scheme, host, port };
        let known = |name: &String| {
            let client = policy.clients.iter().find(|client| *client.name == **name);
            client.ok_or_else(|| format!("no client is named `{name}`"))
        };
        let client = question.client.as_ref().map(known).transpose()?;
        let without = |verdict: &str| {
            let verdict = unauthenticated(policy, client).unwrap_or(verdict);
            Ok(Err(
                json!({ "url": question.url, "target": null, "verdict": verdict }),
            ))
        };
        if !policy.request_port_allowed(&origin) {
            return without("is refused (403): its port is not allowed");
        }
        let Some(target) = policy.target(&origin.host, port) else {
            return without(match policy.unmatched {
                Unmatched::Tunnel => {
                    "passes unchanged and without limits: no target matches its host"
                }
                Unmatched::Refuse => "is refused (403): no target matches its host",
            });
        };
        let json = question.json(target, &head);
        Ok(Ok(Self {
            head,
            origin,
            target,
            client,
            client_ip: question.client_ip()?,
            json,
            body_bytes: question.body.as_deref().map_or(0, str::len) as u64,
        }))
    }

    fn view<'a>(&'a self, now: Option<&'a Exchange>) -> RequestView<'a> {
        RequestView {
            head: &self.head,
            client: self.client.map(|client| Caller {
                name: &client.name,
                group: client.group.as_ref(),
            }),
            host: Some(&self.origin.host),
            client_ip: self.client_ip,
            json: self.json.as_ref(),
            body_bytes: Some(self.body_bytes),
            learned: now.map(|now| &now.pacer.cost_means().estimates),
        }
    }
}

/// Returns the verdict for a request without a client where one is required.
fn unauthenticated(policy: &Policy, client: Option<&Client>) -> Option<&'static str> {
    let is_required = !policy.clients.is_empty() && client.is_none();
    is_required.then_some("is refused (407, by a route 401): it names none of the `clients`")
}

/// Returns the verdict for a host whose address is known without DNS, and may not be dialled. A parent
/// proxy resolves names itself.
fn prohibited(policy: &Policy, origin: &Origin, now: Option<&Exchange>) -> Option<&'static str> {
    let literal = match origin.host.as_str() {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => origin.host.ip(),
    };
    let has_parent = now.is_some_and(|now| now.pool.connector().parent(origin).is_some());
    let fixed = policy.egress.resolve.get(&origin.host);
    let fixed = fixed.filter(|_| !has_parent);
    let address = match fixed {
        Some((ip, port)) => SocketAddr::new(*ip, port.unwrap_or(origin.port)),
        None => SocketAddr::new(literal?, origin.port),
    };
    let is_refused = !may_dial(&policy.egress, address);
    is_refused.then_some(
        "is refused (403): its address is not public, and `egress.allow` does not list it",
    )
}

/// Explains the request under `policy`. `now` is `None` without a running outpace. Waits and free
/// slots are then omitted.
///
/// # Errors
/// Returns a message if the method, URL, a header field or the client's name is invalid.
pub fn explain(
    policy: &Policy,
    question: &Question,
    now: Option<&Exchange>,
) -> Result<Value, String> {
    let subject = match Subject::find(policy, question)? {
        Ok(subject) => subject,
        Err(verdict) => return Ok(verdict),
    };
    let (target, asked) = (subject.target, subject.view(now));
    // Without a running process there are no schedules, so any secret will do.
    let secret = now.map(|now| now.pacer.key_secret());
    let secret = secret.unwrap_or_else(|| KeySecret::new([0; KeySecret::BYTES]));
    let scope = target.scope(&asked, &secret);
    let replaced = |name: &HeaderName| target.set_headers.iter().any(|(set, _)| set == name);
    let credential = own_credential(&subject.head.headers, replaced);
    let blocked = now.and_then(|now| {
        let block = now.pacer.block_of(target, &scope, credential)?;
        let at = now.clock.now();
        let words = describe_block(&block, at, block.next_attempt().since(at));
        Some((words, blocks::shown(&target.name, &block, at)))
    });
    let mut told = explanation(question, target, &scope, now);
    let limits = told.get_mut("limits").and_then(Value::as_array_mut);
    for (shown, limit) in limits.into_iter().flatten().zip(&target.limits) {
        describe(shown, limit, &asked, &secret);
    }
    if let Some((words, blocked)) = blocked {
        told["verdict"] = format!("is blocked: {words}").into();
        told["blocked"] = json!(blocked);
    }
    let refused = unauthenticated(policy, subject.client);
    if let Some(verdict) = refused.or_else(|| prohibited(policy, &subject.origin, now)) {
        told["verdict"] = verdict.into();
    }
    Ok(told)
}

/// Reads from the ledger what the request depends on, so that its explanation counts the requests of
/// all replicas.
async fn refresh(policy: &Policy, question: &Question, now: &Exchange) {
    let Ok(Ok(subject)) = Subject::find(policy, question) else {
        return;
    };
    let scope = subject
        .target
        .scope(&subject.view(Some(now)), &now.pacer.key_secret());
    now.pacer.refresh(subject.target, &scope).await;
}

/// Adds what the limit reads in the request, and the numbers by which it counts.
fn describe(shown: &mut Value, limit: &Limit, asked: &RequestView<'_>, secret: &KeySecret) {
    let charged = shown.get("cost").and_then(Value::as_i64);
    let is_pinned = shown.get("pinned").is_some_and(Value::is_string);
    shown["amount"] = limit.amount(limit.bound).into();
    // A pinned limit counts by its pin, which `pinned` shows.
    shown["pace"] = match is_pinned {
        true => Value::Null,
        false => explain_limit::pace(limit.bound),
    };
    shown["match"] = explain_limit::conditions(limit, asked);
    if let Some(charged) = charged {
        shown["key_parts"] = explain_limit::key(limit, asked, secret);
        shown["cost_read"] = explain_limit::cost(limit, asked, charged);
    }
}

fn explanation(
    question: &Question,
    target: &Arc<Target>,
    scope: &Scope,
    now: Option<&Exchange>,
) -> Value {
    let wait = |scope: &Scope, queue: bool| {
        let now = now?;
        let (at, held_by) = now.pacer.forecast(target, scope, queue);
        Some((at.since(now.clock.now()).as_secs_f64(), held_by))
    };
    let status = now.map(|now| now.pacer.status(target));
    let limits = target.limits.iter().enumerate().map(|(index, limit)| {
        let applies = scope.limits.contains(index);
        let mut only = LimitSet::default();
        only.insert(index);
        let alone = scope.clone().only(only);
        let pins = status.iter().flat_map(|status| &status.pins);
        let mut pinned = pins.filter(|(name, _)| *name == limit.name);
        // `free_now` is given for rates only. The number of running requests of a concurrency limit
        // is not available here.
        let rate = applies && matches!(limit.bound, Bound::Rate { .. });
        let free = now.filter(|_| rate);
        let free = free.map(|now| now.pacer.free(target, scope, index, FREE_MOST));
        json!({
            "name": &*limit.name,
            "bound": limit.bound.to_string(),
            "free_now": free,
            "pinned": pinned.next().map(|(_, bound)| bound),
            "applies": applies,
            "key": scope.shared_key(index).filter(|_| applies).map(|key| &**key),
            "cost": applies.then(|| scope.cost(index)),
            "cost_max": limit.cost.as_ref().map(|cost| cost.max),
            "estimated_by": limit.cost.as_ref().map(Cost::estimated_by),
            "settled_by": limit.cost.as_ref().and_then(Cost::settled_by),
            "next_in_s": wait(&alone, false).filter(|_| applies).map(|(wait, _)| round(wait)),
        })
    });
    let all = wait(scope, true);
    let longest = target.max_wait.as_secs_f64();
    let gap = now.and_then(|now| now.pacer.gap(target, scope));
    let verdict = verdict(
        target,
        all.as_ref().map(|(wait, _)| *wait),
        gap.as_ref(),
        now,
    );
    let lane = target.lanes.get(usize::from(scope.lane));
    json!({
        "url": question.url,
        "target": &*target.name,
        "hosts": target.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tls": if target.tls == TlsMode::Tunnel { "tunnel" } else { "intercept" },
        "mode": if target.observe { "observe" } else { "enforce" },
        "lane": lane.map(|lane| &*lane.name),
        "limits": limits.collect::<Vec<_>>(),
        "ledger": status.map(|status| status.mode),
        "waiting": now.map(|now| now.pacer.waiting(&target.name)),
        "next_in_s": all.as_ref().map(|(wait, _)| round(*wait)),
        "held_by": all.and_then(|(_, held_by)| held_by).map(|name| name.to_string()),
        "max_wait_s": longest,
        "block_max_s": target.block_max.as_secs_f64(),
        "ledger_cause": gap.map(|gap| gap.cause.to_string()),
        "verdict": verdict,
    })
}

/// Says in words what would happen to a request that has to wait for `wait` seconds.
fn verdict(
    target: &Target,
    wait: Option<f64>,
    gap: Option<&LedgerGap>,
    now: Option<&Exchange>,
) -> String {
    let longest = target.max_wait.as_secs_f64();
    match wait {
        Some(_) if gap.is_some() && !target.observe => {
            let until = gap.and_then(|gap| gap.until);
            let until = until
                .zip(now)
                .map(|(until, now)| until.since(now.clock.now()));
            match until.map(|until| until.as_secs_f64()) {
                Some(wait) => format!(
                    "waits for the fallback share, {wait:.3} s at least: the ledger is unreachable"
                ),
                None => "waits for the ledger, which is unreachable".to_owned(),
            }
        }
        None => {
            "outpace is not running: this is what the file says, and waits are unknown".to_owned()
        }
        Some(_) if target.observe => "leaves at once: the target is in observe mode".to_owned(),
        Some(wait) if wait <= 0.0 => "leaves at once".to_owned(),
        Some(wait) if wait <= longest => format!("waits {wait:.3} s"),
        Some(wait) => {
            let fate = if target.overflow {
                "spooled (202)"
            } else {
                "refused (429)"
            };
            format!("is {fate}: its wait of {wait:.3} s would exceed the max wait of {longest} s")
        }
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

pub(super) async fn asked(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Response> {
    let query = query.unwrap_or_default();
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let known = ["url", "method", "header", "body", "client", "client_ip"];
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !known.contains(&&**name)) {
        let known = known.join(", ");
        let text = format!("there is no parameter `{name}` here; the parameters are {known}");
        return Err(problem(StatusCode::BAD_REQUEST, &text));
    }
    let question = Question::from_pairs(pairs);
    let policy = admin.policy.load_full();
    refresh(&policy, &question, &admin.exchange).await;
    let told = explain(&policy, &question, Some(&admin.exchange));
    told.map(Json)
        .map_err(|text| problem(StatusCode::BAD_REQUEST, &text))
}
