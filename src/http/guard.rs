//! Who may ask: a browser must not be made to ask for somebody else.
//!
//! A page of any origin can make its visitor's browser send requests here, also to an address that only the visitor can
//! reach, and it can open WebSockets and read them. Browsers say from where a page came (`Origin`, `Sec-Fetch-Site`), so
//! what comes from elsewhere is refused unless it is allowed. A page can also have its own name point here for a moment
//! (DNS rebinding), and is then of the same origin: its name is in `Host`, so only names that are this server's are
//! taken. Programs that are no browsers send no `Origin`, and are not concerned.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts};

use super::{
    authority::{Authority, Host, HostPattern, Origin, OriginPattern},
    refusal::Refusal,
};

/// What is allowed besides loopback names and addresses, the address that was connected to, and pages of the same origin.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    /// Hosts that this server is asked for by.
    pub hosts: Vec<HostPattern>,
    /// Origins whose pages may ask, and may read the answers.
    pub origins: Vec<OriginPattern>,
}

/// A request that may go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Admitted {
    /// The origin of a page from elsewhere that is allowed, to be told that it may read the answer.
    pub(super) cross_origin: Option<HeaderValue>,
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl AllowList {
    /// Looks at a request that came to `local`.
    pub(super) fn check(&self, request: &Parts, local: Option<IpAddr>) -> Result<Admitted, Refusal> {
        let asked = self.check_host(request, local)?;
        self.check_origin(request, asked.as_ref())
    }

    /// The authority that is asked for. Only a request of HTTP/1.0 may have none: no browser sends such a one.
    fn check_host(&self, request: &Parts, local: Option<IpAddr>) -> Result<Option<Authority>, Refusal> {
        let in_header = match single(&request.headers, &header::HOST) {
            Ok(value) => value,
            Err(Repeated) => return Err(malformed("there is more than one Host header")),
        };
        let in_target = request.uri.authority().map(|authority| authority.as_str().as_bytes());
        let mut asked = None;
        // A target in absolute form goes before the header; both are looked at, so that neither hides the other.
        for text in in_header.map(HeaderValue::as_bytes).into_iter().chain(in_target) {
            let shown = String::from_utf8_lossy(text);
            let authority = std::str::from_utf8(text).ok().and_then(Authority::parse);
            let authority = authority.ok_or_else(|| malformed(format!("the Host {shown:?} is no host and port")))?;
            if !self.allows_host(&authority, local) {
                let message = format!("the Host {shown:?} is not one of this server's; --allowed-hosts names more");
                return Err(Refusal::new(StatusCode::FORBIDDEN, message));
            }
            if asked.as_ref().is_some_and(|other| *other != authority) {
                return Err(malformed("the Host header and the request's target name different hosts"));
            }
            asked = Some(authority);
        }
        if in_header.is_none() && request.version != Version::HTTP_10 {
            return Err(malformed("the Host header is missing"));
        }
        Ok(asked)
    }

    fn allows_host(&self, authority: &Authority, local: Option<IpAddr>) -> bool {
        let is_own = match &authority.host {
            Host::Name(name) => &**name == "localhost",
            Host::Address(address) => {
                address.is_loopback() || local.map(|local| local.to_canonical()) == Some(*address)
            }
        };
        is_own || self.hosts.iter().any(|pattern| pattern.matches(authority))
    }

    fn check_origin(&self, request: &Parts, asked: Option<&Authority>) -> Result<Admitted, Refusal> {
        let value = match single(&request.headers, &header::ORIGIN) {
            Ok(value) => value,
            Err(Repeated) => return Err(forbidden("there is more than one Origin header")),
        };
        let Some(value) = value else {
            // Some requests of pages come without an origin, but no browser of today sends one that changes something
            // from elsewhere without saying so here.
            let site = request.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
            let is_foreign = matches!(site, Some(b"cross-site" | b"same-site"));
            if is_foreign && !matches!(request.method, Method::GET | Method::HEAD) {
                return Err(forbidden("a page of another origin may not do this"));
            }
            return Ok(Admitted { cross_origin: None });
        };
        let origin = value.to_str().ok().and_then(Origin::parse);
        if let (Some(origin), Some(asked)) = (&origin, asked)
            && origin.is_of(asked)
        {
            return Ok(Admitted { cross_origin: None });
        }
        if self.origins.iter().any(|pattern| pattern.matches(origin.as_ref())) {
            return Ok(Admitted { cross_origin: Some(value.clone()) });
        }
        let shown = String::from_utf8_lossy(value.as_bytes());
        Err(forbidden(format!("pages of the Origin {shown:?} may not ask; --allowed-origins names those that may")))
    }
}

/// A header was there more than once.
struct Repeated;

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Repeated) } else { Ok(first) }
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}

fn forbidden(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, message)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn list(hosts: &[&str], origins: &[&str]) -> AllowList {
        AllowList {
            hosts: hosts.iter().map(|host| host.parse().expect(host)).collect(),
            origins: origins.iter().map(|origin| origin.parse().expect(origin)).collect(),
        }
    }

    /// The status of the refusal, or 200.
    fn status(list: &AllowList, method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).expect("a request").into_parts().0;
        let local = Some("10.1.2.3".parse().expect("an address"));
        list.check(&parts, local).map_or_else(|refusal| refusal.status().as_u16(), |_| 200)
    }

    #[test]
    fn only_names_and_addresses_of_this_server_are_taken() {
        let plain = list(&[], &[]);
        for (host, expected) in [
            ("localhost", 200),
            ("LOCALHOST.:3000", 200),
            ("127.0.0.1:3000", 200),
            ("127.9.9.9", 200),
            ("[::1]:3000", 200),
            ("[::ffff:127.0.0.1]", 200),
            ("10.1.2.3:3000", 200),
            ("[::ffff:10.1.2.3]", 200),
            ("10.1.2.4", 403),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("evil.localhost", 403),
            ("127.0.0.1.evil.example", 403),
            ("127.1", 403),
            ("0x7f000001", 403),
            ("2130706433", 403),
            ("0.0.0.0:3000", 403),
            ("[::]", 403),
            ("", 400),
            ("localhost:x", 400),
            ("user@localhost", 400),
            ("localhost@evil.example", 400),
            ("localhost/", 400),
            ("localhost, evil.example", 400),
        ] {
            assert_eq!(status(&plain, "GET", "/streams", &[("host", host)]), expected, "{host:?}");
        }
        assert_eq!(status(&plain, "GET", "/", &[]), 400, "HTTP/1.1 without a Host");
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(status(&plain, "GET", "/", &twice), 400);
        let more = list(&["gateway.example"], &[]);
        assert_eq!(status(&more, "GET", "/", &[("host", "gateway.example")]), 200);
        assert_eq!(status(&more, "GET", "/", &[("host", "other.example")]), 403);
    }

    #[test]
    fn a_target_in_absolute_form_hides_no_host() {
        let plain = list(&[], &[]);
        for (target, host, expected) in [
            ("http://localhost/streams", "localhost", 200),
            ("http://evil.example/streams", "localhost", 403),
            ("http://localhost/streams", "evil.example", 403),
            ("http://localhost:1/streams", "localhost:2", 400),
            ("http://u@localhost/streams", "localhost", 400),
        ] {
            assert_eq!(status(&plain, "GET", target, &[("host", host)]), expected, "{target} {host}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_may_not_ask_whatever_its_request() {
        let plain = list(&[], &[]);
        for (host, origin, expected) in [
            ("localhost:3000", "http://localhost:3000", 200),
            ("localhost:3000", "HTTP://LOCALHOST.:3000", 200),
            ("localhost", "http://localhost", 200),
            ("localhost", "http://localhost:80", 200),
            ("localhost:80", "http://localhost", 200),
            ("localhost", "https://localhost", 200),
            ("localhost:443", "https://localhost", 200),
            ("[::1]:3000", "http://[::1]:3000", 200),
            ("127.0.0.1:3000", "http://localhost:3000", 403),
            ("localhost:3000", "http://localhost:3001", 403),
            ("localhost:3000", "http://localhost", 403),
            ("localhost", "http://localhost:443", 403),
            ("localhost:3000", "http://evil.example", 403),
            ("localhost:3000", "http://evil.example:3000", 403),
            ("localhost:3000", "http://localhost:3000@evil.example", 403),
            ("localhost:3000", "http://localhost:3000.evil.example", 403),
            ("localhost:3000", "http://localhost:3000/", 403),
            ("localhost:3000", "ftp://localhost:3000", 403),
            ("localhost:3000", "file://", 403),
            ("localhost:3000", "null", 403),
            ("localhost:3000", "", 403),
        ] {
            for (method, target) in [("GET", "/streams/s/ws"), ("POST", "/streams/s/stop"), ("DELETE", "/streams/s")] {
                let headers = [("host", host), ("origin", origin)];
                assert_eq!(status(&plain, method, target, &headers), expected, "{method} {host} {origin:?}");
            }
        }
        let twice = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")];
        assert_eq!(status(&plain, "GET", "/", &twice), 403);
    }

    #[test]
    fn who_sends_no_origin_is_no_page() {
        let plain = list(&[], &[]);
        let host = ("host", "localhost");
        assert_eq!(status(&plain, "POST", "/streams", &[host]), 200);
        for (site, method, expected) in [
            ("cross-site", "POST", 403),
            ("same-site", "DELETE", 403),
            ("cross-site", "GET", 200),
            ("same-origin", "POST", 200),
            ("none", "POST", 200),
        ] {
            assert_eq!(status(&plain, method, "/", &[host, ("sec-fetch-site", site)]), expected, "{site} {method}");
        }
    }

    #[test]
    fn an_origin_that_is_allowed_is_told_so_and_no_other() {
        let some = list(&[], &["https://studio.example"]);
        let host = ("host", "localhost");
        for (origin, expected) in [
            ("https://studio.example", 200),
            ("https://STUDIO.example:443", 200),
            ("http://studio.example", 403),
            ("https://studio.example:444", 403),
            ("null", 403),
        ] {
            assert_eq!(status(&some, "POST", "/", &[host, ("origin", origin)]), expected, "{origin}");
        }
        let all = list(&[], &["*"]);
        assert_eq!(status(&all, "POST", "/", &[host, ("origin", "null")]), 200);
    }
}
