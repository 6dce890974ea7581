//! Mutations of what only requests have: method, request-target, version, `Host` and trailers.

use crate::dice::Dice;
use crate::draft::{Content, Draft};
use crate::model::Fate;
use crate::mutate::Mutation;

/// Mutations of requests alone.
pub(crate) const OF_REQUESTS: [(&str, Mutation); 13] = [
    ("bad method", |dice, draft| {
        let method = dice.pick(&[
            "GE T", "G@T", "", "GET\t", "G\0T", "GET,", "\u{e9}", "PRI *",
        ]);
        set_part(draft, 0, method)?;
        Some(Fate::Never)
    }),
    ("bad version", |dice, draft| {
        let version = dice.pick(&[
            "HTTP/2.0",
            "HTTP/0.9",
            "http/1.1",
            "HTTP/1",
            "HTTP/11",
            "HTTP/1.1x",
            "HTTP /1.1",
            "",
            "ICY",
            "HTTP/1.10",
            "HTTP/1.1 HTTP/1.1",
        ]);
        set_part(draft, 2, version)?;
        Some(Fate::Never)
    }),
    ("other version", |dice, draft| {
        let version = dice.pick(&["HTTP/1.2", "HTTP/1.9", "HTTP/1.0"]);
        set_part(draft, 2, version)?;
        Some(Fate::May)
    }),
    ("request-line with other whitespace", |dice, draft| {
        let line = String::from_utf8_lossy(&draft.start).into_owned();
        let space = dice.pick(&["  ", "\t", " \t", "\u{b}", "\u{c}", "\r"]);
        draft.start = match dice.below(4) {
            0 => format!("{line}{space}").into_bytes(),
            1 => format!("{space}{line}").into_bytes(),
            _ => line.replacen(' ', space, dice.pick(&[1, 2])).into_bytes(),
        };
        Some(Fate::May)
    }),
    ("bytes in the target", |dice, draft| {
        let bytes = dice.pick(&["\0", "\x7f", "\t", "\r", " ", "\u{e9}", "\n"]);
        let target = part(draft, 1)?;
        set_part(draft, 1, &format!("{target}{bytes}x"))?;
        Some(Fate::Never)
    }),
    ("fragment in the target", |dice, draft| {
        let fragment = dice.pick(&["#", "#x", "#/../", "##"]);
        let target = part(draft, 1)?;
        set_part(draft, 1, &format!("{target}{fragment}"))?;
        Some(Fate::May)
    }),
    ("bad authority in the target", bad_authority),
    ("target without an origin", |dice, draft| {
        let target = part(draft, 1)?;
        let other = dice.pick(&[
            "*",
            "",
            "other.test:80",
            "ftp://other.test/",
            "//",
            "http:",
            "http:///",
            "?",
            "%2f",
            "x",
            "\\",
        ]);
        let token = crate::model::token_in(&target)?;
        set_part(draft, 1, &format!("{other}{token}"))?;
        // `//TOKEN` is an origin-form with an empty segment, and without the path of the meaning.
        (other != "//" && other != "?").then_some(Fate::Never)
    }),
    ("two hosts", |dice, draft| {
        let line = draft.lines[draft.position("host")?].clone();
        let other = b"Host: other.test".to_vec();
        let second = dice.pick(&[line, other]);
        draft.insert(dice, second);
        Some(Fate::Never)
    }),
    ("no host", |_, draft| {
        let at = draft.position("host")?;
        draft.lines.remove(at);
        Some(Fate::Never)
    }),
    ("bad host", |dice, draft| {
        let host = dice.pick(&[
            "", "a@b", "a/../b", "a b", "a:b", "a:0", "a:99999", "a:", "a:+80", "http://a", "a,b",
            "[::1", "a?b", "a#b", "u:p@a", "a\\b", "\u{e9}", "a\0",
        ]);
        draft.replace("host", format!("Host: {host}"))?;
        Some(Fate::Never)
    }),
    ("other host", |dice, draft| {
        let is_absolute = String::from_utf8_lossy(&draft.start).contains("://l");
        let host = dice.pick(&["other.test", "127.0.0.1", "[::1]:1", "x.localhost"]);
        draft.replace("host", format!("Host: {host}"))?;
        // The target decides, and inside a CONNECT another host is misdirected.
        is_absolute.then_some(Fate::May)
    }),
    ("forbidden trailers", |dice, draft| {
        let Content::Chunks { trailers, .. } = &mut draft.body else {
            return None;
        };
        for line in [
            "Content-Length: 1",
            "Transfer-Encoding: chunked",
            "Host: other.test",
            "TE: gzip",
            "Authorization: x",
            "Connection: close",
            "Outpace-Max-Wait: 1s",
            "X-Mut: 1",
        ] {
            if dice.chance(40) {
                trailers.push(line.as_bytes().to_vec());
            }
        }
        draft.insert(dice, "Trailer: content-length, host, authorization");
        Some(Fate::May)
    }),
];

/// Returns a part of the request-line: 0 is the method, 1 the target and 2 the version.
fn part(draft: &Draft, index: usize) -> Option<String> {
    let line = String::from_utf8_lossy(&draft.start).into_owned();
    line.split(' ').nth(index).map(str::to_owned)
}

fn set_part(draft: &mut Draft, index: usize, text: &str) -> Option<()> {
    let line = String::from_utf8_lossy(&draft.start).into_owned();
    let mut parts: Vec<&str> = line.split(' ').collect();
    *parts.get_mut(index)? = text;
    draft.start = parts.join(" ").into_bytes();
    Some(())
}

fn bad_authority(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let target = part(draft, 1)?;
    let (scheme, rest) = target
        .split_once("://")
        .filter(|(scheme, _)| !scheme.contains('/'))?;
    let slash = rest.find('/')?;
    let (authority, path) = rest.split_at(slash);
    let host = authority.split(':').next()?;
    let other = match dice.below(12) {
        0 => format!("u:p@{host}"),
        1 => format!("@{host}"),
        2 => format!("{host}:0"),
        3 => format!("{host}:99999"),
        4 => format!("{host}:"),
        5 => format!("{host}:+80"),
        6 => format!("{host}:80:80"),
        7 => format!("{host}@other.test"),
        8 => format!("{host}%00"),
        9 => format!("[{host}]"),
        10 => String::new(),
        _ => format!("{host}\\"),
    };
    let target = format!("{scheme}://{other}{path}");
    set_part(draft, 1, &target)?;
    Some(Fate::Never)
}
