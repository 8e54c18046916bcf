//! What a server's `-ERR` is about.
//!
//! A server refuses a subscription or a message on its own account, later, and in words. It names the subject but
//! neither the subscription nor the message; of a limit it says only that it is reached.

/// An error of the server, as far as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServerError {
    /// A subscription is refused, or was taken away by a reload.
    Subscription {
        /// Its pattern.
        pattern: String,
        /// Its queue group, where that is part of what is refused.
        queue: Option<String>,
    },
    /// Some subscription is refused: there are too many, or its pattern is not taken.
    SomeSubscription,
    /// A message for this subject is refused.
    Publish(String),
    /// A message with this reply subject is.
    Reply(String),
    /// Something else.
    Other,
}

impl ServerError {
    /// Reads the words between the quotes of `-ERR '…'`.
    pub(super) fn parse(text: &str) -> Self {
        if let Some(rest) = behind(text, "Permissions Violation for Subscription to ") {
            let Some((pattern, rest)) = quoted(rest) else { return Self::Other };
            let queue = behind(rest, " using queue ").and_then(quoted).map(|(queue, _)| queue);
            return Self::Subscription { pattern, queue };
        }
        for (prefix, variant) in [
            ("Permissions Violation for Publish to ", Self::Publish as fn(String) -> Self),
            ("Permissions Violation for Publish with Reply of ", Self::Reply),
        ] {
            if let Some(rest) = behind(text, prefix) {
                return quoted(rest).map_or(Self::Other, |(subject, _)| variant(subject));
            }
        }
        let lower = text.to_ascii_lowercase();
        let about_some = ["maximum subscriptions exceeded", "number of tokens limit", "invalid subject"];
        if about_some.iter().any(|words| lower.contains(words)) { Self::SomeSubscription } else { Self::Other }
    }
}

/// What follows `prefix`, in capitals or not.
fn behind<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

/// A string that Go has quoted, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    // Bytes, because Go writes those that are no UTF-8 one by one.
    let mut bytes = Vec::new();
    loop {
        let next = rest.find(['"', '\\'])?;
        bytes.extend_from_slice(&rest.as_bytes()[..next]);
        rest = &rest[next..];
        if let Some(behind) = rest.strip_prefix('"') {
            return Some((String::from_utf8(bytes).ok()?, behind));
        }
        rest = unescape(&rest[1..], &mut bytes)?;
    }
}

/// Adds what the escape at the beginning of `text` stands for; returns what follows it.
fn unescape<'a>(text: &'a str, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let digits = match kind {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => {
            let simple = [('a', 7), ('b', 8), ('t', 9), ('n', 10), ('v', 11), ('f', 12), ('r', 13)];
            let control = simple.iter().find(|(letter, _)| *letter == kind).map(|(_, byte)| *byte);
            bytes.push(control.or_else(|| matches!(kind, '"' | '\\' | '\'').then_some(kind as u8))?);
            return Some(rest);
        }
    };
    let hex = rest.get(..digits).filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    let number = u32::from_str_radix(hex, 16).ok()?;
    match kind {
        'x' => bytes.push(u8::try_from(number).ok()?),
        _ => bytes.extend_from_slice(char::from_u32(number)?.encode_utf8(&mut [0; 4]).as_bytes()),
    }
    Some(&rest[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(pattern: &str, queue: Option<&str>) -> ServerError {
        ServerError::Subscription { pattern: pattern.to_owned(), queue: queue.map(str::to_owned) }
    }

    /// As nats-server 2.15.1 says them.
    #[test]
    fn the_words_of_a_server_are_understood() {
        for (text, expected) in [
            (r#"Permissions Violation for Subscription to "foo""#, subscription("foo", None)),
            (r#"Permissions Violation for Subscription to "a.*" using queue "q""#, subscription("a.*", Some("q"))),
            (
                r#"Permissions Violation for Subscription to "ok.a" using queue "g" (sid "8")"#,
                subscription("ok.a", Some("g")),
            ),
            (r#"Permissions Violation for Subscription to "ok.>" (sid "5")"#, subscription("ok.>", None)),
            (r#"Permissions Violation for Subscription to "\"we\\ird""#, subscription("\"we\\ird", None)),
            ("Permissions Violation for Subscription to \"zo\u{eb}\"", subscription("zo\u{eb}", None)),
            (r#"Permissions Violation for Publish to "ba\"r""#, ServerError::Publish("ba\"r".to_owned())),
            (r#"permissions violation for publish to "$JS.x""#, ServerError::Publish("$JS.x".to_owned())),
            (r#"Permissions Violation for Publish with Reply of "a.b""#, ServerError::Reply("a.b".to_owned())),
            ("maximum subscriptions exceeded", ServerError::SomeSubscription),
            ("Maximum Payload Violation", ServerError::Other),
            ("Authorization Violation", ServerError::Other),
            ("", ServerError::Other),
        ] {
            assert_eq!(ServerError::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn what_go_escapes_is_undone() {
        for (written, meant) in
            [(r#""\u00a0\U0001f600\xc3\xab\t""#, "\u{a0}\u{1f600}\u{eb}\t"), (r#""a" rest "b""#, "a"), (r#""""#, "")]
        {
            assert_eq!(quoted(written).map(|(text, _)| text).as_deref(), Some(meant), "{written}");
        }
        for broken in
            ["", "a", "\"a", r#""\"#, r#""\x4""#, r#""\x+4""#, r#""\q""#, r#""\ud800""#, r#""\xff""#, "\"\\\u{eb}\""]
        {
            assert_eq!(quoted(broken), None, "{broken}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_subject_is_found_in_the_words_about_it_not_in_half_of_them(subject in "[^\\x00-\\x20\\x7f]{1,20}") {
            let written = subject.replace('\\', "\\\\").replace('"', "\\\"");
            let text = format!("Permissions Violation for Publish to \"{written}\"");
            proptest::prop_assert_eq!(ServerError::parse(&text), ServerError::Publish(subject));
            for (at, _) in text.char_indices() {
                proptest::prop_assert_eq!(ServerError::parse(&text[..at]), ServerError::Other);
            }
        }
    }
}
