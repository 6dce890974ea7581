//! Cases: one client connection with drawn requests, or one request with a drawn response.

use std::sync::Arc;

use crate::check;
use crate::client::{self, Http1};
use crate::dice::Dice;
use crate::draft::Draft;
use crate::frames::{self, Answers, End, OF_STREAMS};
use crate::model::{Delimiter, Fate, Meant, Way, token};
use crate::mutate::COMMON;
use crate::render;
use crate::replies::{Reply, plain_body};
use crate::requests::OF_REQUESTS;
use crate::strict::Message;
use crate::world::{LANES, Lane, World};

/// Numbers of messages that a case has checked.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) requests: usize,
    pub(crate) responses: usize,
}

/// Report of a case that failed.
pub(crate) struct Fault {
    pub(crate) problem: String,
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
}

/// One case while it runs.
struct Case<'a> {
    world: &'a World,
    lane: &'a Lane,
    number: u64,
    way: Way,
    dice: Dice,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl<'a> Case<'a> {
    fn new(world: &'a World, seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed, number);
        let way = dice.pick(&[Way::Proxy, Way::Proxy, Way::Route, Way::Route, Way::Tls]);
        Self {
            world,
            lane: &world.lanes[usize::try_from(number % LANES).unwrap()],
            number,
            way,
            dice,
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    fn end(self, found: Result<Counts, String>) -> Result<Counts, Fault> {
        let faults = self.lane.recorder.faults();
        let problem = match (found, faults.is_empty()) {
            (Ok(counts), true) => return Ok(counts),
            (Ok(_), false) => faults.join("\n"),
            (Err(problem), _) => format!("{problem}\n{}", faults.join("\n")),
        };
        let mut problem = format!("{:?}: {problem}", self.way);
        for index in 0..4 {
            for bytes in self.lane.recorder.arrived(&token(self.number, index)) {
                problem += &format!("\n  arrived: {}", crate::shown(&bytes));
            }
        }
        Err(Fault {
            problem,
            sent: self.sent,
            received: self.received,
        })
    }

    /// Draws the meanings of the requests of one connection.
    fn meanings(&mut self, http2: bool) -> Vec<Meant> {
        let count = self.dice.pick(&[1, 1, 2, 3]);
        let mut list = Vec::new();
        for index in 0..count {
            let token = token(self.number, index);
            let mut meant = Meant::draw(&mut self.dice, token, &self.lane.host, http2);
            if index + 1 < count && meant.closes() {
                meant.hop.clear();
            }
            list.push(meant);
        }
        list
    }

    /// Announces the requests to the origin. `mutated` is the index and the right result of the
    /// request that is mutated.
    fn announce(&self, list: &[Meant], fate: impl Fn(usize) -> Fate) {
        for (index, meant) in list.iter().enumerate() {
            let reply = Reply::plain(&meant.token, &meant.method);
            let meant = Arc::new(meant.clone());
            self.lane
                .recorder
                .announce(&meant, fate(index), &Arc::new(reply));
        }
    }

    async fn requests_http1(&mut self) -> Result<Counts, String> {
        let mutates = self.dice.chance(60);
        let mut list = self.meanings(false);
        for meant in list.iter_mut().filter(|_| mutates) {
            // A refusal that does not know the method has a body.
            if meant.method == "HEAD" {
                "GET".clone_into(&mut meant.method);
            }
        }
        let way = self.way;
        let mut drafts: Vec<Draft> = list
            .iter()
            .map(|meant| render::request(&mut self.dice, meant, way))
            .collect();
        let mut mutated = None;
        if mutates {
            let at = self.dice.below(drafts.len());
            if let Some((fate, name)) = mutate(&mut self.dice, &mut drafts[at]) {
                mutated = Some((at, fate, name));
            }
            // The bytes of a further request would belong to the body of the one that is cut.
            let cut = drafts[at].cut.is_some();
            if cut {
                drafts.truncate(at + 1);
                list.truncate(at + 1);
            }
        }
        let fate = |index| match mutated {
            Some((at, fate, _)) if at == index => fate,
            Some((at, ..)) if at < index => Fate::May,
            _ => Fate::Must,
        };
        self.announce(&list, fate);
        for draft in &drafts {
            self.sent.extend(draft.bytes().0);
        }
        let mut connection = Http1::new(self.world.connect(self.lane, way, false).await);
        let methods: Vec<&str> = list.iter().map(|meant| meant.method.as_str()).collect();
        let pieces = self.dice.pieces(&self.sent);
        let found = connection.run(pieces, &methods, mutated.is_some()).await;
        self.received = connection.received;
        let name = mutated.map_or("no mutation", |(_, _, name)| name);
        let checked = found.and_then(|found| check_http1(&list, &found, fate));
        let counts = Counts {
            requests: list.len(),
            responses: checked.map_err(|problem| format!("{name}: {problem}"))?,
        };
        Ok(counts)
    }

    async fn requests_http2(&mut self) -> Result<Counts, String> {
        let list = self.meanings(true);
        let mut streams: Vec<frames::Stream> = list
            .iter()
            .map(|meant| frames::stream(&mut self.dice, meant, self.way))
            .collect();
        let mut mutated = None;
        if self.dice.chance(60) {
            let at = self.dice.below(streams.len());
            let (name, mutation) = self.dice.pick(&OF_STREAMS);
            let mut changed = streams[at].clone();
            if let Some(fate) = mutation(&mut self.dice, &mut changed) {
                streams[at] = changed;
                mutated = Some((at, fate, name));
            }
        }
        // A connection error may end the other streams too.
        let fate = |index| match mutated {
            None => Fate::Must,
            Some((at, fate, _)) if at == index => fate,
            Some(_) => Fate::May,
        };
        self.announce(&list, fate);
        let mut bytes = frames::preface();
        for (index, stream) in (0..).zip(&streams) {
            bytes.extend(stream.bytes(&mut self.dice, 2 * index + 1));
        }
        let mut stream = self.world.connect(self.lane, self.way, true).await;
        let open = streams.iter().any(|stream| stream.end != End::Clean);
        let found =
            client::frames(&mut stream, &bytes, list.len(), open || mutated.is_some()).await;
        self.sent = bytes;
        let name = mutated.map_or("no mutation", |(_, _, name)| name);
        let checked = found.and_then(|found| check_http2(&list, &found, fate));
        let counts = Counts {
            requests: list.len(),
            responses: checked.map_err(|problem| format!("HTTP/2, {name}: {problem}"))?,
        };
        Ok(counts)
    }

    /// Returns a simple request, because a case of a response is about the response.
    fn simple(&mut self) -> Meant {
        let mut meant = Meant::probe(token(self.number, 0), &self.lane.host);
        let method = self.dice.pick(&["GET", "GET", "POST", "PUT", "HEAD"]);
        method.clone_into(&mut meant.method);
        if matches!(method, "POST" | "PUT") {
            meant.delimiter = Delimiter::Length;
            meant.body = format!("body of {}", meant.token).into_bytes();
        }
        meant
    }

    /// Asks for a drawn response, and then for a plain one that the first must not disturb.
    async fn response(&mut self, http2: bool) -> Result<Counts, String> {
        let meant = Arc::new(self.simple());
        let reply = Reply::draw(&mut self.dice, &meant.token, &meant.method);
        let probe = Arc::new(Meant::probe(token(self.number, 1), &self.lane.host));
        let second = Reply::plain(&probe.token, &probe.method);
        let (reply, second) = (Arc::new(reply), Arc::new(second));
        let recorder = &self.lane.recorder;
        recorder.announce(&meant, Fate::Must, &reply);
        recorder.announce(&probe, Fate::Must, &second);
        self.sent = reply.pieces.concat();
        let asked = [(meant, Arc::clone(&reply)), (probe, second)];
        let done = match http2 {
            true => self.ask_http2(&asked).await,
            false => self.ask_http1(&asked).await,
        };
        done.map_err(|problem| {
            let (fate, name) = (reply.fate, reply.mutation);
            let http2 = if http2 { "HTTP/2, " } else { "" };
            format!("{http2}{fate:?} {name}: {problem}")
        })?;
        Ok(Counts {
            requests: 2,
            responses: 2,
        })
    }

    async fn ask_http1(&mut self, asked: &[(Arc<Meant>, Arc<Reply>)]) -> Result<(), String> {
        let mut connection = Http1::new(self.world.connect(self.lane, self.way, false).await);
        for (meant, reply) in asked {
            if connection.ended || !connection.rest.is_empty() {
                connection = Http1::new(self.world.connect(self.lane, self.way, false).await);
            }
            let request = render::request(&mut self.dice, meant, self.way).bytes().0;
            let method = [meant.method.as_str()];
            let found = connection.run(vec![request], &method, false).await;
            self.received.extend_from_slice(&connection.received);
            connection.received.clear();
            let found = found?;
            let found = found.first();
            let closes = found.is_some_and(|message| {
                message
                    .all("connection")
                    .iter()
                    .any(|value| value.eq_ignore_ascii_case(b"close"))
            });
            connection.ended |= closes;
            let found =
                found.map(|found| (found.status(), found.fields.clone(), found.body.clone()));
            check_response(reply, found)?;
        }
        Ok(())
    }

    async fn ask_http2(&mut self, asked: &[(Arc<Meant>, Arc<Reply>)]) -> Result<(), String> {
        let stream = self.world.connect(self.lane, self.way, true).await;
        let (mut sender, connection) = h2::client::handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let scheme = if self.way == Way::Tls {
            "https"
        } else {
            "http"
        };
        for (meant, reply) in asked {
            let found = client::http2(&mut sender, meant, scheme).await?;
            if let Some((status, fields, body)) = &found {
                self.received = format!("{status} {fields:?} {}", body.escape_ascii()).into_bytes();
            }
            check_response(reply, found)?;
        }
        connection.abort();
        Ok(())
    }
}

/// Changes a draft by a drawn mutation that fits it.
fn mutate(dice: &mut Dice, draft: &mut Draft) -> Option<(Fate, &'static str)> {
    for _ in 0..20 {
        let (name, mutation) = match dice.chance(55) {
            true => dice.pick(&COMMON),
            false => dice.pick(&OF_REQUESTS),
        };
        let mut changed = draft.clone();
        if let Some(fate) = mutation(dice, &mut changed) {
            *draft = changed;
            return Some((fate, name));
        }
    }
    None
}

/// Checks the responses of one connection, in their order. Returns their number.
fn check_http1(
    list: &[Meant],
    found: &[Message],
    fate: impl Fn(usize) -> Fate,
) -> Result<usize, String> {
    for (index, meant) in list.iter().enumerate() {
        let Some(message) = found.get(index) else {
            if fate(index) == Fate::Must {
                return Err(format!("no response to request {index}"));
            }
            continue;
        };
        let body = plain_body(&meant.token);
        let arrived = message.status() == 200
            && (message.body == body || meant.method == "HEAD" && message.body.is_empty());
        let refused = check::is_own(message.status(), &message.fields);
        let right = match fate(index) {
            Fate::Must => arrived,
            Fate::May => arrived || refused,
            Fate::Never => refused,
        };
        if !right {
            return Err(format!(
                "response {index} to a request that {:?} arrive",
                fate(index)
            ));
        }
    }
    Ok(found.len())
}

fn check_http2(
    list: &[Meant],
    found: &Answers,
    fate: impl Fn(usize) -> Fate,
) -> Result<usize, String> {
    for (index, (meant, answer)) in list.iter().zip(&found.streams).enumerate() {
        let has_body = answer.body == plain_body(&meant.token)
            || meant.method == "HEAD" && answer.body.is_empty();
        let arrived = answer.ok && answer.complete && has_body;
        let right = match fate(index) {
            Fate::Must => arrived,
            Fate::May => arrived || !answer.ok,
            Fate::Never => !answer.ok,
        };
        if !right {
            return Err(format!(
                "stream {index} that {:?} arrive: {answer:?}",
                fate(index)
            ));
        }
    }
    Ok(found
        .streams
        .iter()
        .filter(|answer| answer.complete)
        .count())
}

/// Checks a response, or `None` for one that is visibly incomplete.
fn check_response(reply: &Reply, found: Option<client::Http2Response>) -> Result<(), String> {
    let Some((status, fields, body)) = found else {
        return match reply.fate {
            Fate::Must => Err("a valid response is incomplete".to_owned()),
            Fate::May | Fate::Never => Ok(()),
        };
    };
    if reply.fate != Fate::Must && check::is_own(status, &fields) {
        return Ok(());
    }
    if reply.fate == Fate::Never {
        return Err(format!("a response that is wrong looks complete: {status}"));
    }
    check::delivered(reply, status, &fields, &body)
}

/// Runs case `number` of requests.
///
/// # Errors
/// Returns the fault with the bytes of both sides.
pub(crate) async fn requests(world: &World, seed: u64, number: u64) -> Result<Counts, Fault> {
    let mut case = Case::new(world, seed, number);
    let found = match case.dice.chance(35) {
        true => case.requests_http2().await,
        false => case.requests_http1().await,
    };
    case.end(found)
}

/// Runs case `number` of responses.
///
/// # Errors
/// Returns the fault with the bytes that the origin sent and the client received.
pub(crate) async fn responses(world: &World, seed: u64, number: u64) -> Result<Counts, Fault> {
    let mut case = Case::new(world, seed, number);
    let http2 = case.dice.chance(35);
    let found = case.response(http2).await;
    case.end(found)
}
