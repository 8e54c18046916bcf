//! Which servers there are and with which login, as an operator writes it.
//!
//! It knows URLs, and nothing of connections.

use std::{fmt, io};

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;

use super::NatsError;

/// The servers to try, at least one, and the identity that each of them is shown. Displayed without the login.
pub(super) struct Servers {
    /// Without logins: the client writes what it is given into its logs.
    pub(super) addresses: Vec<ServerAddr>,
    /// The one login of those that have any.
    pub(super) login: Option<Login>,
}

impl Servers {
    pub(super) fn parse(urls: &str) -> Result<Self, NatsError> {
        let (mut addresses, mut login) = (Vec::new(), None);
        for url in urls.split(',') {
            let server = Self::parse_one(url).map_err(NatsError::Url)?;
            match (Login::of(&server)?, &login) {
                (Some(other), Some(one)) if other != *one => return Err(NatsError::Logins(Shown(&server).to_string())),
                (Some(one), _) => login = Some(one),
                (None, _) => {}
            }
            addresses.push(Shown(&server).to_string().parse().map_err(NatsError::Url)?);
        }
        Ok(Self { addresses, login })
    }

    fn parse_one(url: &str) -> Result<ServerAddr, io::Error> {
        let server: ServerAddr = url.trim().parse()?;
        let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if server.is_websocket() {
            return refused("NATS over WebSocket is not supported");
        }
        if server.host().is_empty() { refused("it has no host") } else { Ok(server) }
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{}", Shown(server))?;
        }
        Ok(())
    }
}

/// A server's URL without user and password.
struct Shown<'a>(&'a ServerAddr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.0;
        let (open, close) = if server.host().contains(':') { ("[", "]") } else { ("", "") };
        write!(formatter, "{}://{open}{}{close}:{}", server.scheme(), server.host(), server.port())
    }
}

/// User and password, or a token in the user's place.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Option<String>,
}

impl Login {
    fn of(server: &ServerAddr) -> Result<Option<Self>, NatsError> {
        let decoded = |text| decoded(text).map_err(|why| NatsError::Login { server: Shown(server).to_string(), why });
        match (server.username(), server.password()) {
            (Some(user), password) => {
                Ok(Some(Self { user: decoded(user)?, password: password.map(decoded).transpose()? }))
            }
            (None, None) => Ok(None),
            (None, Some(_)) => Err(NatsError::NoUser(Shown(server).to_string())),
        }
    }
}

/// Undoes `%40` and the like, which a password in a URL needs. What is no such escape stays as it is. No error repeats the
/// text.
fn decoded(text: &str) -> Result<String, &'static str> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "is not UTF-8")?;
    if decoded.chars().any(char::is_control) {
        return Err("has a control character");
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(urls: &str) -> Result<Option<Login>, NatsError> {
        Servers::parse(urls).map(|servers| servers.login)
    }

    /// User and password of the login that there is.
    fn parts(urls: &str) -> (String, Option<String>) {
        let login = login(urls).expect("one login").expect("a login");
        (login.user, login.password)
    }

    fn refusal(urls: &str) -> NatsError {
        login(urls).map(drop).expect_err(urls)
    }

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        let urls = "nats://us%40er:pa%3Ass@one:4223, two, tls://[::1]:4224";
        let servers = Servers::parse(urls).expect("URLs");
        assert_eq!(servers.to_string(), "nats://one:4223,nats://two:4222,tls://[::1]:4224");
        assert_eq!(parts(urls), ("us@er".to_owned(), Some("pa:ss".to_owned())));
    }

    #[test]
    fn servers_have_one_login_wherever_it_is_written() {
        for urls in ["u:p@one,two", "one,u:p@two", "u:p@one,u:p@two", "u:p@one,%75:p@two,three"] {
            assert_eq!(parts(urls), ("u".to_owned(), Some("p".to_owned())), "{urls}");
        }
        assert!(matches!(login("one,two"), Ok(None)));
        for urls in ["u:p@one,u:q@two", "u:p@one,two,v:p@two", "u:p@one,u@two", "u@one,u:p@two"] {
            let error = refusal(urls);
            assert!(matches!(&error, NatsError::Logins(server) if server == "nats://two:4222"), "{urls}: {error}");
        }
        for urls in ["one,:secret@two", "u:p@one,nats://:secret@two", "one,:%73ecret@two:4222,u:p@three"] {
            let error = refusal(urls);
            assert!(matches!(&error, NatsError::NoUser(server) if server == "nats://two:4222"), "{urls}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_read_is_refused_without_repeating_it() {
        for url in ["", "one,", "http://host", "nats://user:secret@host:port"] {
            let error = Servers::parse(url).map(|servers| servers.to_string()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_no_escape_stays_as_it_is() {
        for (written, meant) in [
            ("100%+5", "100%+5"),
            ("100%", "100%"),
            ("5%4", "5%4"),
            ("%zz%-1%%41", "%zz%-1%A"),
            ("%2", "%2"),
            ("%C3%A4%2f%2F", "ä//"),
            ("%25%34%31", "%41"),
        ] {
            assert_eq!(decoded(written), Ok(meant.to_owned()), "{written}");
            assert_eq!(parts(&format!("user:{written}@host")).1.as_deref(), Some(meant), "{written}");
        }
    }

    #[test]
    fn a_login_that_nobody_can_mean_is_refused_without_repeating_it() {
        for login_text in
            ["user:%00secret", "user:secret%0a", "user%1b:secret", "secret%7F", "user:%FFsecret", "%C3:secret"]
        {
            let error = refusal(&format!("one,nats://{login_text}@two"));
            assert!(matches!(&error, NatsError::Login { server, .. } if server == "nats://two:4222"), "{error}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("user"), "{error}");
        }
    }
}
