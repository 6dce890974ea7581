//! Plan of one exchange, which is decided once from the request's head.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Version};
use hyper::upgrade::OnUpgrade;

use super::admission::AttemptError;
use super::body::{InboundBody, Outgoing, Replayable};
use super::credentials::refused_credential;
use super::handover::Handover;
use super::idle::{Upload, body_timeout};
use super::scan::BodyScan;
use super::template::Template;
use super::{Arrival, Error, Exchange, Ingress, Reason, Record};
use crate::bounds::{BODY_IDLE, GRPC_BODY_IDLE};
use crate::clock::Clock;
use crate::origin::{Destination, ProtocolChoice};
use crate::policy::{RequestJson, RequestView, Scope, Target, Unmatched, is_identity};
use crate::semantics::{self, Framing, HeaderFlags, Malformed, Preference};
use crate::telemetry::TargetMetrics;
use crate::units::{Origin, Scheme};

/// Decisions and state that all attempts of one exchange share.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) arrival: &'a Arrival,
    pub(super) target: Option<&'a Arc<Target>>,
    pub(super) metrics: Option<TargetMetrics>,
    pub(super) scope: Scope,
    /// Estimates before they are scaled, for each limit that learns them.
    pub(super) bases: Vec<(usize, i64)>,
    /// Head of a request with a scope that depends on its body, until that scope is decided.
    unscoped: Option<Box<Parts>>,
    /// Time for which the client may send no bytes of the body before the response.
    pub(super) silent: Duration,
    /// True for a body of length 0 that has not ended yet.
    pub(super) announces_nothing: bool,
    pub(super) max_wait: Duration,
    pub(super) preference: Preference,
    pub(super) template: Template,
    pub(super) destination: Destination,
    pub(super) body: Option<Replayable>,
    /// False for `Expect: 100-continue`, because reading the body makes the client send it. That
    /// must not happen before the slot is available.
    pub(super) read_ahead: bool,
    pub(super) switch: Option<OnUpgrade>,
    /// Credential that the client sent itself, unless the target replaces it.
    pub(super) credential: Option<HeaderValue>,
}

impl Exchange {
    /// Returns the scope of a request with its [`Target::bases`], or `None` if it depends on the body. Then `look_into_body`
    /// decides it.
    fn scope_of_head(
        &self,
        arrival: &Arrival,
        target: Option<&Arc<Target>>,
        head: &Parts,
        has_body: bool,
    ) -> Option<(Scope, Vec<(usize, i64)>)> {
        let Some(target) = target else {
            return Some((Scope::default(), Vec::new()));
        };
        let unsized_body = has_body && body_length(head).is_none();
        if target.needs_body() && has_body || target.needs_body_size() && unsized_body {
            return None;
        }
        let asked = RequestView {
            body_bytes: body_length(head).or(Some(0)),
            learned: Some(&self.pacer.cost_means().estimates),
            ..arrival.view(head, None)
        };
        let scope = target.scope(&asked, &self.pacer.key_secret());
        Some((scope, target.bases(&asked)))
    }

    /// Decides a scope that depends on the body, which is read to its end as far as it can be
    /// buffered. A compressed body is not read.
    ///
    /// # Errors
    /// Returns [`Reason::BodyTimeout`] if the client is silent for too long.
    pub(super) async fn look_into_body(&self, plan: &mut Plan<'_>) -> Result<(), Error> {
        let Some((head, target)) = plan.unscoped.take().zip(plan.target) else {
            return Ok(());
        };
        let mut scan = BodyScan::new(RequestJson::new(target.json_pointers()));
        // A client that waits for `100 Continue` has not sent its body, so reading it would block.
        let body = plan.body.as_ref().filter(|_| plan.read_ahead);
        if let Some(body) = body.filter(|_| is_identity(&head.headers)) {
            plan.scan(body, &mut scan).await?;
        }
        let asked = RequestView {
            body_bytes: body_length(&head).or_else(|| body.map(Replayable::buffered)),
            learned: Some(&self.pacer.cost_means().estimates),
            ..plan.arrival.view(&head, Some(&scan.json))
        };
        let scope = target.scope(&asked, &self.pacer.key_secret());
        plan.scope = in_lane(plan.arrival, target, scope);
        plan.bases = target.bases(&asked);
        Ok(())
    }

    /// Checks the head, matches the target and prepares the state that all attempts share. Fails if
    /// the head is malformed or the request must not be forwarded.
    pub(super) fn plan<'a>(
        &self,
        arrival: &'a Arrival,
        mut request: Request<InboundBody>,
        record: &mut Record,
    ) -> Result<Plan<'a>, Error> {
        let flags = HeaderFlags::of(request.headers());
        if flags.has(HeaderFlags::TRACE) {
            record.trace = request.headers().get("traceparent").cloned();
        }
        let (target, metrics) = self.match_target(arrival, record)?;
        // The upgrade is taken first, because it needs the complete request.
        let asks = flags.has(HeaderFlags::UPGRADE);
        let switch = asks.then(|| hyper::upgrade::on(&mut request));
        let (mut head, incoming) = request.into_parts();
        let read_ahead = self.check_head(&head, flags)?;
        check_credentials(arrival, &head, target)?;
        let framing = match flags.has(HeaderFlags::FRAMING) {
            true => semantics::framing(head.version, &mut head.headers)?,
            false => Framing::None,
        };
        let (preference, max_wait) = max_wait(&head.headers, flags)?;
        let longest = target.map_or(Duration::ZERO, |target| target.max_wait);
        let body = (!incoming.is_empty()).then(|| {
            let share = arrival.client.share.as_ref();
            Replayable::new(incoming, Arc::clone(&self.body_budget), share)
        });
        let silent = longest_silence(target, &head);
        let wire = wire(&head, flags, &arrival.origin);
        let owner = arrival.client.link.owner(&head.headers);
        let scope = self.scope_of_head(arrival, target, &head, body.is_some());
        let credential = credential(target, &head);
        let (head, unscoped, (scope, bases)) = match scope {
            Some(scope) => (head, None, scope),
            None => (head.clone(), Some(Box::new(head)), Default::default()),
        };
        let target_policy = target.map(|target| &**target);
        // A body without a length is sent in chunks, because hyper frames it only for some methods.
        let chunked = body.is_some() && !matches!(framing, Framing::Length(_));
        let (origin, us) = (&arrival.origin, &self.pseudonym);
        let mut template = Template::new(head, flags, origin, target_policy, chunked, us);
        if let Some(delivery) = &arrival.delivery {
            template.add(&delivery.fields);
        }
        Ok(Plan {
            silent,
            target,
            metrics,
            scope: match target {
                Some(target) => in_lane(arrival, target, scope),
                None => Scope::default(),
            },
            bases,
            unscoped,
            max_wait: match &arrival.delivery {
                Some(delivery) => delivery.max_wait,
                None => max_wait.map_or(longest, |max_wait| max_wait.min(longest)),
            },
            preference,
            destination: Destination {
                origin: arrival.origin.clone(),
                wire,
                owner,
            },
            switch: switch.filter(|_| template.upgrade.is_some()),
            template,
            announces_nothing: framing == Framing::Length(0) && body.is_some(),
            body,
            read_ahead,
            credential,
            arrival,
        })
    }

    /// Finds the target of the origin and notes it in the record. Fails with
    /// [`Reason::PortNotAllowed`] for a port that neither the client nor a buffer may choose, and with
    /// [`Reason::HostNotAllowed`] for a host without a target if `unmatched` is `refuse` and no
    /// route was used.
    pub(super) fn match_target<'a>(
        &self,
        arrival: &'a Arrival,
        record: &mut Record,
    ) -> Result<(Option<&'a Arc<Target>>, Option<TargetMetrics>), Error> {
        let origin = &arrival.origin;
        let names_port = matches!(arrival.ingress, Ingress::Plain | Ingress::Spool);
        // A request to outpace's own port is a loop, which is the more helpful reason.
        let is_loop = || self.pool.connector().is_loop(origin);
        if names_port && !arrival.policy.request_port_allowed(origin) && !is_loop() {
            let detail = format!("port {} of `{}` is not allowed", origin.port, origin.host);
            return Err(Error::new(Reason::PortNotAllowed, detail));
        }
        let Some(target) = arrival.policy.target(&origin.host, origin.port) else {
            let refuse = arrival.policy.unmatched == Unmatched::Refuse;
            if refuse && arrival.ingress != Ingress::Route {
                let detail = format!("no target matches `{}`", origin.host);
                return Err(Error::new(Reason::HostNotAllowed, detail));
            }
            return Ok((None, None));
        };
        let metrics = self.metrics_of(target);
        record.matched(Arc::clone(&target.name), metrics.clone());
        Ok((Some(target), Some(metrics)))
    }

    /// Refuses TRACE, loops and unsupported expectations. Returns true if the body may be read
    /// ahead.
    fn check_head(&self, head: &Parts, flags: HeaderFlags) -> Result<bool, Error> {
        if head.method == Method::TRACE {
            let detail = "TRACE is not forwarded because its response would repeat credentials";
            return Err(Error::new(Reason::MethodNotAllowed, detail));
        }
        if flags.has(HeaderFlags::VIA) && self.pseudonym.is_loop(&head.headers) {
            let detail = "`Via` contains this proxy already, or more than 32 entries";
            return Err(Error::new(Reason::LoopDetected, detail));
        }
        if !flags.has(HeaderFlags::EXPECT) {
            return Ok(true);
        }
        match head.headers.get(header::EXPECT) {
            None => Ok(true),
            Some(expect) if expect.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(false),
            Some(_) => Err(Error::new(
                Reason::ExpectationFailed,
                "the `Expect` value is not supported; send `100-continue` or omit the header",
            )),
        }
    }
}

/// Returns the credential that the client sent itself, unless the target replaces it.
fn credential(target: Option<&Arc<Target>>, head: &Parts) -> Option<HeaderValue> {
    let target = target?;
    let replaced =
        |name: &header::HeaderName| target.set_headers.iter().any(|(set, _)| set == name);
    semantics::own_credential(&head.headers, replaced).cloned()
}

impl Plan<'_> {
    /// Returns the body from its beginning, for one attempt.
    pub(super) fn reader(&self, clock: &Clock) -> (Outgoing, Option<Upload>) {
        let Some(body) = &self.body else {
            return (Outgoing::Empty, None);
        };
        let handover = Handover::new(clock.clone());
        let reader = Outgoing::Held(body.reader(Arc::clone(&handover)));
        // The timeout of its buffer bounds a delivery.
        let upload = self.arrival.delivery.is_none();
        let upload = upload.then(|| Upload::new(handover, self.idle(), self.silent));
        (reader, upload)
    }

    /// Returns the time for which a peer may take no bytes of a body.
    pub(super) fn idle(&self) -> Duration {
        self.target.map_or(BODY_IDLE, |target| target.body_idle)
    }

    /// Reads ahead like [`Replayable::peek`].
    ///
    /// # Errors
    /// Returns [`Reason::BodyTimeout`] if the client is silent for too long.
    async fn peek(&self, body: &Replayable, most: usize) -> Result<Option<Vec<u8>>, Error> {
        loop {
            let before = body.buffered();
            match tokio::time::timeout(self.silent, body.peek(most)).await {
                Ok(read) => return Ok(read),
                Err(_elapsed) if body.buffered() > before => {}
                Err(_elapsed) => return Err(body_timeout(self.silent)),
            }
        }
    }

    /// Waits for the end of a body whose length is 0, because the head of such a request is the whole
    /// request. Over HTTP/2 the client may still send bytes that it did not announce, or abort the
    /// stream.
    ///
    /// # Errors
    /// Returns the error of a broken body if it does not end as announced, and
    /// [`Reason::BodyTimeout`] if it does not end in time.
    pub(super) async fn expect_nothing(&mut self) -> Result<(), Error> {
        let body = self.body.take();
        let read = match &body {
            Some(body) => self.peek(body, 0).await?,
            None => Some(Vec::new()),
        };
        match read {
            Some(nothing) if nothing.is_empty() => Ok(()),
            _ => Err(AttemptError::ClientGone.into()),
        }
    }

    /// Returns true if the scope depends on the body and is not decided yet.
    pub(super) const fn needs_body(&self) -> bool {
        self.unscoped.is_some()
    }

    /// Reads ahead like [`Replayable::scan`].
    ///
    /// # Errors
    /// Returns [`Reason::BodyTimeout`] if the client is silent for too long.
    async fn scan(&self, body: &Replayable, scan: &mut BodyScan) -> Result<(), Error> {
        loop {
            let before = body.buffered();
            match tokio::time::timeout(self.silent, body.scan(scan)).await {
                Ok(()) => return Ok(()),
                Err(_elapsed) if body.buffered() > before => {}
                Err(_elapsed) => return Err(body_timeout(self.silent)),
            }
        }
    }
}

/// Returns the caller's preferences and the smallest max wait that its headers contain. Fails if
/// `Outpace-Max-Wait` is malformed.
fn max_wait(
    headers: &HeaderMap,
    flags: HeaderFlags,
) -> Result<(Preference, Option<Duration>), Malformed> {
    if !flags.has(HeaderFlags::PREFER) && !flags.has(HeaderFlags::OURS) {
        return Ok((Preference::default(), None));
    }
    let preference = semantics::preference(headers);
    let waits = [semantics::max_wait(headers)?, preference.wait];
    Ok((preference, waits.into_iter().flatten().min()))
}

/// Returns the length of a body that its head states.
fn body_length(head: &Parts) -> Option<u64> {
    let length = head.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Returns the scope in the lane for deliveries, if the request is a delivery and the target has
/// that lane.
fn in_lane(arrival: &Arrival, target: &Target, scope: Scope) -> Scope {
    match target.deliveries.filter(|_| arrival.delivery.is_some()) {
        Some(lane) => scope.in_lane(lane),
        None => scope,
    }
}

/// Returns the time for which the client may send no byte of its body before the response.
fn longest_silence(target: Option<&Arc<Target>>, head: &Parts) -> Duration {
    let idle = target.map_or(BODY_IDLE, |target| target.body_idle);
    match is_grpc(head) {
        true => idle.max(GRPC_BODY_IDLE),
        false => idle,
    }
}

/// Returns true for a call of gRPC.
fn is_grpc(head: &Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Returns the protocols to offer to the origin. A protocol switch needs HTTP/1.1. Unencrypted gRPC
/// starts with HTTP/2 (RFC 9113 section 3.3).
fn wire(head: &Parts, flags: HeaderFlags, origin: &Origin) -> ProtocolChoice {
    if flags.has(HeaderFlags::UPGRADE)
        && semantics::requested_upgrade(&head.method, head.version, &head.headers).is_some()
    {
        return ProtocolChoice::Http1;
    }
    if origin.scheme == Scheme::Http && head.version == Version::HTTP_2 && is_grpc(head) {
        return ProtocolChoice::Http2Prior;
    }
    ProtocolChoice::Any
}

/// Refuses a request to which outpace must not add the credentials of its target: from another
/// site's page, without TLS, or to another port.
fn check_credentials(
    arrival: &Arrival,
    head: &Parts,
    target: Option<&Arc<Target>>,
) -> Result<(), Error> {
    check_site(arrival, head, target)?;
    match target.and_then(|target| refused_credential(target, &arrival.origin)) {
        Some(detail) => Err(Error::new(Reason::CredentialsNeedTls, detail)),
        None => Ok(()),
    }
}

/// Refuses a request of another site's page to the forward proxy, if outpace would add credentials.
/// Requests to routes were checked on arrival, and deliveries before they were stored.
fn check_site(arrival: &Arrival, head: &Parts, target: Option<&Arc<Target>>) -> Result<(), Error> {
    let checked = arrival.ingress == Ingress::Route || arrival.delivery.is_some();
    let adds = target.is_some_and(|target| !target.set_headers.is_empty());
    if checked || !adds {
        return Ok(());
    }
    let foreign = match head.headers.get("sec-fetch-site") {
        Some(site) => !matches!(site.as_bytes(), b"same-origin" | b"none"),
        // Any value counts, because a sandboxed frame of any page sends `null`.
        None => head.headers.contains_key(header::ORIGIN),
    };
    if foreign {
        let detail = "a web page of another site must not use credentials that outpace sets";
        return Err(Error::new(Reason::CrossSite, detail));
    }
    Ok(())
}
