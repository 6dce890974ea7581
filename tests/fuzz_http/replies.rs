//! Responses of the origin: their meaning, and the bytes by which they are sent.

use crate::dice::Dice;
use crate::draft::{Content, Draft, chunks, field};
use crate::model::{Fate, Lines, response_fields};
use crate::mutate::{COMMON, Mutation};

/// Response of the origin to one request.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// End-to-end fields, which reach the client unless the response is mutated.
    pub(crate) fields: Lines,
    pub(crate) body: Vec<u8>,
    pub(crate) fate: Fate,
    /// Name of the mutation, or an empty text.
    pub(crate) mutation: &'static str,
    /// Bytes to send, in the pieces in which they are sent.
    pub(crate) pieces: Vec<Vec<u8>>,
    /// True if the origin closes the connection afterwards.
    pub(crate) closes: bool,
}

/// Framing of a response's content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    Close,
}

/// Returns the body of the plain response to a request.
pub(crate) fn plain_body(token: &str) -> Vec<u8> {
    format!("reply to {token}").into_bytes()
}

impl Reply {
    /// Returns the response 200 with [`plain_body`].
    pub(crate) fn plain(token: &str, method: &str) -> Self {
        let body = plain_body(token);
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let mut bytes = head.into_bytes();
        if method != "HEAD" {
            bytes.extend_from_slice(&body);
        }
        Self {
            status: 200,
            fields: Vec::new(),
            body,
            fate: Fate::Must,
            mutation: "",
            pieces: vec![bytes],
            closes: false,
        }
    }

    /// Draws a response to a request with this method and token.
    pub(crate) fn draw(dice: &mut Dice, token: &str, method: &str) -> Self {
        let status = dice.pick(&[
            200, 200, 200, 200, 201, 206, 299, 301, 400, 404, 410, 500, 502, 599, 204, 304,
        ]);
        let bodiless = matches!(status, 204 | 304) || method == "HEAD";
        let framing = dice.pick(&[
            Framing::Length,
            Framing::Length,
            Framing::Chunked,
            Framing::Chunked,
            Framing::Close,
        ]);
        let body = match dice.below(10) {
            0 => Vec::new(),
            1 => format!("0\r\n\r\n{token}HTTP/1.1 200 OK\r\n\r\n").into_bytes(),
            2 => format!("{token}{}", "y".repeat(dice.pick(&[5000, 20_000, 70_000]))).into_bytes(),
            _ => format!("generated reply to {token}\r\n").into_bytes(),
        };
        let fields = response_fields(dice);
        let mut closes = framing == Framing::Close && !bodiless || dice.chance(15);
        let mut draft = draft(dice, status, &fields, framing, bodiless, &body);
        let (mut fate, mut mutation) = (Fate::Must, "");
        if bodiless {
            // Bytes of a body that cannot be are no part of the response.
            if status != 204 && dice.chance(50) {
                draft.after = b"body".to_vec();
            }
        } else if dice.chance(60) {
            (fate, mutation) = mutate(dice, &mut draft);
        }
        closes |= fate != Fate::Must && draft.after.is_empty();
        if closes && (bodiless || framing != Framing::Close) {
            // A close without notice may meet the next request (RFC 9112 section 9.5). Only a body
            // that the close ends is notice of it.
            draft.lines.push(b"Connection: close".to_vec());
        }
        let (bytes, _) = draft.bytes();
        // Bytes after the end belong to no request only if they come together with the end.
        let pieces = match draft.after.is_empty() {
            true => dice.pieces(&bytes),
            false => vec![bytes],
        };
        Self {
            status,
            fields,
            body: if bodiless { Vec::new() } else { body },
            fate,
            mutation,
            pieces,
            closes,
        }
    }
}

fn draft(
    dice: &mut Dice,
    status: u16,
    fields: &Lines,
    framing: Framing,
    bodiless: bool,
    body: &[u8],
) -> Draft {
    let reason = dice.pick(&[&b"OK"[..], b"", b"Not Really OK", b"Tr\xe8s bien", b"a\tb"]);
    let mut start = format!("HTTP/1.1 {status} ").into_bytes();
    start.extend_from_slice(reason);
    let mut draft = Draft {
        start,
        end: b"\r\n",
        ..Draft::default()
    };
    for _ in 0..dice.pick(&[0, 0, 0, 0, 1, 3]) {
        draft.lead.extend_from_slice(dice.pick(&[
            &b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"[..],
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 102 Processing\r\nX-A: b\r\nX-A: c\r\n\r\n",
            b"HTTP/1.1 199 \r\n\r\n",
        ]));
    }
    for (name, value) in fields {
        draft.lines.push(field(dice, name, value));
    }
    let hop = dice.pick(&[
        &[][..],
        &[],
        &["Connection: x-hop", "X-Hop: secret"],
        &["Keep-Alive: timeout=9", "Proxy-Connection: keep-alive"],
        &["Proxy-Authenticate: Basic", "Outpace-Waited: 99"],
        &["Upgrade: h2c", "Connection: upgrade"],
        &["Trailer: content-length"],
    ]);
    for line in hop {
        draft.insert(dice, *line);
    }
    match framing {
        Framing::Length if bodiless => draft.insert(dice, "Content-Length: 4"),
        _ if bodiless => {}
        Framing::Length => {
            let line = field(dice, "content-length", body.len().to_string().as_bytes());
            draft.insert(dice, line);
            draft.body = Content::Plain(body.to_vec());
        }
        Framing::Chunked => {
            let coding = dice.cased("chunked");
            let line = field(dice, "transfer-encoding", coding.as_bytes());
            draft.insert(dice, line);
            draft.body = chunks(dice, body, &[]);
        }
        Framing::Close => draft.body = Content::Plain(body.to_vec()),
    }
    draft
}

fn mutate(dice: &mut Dice, draft: &mut Draft) -> (Fate, &'static str) {
    for _ in 0..20 {
        let (name, mutation) = match dice.chance(60) {
            true => dice.pick(&COMMON),
            false => dice.pick(&OF_REPLIES),
        };
        let mut changed = draft.clone();
        if let Some(fate) = mutation(dice, &mut changed) {
            *draft = changed;
            return (fate, name);
        }
    }
    (Fate::Must, "")
}

/// Mutations of responses alone.
const OF_REPLIES: [(&str, Mutation); 6] = [
    ("bad status-line", |dice, draft| {
        draft.start = dice
            .pick(&[
                &b"HTTP/1.1 099 OK"[..],
                b"HTTP/1.1 20 OK",
                b"HTTP/1.1 2000 OK",
                b"HTTP/1.1 abc OK",
                b"HTTP/1.1  200 OK",
                b"HTTP/1.1 -20 OK",
                b"HTTP/2.0 200 OK",
                b"HTTP/2 200 OK",
                b"HTTP/1.1",
                b"ICY 200 OK",
                b"http/1.1 200 OK",
                b"HTTP/1.1200 OK",
                b"200 OK",
                b"",
                b"SSH-2.0-OpenSSH_9.2",
            ])
            .to_vec();
        // A leading empty line is tolerated by some recipients.
        Some(if draft.start.is_empty() {
            Fate::May
        } else {
            Fate::Never
        })
    }),
    ("tolerable status-line", |dice, draft| {
        let line = String::from_utf8_lossy(&draft.start).into_owned();
        let code: String = line.split(' ').nth(1)?.to_owned();
        draft.start = match dice.below(4) {
            0 => format!("HTTP/1.1 {code}"),
            1 => format!("HTTP/1.1 {code} a\0b"),
            2 => format!("HTTP/1.2 {code} OK"),
            _ => format!("HTTP/1.1\t{code} OK"),
        }
        .into_bytes();
        Some(Fate::May)
    }),
    ("HTTP/1.0", |_, draft| {
        let line = String::from_utf8_lossy(&draft.start).into_owned();
        draft.start = line.replacen("1.1", "1.0", 1).into_bytes();
        Some(Fate::May)
    }),
    ("bytes after the end", |dice, draft| {
        let framed = draft.position("content-length").is_some()
            || draft.position("transfer-encoding").is_some();
        let small = draft.bytes().0.len() < 3000;
        draft.after = dice
            .pick(&[
                &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"[..],
                b"\r\n",
                b"x",
                b"\0\0\0\0",
                b"HTTP/1.1 100 Continue\r\n\r\n",
            ])
            .to_vec();
        (framed && small).then_some(Fate::May)
    }),
    ("switch of protocols without a request", |_, draft| {
        draft.start = b"HTTP/1.1 101 Switching Protocols".to_vec();
        draft.lines.push(b"Upgrade: websocket".to_vec());
        draft.lines.push(b"Connection: upgrade".to_vec());
        Some(Fate::Never)
    }),
    ("interim response with framing", |dice, draft| {
        draft.lead = dice
            .pick(&[
                &b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n"[..],
                b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            ])
            .to_vec();
        Some(Fate::May)
    }),
];
