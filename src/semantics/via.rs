//! The `Via` field (RFC 9110 section 7.6.3), in which outpace names itself by a pseudonym to detect
//! loops.

use http::{HeaderMap, HeaderValue, Version, header};

/// Maximum number of proxies in `Via`. A request with more of them is refused as a loop.
pub const VIA_LOOP_MAX: usize = 32;

/// The name of this process in `Via`. The name is random, so it reveals nothing, and two instances
/// in a row are not mistaken for a loop.
#[derive(Debug, Clone)]
pub struct Pseudonym {
    name: Box<str>,
    http1: HeaderValue,
    http2: HeaderValue,
}

impl Pseudonym {
    /// Derives the name from the lower 32 bits of a random number.
    pub fn new(bits: u64) -> Self {
        let name = format!("outpace-{:08x}", bits & 0xffff_ffff);
        let value = |version: &str| {
            HeaderValue::try_from(format!("{version} {name}"))
                .unwrap_or(HeaderValue::from_static("1.1 outpace"))
        };
        Self {
            http1: value("1.1"),
            http2: value("2"),
            name: name.into(),
        }
    }

    /// Adds this process to the `Via` field of a request that is forwarded. `version` is the
    /// version of the received request, and every version except HTTP/2 is written as 1.1.
    pub fn add(&self, version: Version, headers: &mut HeaderMap) {
        let entry = match version {
            Version::HTTP_2 => &self.http2,
            _ => &self.http1,
        };
        headers.append(header::VIA, entry.clone());
    }

    /// Returns true if the request has passed this process before, or more than [`VIA_LOOP_MAX`]
    /// proxies.
    pub fn is_loop(&self, headers: &HeaderMap) -> bool {
        let mut hops = 0;
        for line in headers.get_all(header::VIA) {
            for entry in line.as_bytes().split(|b| *b == b',') {
                hops += 1;
                let mut words = entry
                    .split(u8::is_ascii_whitespace)
                    .filter(|word| !word.is_empty());
                if words.nth(1) == Some(self.name.as_bytes()) {
                    return true;
                }
            }
        }
        hops > VIA_LOOP_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_know_ourselves_again() {
        let (us, other) = (Pseudonym::new(1), Pseudonym::new(2));
        let mut headers = HeaderMap::new();
        let before = HeaderValue::from_static("1.0 fred, 1.1 p.example.net");
        headers.insert(header::VIA, before);
        other.add(Version::HTTP_11, &mut headers);
        assert!(!us.is_loop(&headers));
        us.add(Version::HTTP_2, &mut headers);
        assert!(us.is_loop(&headers));
    }

    #[test]
    fn too_many_proxies_are_a_loop() {
        let mut headers = HeaderMap::new();
        let entries = ["1.1 a"; 40].join(", ");
        headers.insert(header::VIA, entries.try_into().unwrap());
        assert!(Pseudonym::new(1).is_loop(&headers));
    }
}
