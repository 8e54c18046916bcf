//! Hosts and origins as browsers and people write them, read strictly: what can be read in two ways is not read at all.

use std::{net::IpAddr, net::Ipv6Addr, str::FromStr};

/// A host with or without a port, such as `localhost:3000` or `[::1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

/// A host in the one form in which hosts are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// In lower case, without the dot of a complete name.
    Name(Box<str>),
    /// An IPv4 address within IPv6 is that IPv4 address.
    Address(IpAddr),
}

impl Authority {
    /// `None` for what is no host and port: user names, paths, escapes and empty parts among it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                (Host::Address(IpAddr::V6(address).to_canonical()), rest)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                (Host::parse_name(&text[..end])?, &text[end..])
            }
        };
        let port = match port {
            "" => None,
            port => Some(parse_port(port.strip_prefix(':')?)?),
        };
        Some(Self { host, port })
    }
}

impl Host {
    fn parse_name(text: &str) -> Option<Self> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse::<IpAddr>() {
            return Some(Self::Address(address));
        }
        let is_label = |label: &str| {
            let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(is_fine)
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        is_name.then(|| Self::Name(name.to_ascii_lowercase().into()))
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// Where a page comes from, such as `https://studio.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_secure: bool,
    pub(super) host: Host,
    /// The scheme's own where none is written.
    pub(super) port: u16,
}

impl Origin {
    /// `None` for `null` and for whatever else is no origin of a page from the web.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let Authority { host, port } = Authority::parse(rest)?;
        Some(Self { is_secure, host, port: port.unwrap_or(default_port(is_secure)) })
    }

    /// True when a request to `authority` goes to where the page came from. Without a port, the authority has that of the
    /// page's scheme: behind a proxy that ends TLS, the scheme cannot be known here.
    pub(super) fn is_of(&self, authority: &Authority) -> bool {
        self.host == authority.host && self.port == authority.port.unwrap_or(default_port(self.is_secure))
    }
}

fn default_port(is_secure: bool) -> u16 {
    if is_secure { 443 } else { 80 }
}

/// A host that may be asked for: `gateway.example` (at any port), `gateway.example:8080`, `*.example` (every name below
/// it), an address, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(Pattern);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    /// With its dot in front.
    Below(Box<str>),
    Exactly(Authority),
}

impl HostPattern {
    pub(super) fn matches(&self, authority: &Authority) -> bool {
        match (&self.0, &authority.host) {
            (Pattern::Any, _) => true,
            (Pattern::Below(suffix), Host::Name(name)) => name.ends_with(&**suffix),
            (Pattern::Below(_), Host::Address(_)) => false,
            (Pattern::Exactly(other), host) => {
                other.host == *host && other.port.is_none_or(|port| authority.port == Some(port))
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no host: try gateway.example, gateway.example:8080, *.example, [::1] or *");
        let pattern = match text.strip_prefix("*.") {
            _ if text == "*" => Pattern::Any,
            Some(below) => match Authority::parse(below) {
                Some(Authority { host: Host::Name(name), port: None }) => Pattern::Below(format!(".{name}").into()),
                _ => return Err(wrong()),
            },
            None => Pattern::Exactly(Authority::parse(text).ok_or_else(wrong)?),
        };
        Ok(Self(pattern))
    }
}

/// An origin whose pages may ask: `https://studio.example`, or `*` for all, `null` included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern(Option<Origin>);

impl OriginPattern {
    pub(super) fn matches(&self, origin: Option<&Origin>) -> bool {
        self.0.is_none() || self.0.as_ref() == origin
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self(None));
        }
        let origin = Origin::parse(text);
        origin
            .map(|origin| Self(Some(origin)))
            .ok_or_else(|| format!("{text:?} is no origin: try https://studio.example or *"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_compared_in_one_form() {
        for (text, same) in [
            ("localhost", "LOCALHOST."),
            ("localhost:3000", "LocalHost.:3000"),
            ("127.0.0.1", "[::ffff:127.0.0.1]"),
            ("[::1]:80", "[0:0:0:0:0:0:0:1]:80"),
        ] {
            assert_eq!(Authority::parse(text).expect(text), Authority::parse(same).expect(same));
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        for text in [
            "",
            ".",
            ":80",
            "localhost:",
            "localhost:x",
            "localhost:+1",
            "localhost:65536",
            "localhost:000080",
            "user@localhost",
            "localhost@evil.example",
            "localhost/x",
            "localhost#",
            "localhost?",
            "localhost\\",
            "local host",
            " localhost",
            "localhost..",
            "a..b",
            "%6cocalhost",
            "l\u{f6}calhost",
            "::1",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[::1%25lo]",
            "[127.0.0.1]",
            "localhost,evil",
            "a:1:2",
            "*",
            "*.example",
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_pattern_matches_what_it_says_and_nothing_that_looks_like_it() {
        let matches = |pattern: &str, host: &str| {
            pattern.parse::<HostPattern>().expect(pattern).matches(&Authority::parse(host).expect(host))
        };
        for (pattern, host, expected) in [
            ("gateway.example", "GATEWAY.example.:81", true),
            ("gateway.example:81", "gateway.example:81", true),
            ("gateway.example:81", "gateway.example", false),
            ("gateway.example", "gateway.example.evil", false),
            ("gateway.example", "evilgateway.example", false),
            ("*.example", "a.b.example:1", true),
            ("*.example", "example", false),
            ("*.example", "evilexample", false),
            ("10.0.0.1", "10.0.0.1:3000", true),
            ("10.0.0.1", "10.0.0.11", false),
            ("*", "anything", true),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
        for text in ["", "http://a", "*.", "*.1.2.3.4", "*.a:1", "a*b", "user@a"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
        for text in ["", "studio.example", "ftp://a", "https://a/", "https://u@a", "null"] {
            assert!(text.parse::<OriginPattern>().is_err(), "{text:?}");
        }
    }
}
