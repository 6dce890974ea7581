//! Delivery of the origin's response to the client: stripped, marked or as a protocol switch.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::Replayable;
use super::idle::timeouts;
use super::peek::PeekedBody;
use super::plan::Plan;
use super::react::Attempted;
use super::respond::{FromOrigin, ResponseBody};
use super::usage::settle_undelivered;
use super::{BodyLocation, Error, Exchange, OriginResponse, Reason, Record, Recording};
use crate::bounds::{ASIDE_BYTES, ASIDE_TIMEOUT};
use crate::clock::Clock;
use crate::pace::Turn;
use crate::policy::Access;
use crate::semantics;
use crate::tunnel;

/// Result of an exchange that the client gets instead of an error.
pub(super) enum Outcome {
    Origin(Response<Box<FromOrigin>>),
    Buffered(Response<Bytes>),
    /// 202 for a request that is stored in the spool and not sent yet.
    Deferred(Response<ResponseBody>),
    Switch(Response<ResponseBody>, Box<Switch>),
}

/// Reads a response to its end, so that its connection is free while the request waits for a retry.
///
/// Returns `None` if the body breaks, exceeds [`ASIDE_BYTES`] or takes longer than
/// [`ASIDE_TIMEOUT`]. If the retry is then refused, the client gets an error of outpace instead.
pub(super) async fn buffer_response(answer: OriginResponse) -> Option<Response<Bytes>> {
    if let Some(turn) = &answer.turn {
        settle_undelivered(turn, &answer.response);
    }
    let (mut head, body) = answer.response.into_parts();
    let body = http_body_util::Limited::new(body, ASIDE_BYTES);
    let reading = tokio::time::timeout(ASIDE_TIMEOUT, http_body_util::BodyExt::collect(body));
    let bytes = reading.await.ok()?.ok()?.to_bytes();
    head.headers.remove(header::TRAILER);
    Some(Response::from_parts(head, bytes))
}

/// Client and origin connections that leave HTTP together after a 101 response.
pub(super) struct Switch {
    client: OnUpgrade,
    origin: OnUpgrade,
    turn: Option<Turn>,
    /// Time for which a side may take no bytes.
    untaken: Duration,
}

impl Switch {
    /// Relays the new protocol until it ends, is idle for [`TUNNEL_IDLE`] or the client's access is
    /// revoked. Holds the turn's permits for the whole relay.
    pub(super) async fn relay(
        self: Box<Self>,
        mut record: Box<Recording>,
        clock: Clock,
        access: Access,
    ) {
        let ends = *self;
        match tokio::try_join!(ends.client, ends.origin) {
            Ok((client, origin)) => {
                let (client, origin) = (TokioIo::new(client), TokioIo::new(origin));
                let timeouts = timeouts(ends.untaken);
                let passed =
                    tunnel::relay(client, origin, timeouts, &clock, access.revoked()).await;
                record.relayed(&passed, ends.untaken);
            }
            Err(error) => {
                let detail = format!("the protocol switch failed: {error}");
                record.refused(&Error::new(Reason::OriginBroke, detail));
            }
        }
        drop(ends.turn);
        record.end();
    }
}

impl Exchange {
    /// Turns the origin's response into the client's response, without hop-by-hop fields. Fails
    /// with [`Reason::OriginProtocol`] for a 407 or a protocol switch that was not requested.
    pub(super) fn deliver(
        &self,
        plan: &mut Plan<'_>,
        answer: OriginResponse,
        record: &mut Record,
    ) -> Result<Outcome, Error> {
        let OriginResponse {
            mut response,
            turn,
            upload,
            signal: _,
        } = answer;
        let status = response.status();
        let protocol_error = |detail: &str| Err(Error::new(Reason::OriginProtocol, detail));
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return protocol_error("the origin sent status 407, which only a proxy may send");
        }
        let method = plan.template.method();
        if let Err(problem) = semantics::response_framing(method, status, response.headers_mut()) {
            return protocol_error(&format!(
                "the origin's response has no valid length: {problem}"
            ));
        }
        let body = plan.body.as_ref();
        record.body = body.map_or(BodyLocation::None, Replayable::kept);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let asked = plan.template.upgrade.as_ref();
            if !semantics::switched(asked, status, response.headers()) {
                return protocol_error("the origin switched to a protocol that was not requested");
            }
            let Some(client) = plan.switch.take() else {
                return Err(Error::new(Reason::Internal, "no pending upgrade"));
            };
            record.status = status.as_u16();
            let origin = hyper::upgrade::on(&mut response);
            let switch = Box::new(Switch {
                client,
                origin,
                turn,
                untaken: plan.idle(),
            });
            let response = self.switching(response, plan, record);
            return Ok(Outcome::Switch(response, switch));
        }
        let usage = turn.as_ref();
        let usage = usage.and_then(|turn| self.usage(plan, turn, &response));
        self.mark(&mut response, record);
        record.status = status.as_u16();
        let stored = plan.arrival.delivery.is_some();
        let strict = stored && plan.target.is_none_or(|target| target.needs_close_notify);
        let idle = plan.idle();
        let response =
            response.map(|body| FromOrigin::new(body, (turn, usage), idle, upload, strict));
        Ok(Outcome::Origin(response))
    }

    /// Delivers the origin's last response, which was buffered while the request waited for a
    /// retry.
    pub(super) fn deliver_buffered(
        &self,
        mut kept: Response<Bytes>,
        record: &mut Record,
    ) -> Outcome {
        let status = kept.status();
        if semantics::response_framing(&record.method, status, kept.headers_mut()).is_err() {
            // The body is complete, so hyper can set its length.
            kept.headers_mut().remove(header::CONTENT_LENGTH);
        }
        self.mark(&mut kept, record);
        record.status = kept.status().as_u16();
        Outcome::Buffered(kept)
    }

    fn mark<T>(&self, response: &mut Response<T>, record: &Record) {
        let status = response.status();
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        semantics::strip_response(headers);
        if record.target.is_some() {
            headers.insert(semantics::OUTPACE_WAITED, seconds(record.waited));
            let attempts = match record.attempts {
                1 => HeaderValue::from_static("1"),
                several => HeaderValue::from(several),
            };
            headers.insert(semantics::OUTPACE_ATTEMPTS, attempts);
        }
        if Attempted::may_ask_for_time(status) {
            headers.append(semantics::PROXY_STATUS, semantics::received(status));
        }
    }

    /// Builds the 101 for the client. `Connection` and `Upgrade` apply to one hop only, so outpace
    /// sets both.
    fn switching(
        &self,
        response: Response<PeekedBody>,
        plan: &Plan<'_>,
        record: &Record,
    ) -> Response<ResponseBody> {
        let mut response = response.map(|_| ResponseBody::empty());
        self.mark(&mut response, record);
        if let Some(protocol) = &plan.template.upgrade {
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, protocol.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        response
    }
}

fn seconds(waited: Duration) -> HeaderValue {
    if waited < Duration::from_micros(500) {
        return HeaderValue::from_static("0.000");
    }
    HeaderValue::try_from(format!("{:.3}", waited.as_secs_f64()))
        .unwrap_or(HeaderValue::from_static("0.000"))
}
