//! HTTP/1.1 form of a request: what the grammar leaves open is drawn.

use crate::dice::Dice;
use crate::draft::{Content, Draft, chunks, field};
use crate::model::{Delimiter, Meant, Way};

/// Renders a request for its ingress mode with drawn case, whitespace and order.
pub(crate) fn request(dice: &mut Dice, meant: &Meant, way: Way) -> Draft {
    let (target, host) = target(dice, meant, way);
    let mut draft = Draft {
        start: format!("{} {target} HTTP/1.1", meant.method).into_bytes(),
        end: b"\r\n",
        ..Draft::default()
    };
    if dice.chance(5) {
        draft.lead = b"\r\n".to_vec();
    }
    for (name, value) in &meant.fields {
        draft.lines.push(field(dice, name, value));
    }
    for (name, value) in &meant.hop {
        let line = field(dice, name, value.as_bytes());
        draft.insert(dice, line);
    }
    if !meant.cookies.is_empty() {
        let line = field(dice, "cookie", meant.cookies.join("; ").as_bytes());
        draft.insert(dice, line);
    }
    if dice.chance(8) {
        let line = field(dice, "expect", b"100-continue");
        draft.insert(dice, line);
    }
    let line = field(dice, "host", host.as_bytes());
    draft.insert(dice, line);
    add_body(dice, meant, &mut draft);
    draft
}

fn add_body(dice: &mut Dice, meant: &Meant, draft: &mut Draft) {
    let line = match meant.delimiter {
        Delimiter::None => return,
        Delimiter::Length => {
            draft.body = Content::Plain(meant.body.clone());
            let length = meant.body.len().to_string();
            field(dice, "content-length", length.as_bytes())
        }
        Delimiter::Chunked => {
            draft.body = chunks(dice, &meant.body, &meant.trailers);
            let coding = dice.cased("chunked");
            field(dice, "transfer-encoding", coding.as_bytes())
        }
    };
    draft.insert(dice, line);
    if !meant.trailers.is_empty() {
        let line = field(dice, "trailer", b"x-sum");
        draft.insert(dice, line);
    }
}

/// Returns a request-target and the value of `Host`, in one of the forms that mean the origin.
fn target(dice: &mut Dice, meant: &Meant, way: Way) -> (String, String) {
    let (scheme, port) = match way {
        Way::Tls => ("https", ":443"),
        Way::Proxy | Way::Route => ("http", ":80"),
    };
    let host = dice.cased(&meant.host);
    let authority = match dice.below(4) {
        0 => format!("{host}{port}"),
        1 => format!("{host}."),
        _ => host,
    };
    let absolute = |dice: &mut Dice, authority: &str| {
        let scheme = dice.cased(scheme);
        format!("{scheme}://{authority}{}", meant.path)
    };
    match way {
        Way::Proxy => (absolute(dice, &authority), authority),
        // A route's host does not matter, because its port selects the origin.
        Way::Route if dice.chance(30) => {
            let host = dice.pick(&["localhost", "127.0.0.1:9001", "[::1]", "any.example"]);
            (meant.path.clone(), host.to_owned())
        }
        Way::Route | Way::Tls if dice.chance(15) => (absolute(dice, &authority), authority),
        Way::Route | Way::Tls => (meant.path.clone(), authority),
    }
}
