//! What a subject may look like, and which patterns it matches: the same rules for every transport.
//!
//! A server takes far more than it should (wildcards and control characters in a published subject) and answers a line
//! that is too long by dropping the whole connection. A client sends its subscriptions again after each reconnect, so
//! one giant pattern would mean an endless loop of that. Hence these checks, before anything is sent.

use super::TransportError;

/// The longest subject, pattern or queue group, bytes.
///
/// The server's limit is 4,096 bytes for a whole protocol line, which holds a subject, a reply subject or a group, and
/// two numbers: a quarter leaves room for all of them. Our longest subject is about 150 bytes.
pub(super) const MAX_SUBJECT_BYTES: usize = 1024;

/// Refuses what cannot be published to.
pub(super) fn check_subject(subject: &str) -> Result<(), TransportError> {
    if is_plain(subject) {
        return Ok(());
    }
    check_length_and_bytes("subject", subject)?;
    match subject.split('.').find(|token| matches!(*token, "" | "*" | ">")) {
        None => Ok(()),
        Some(token) => Err(refused("subject", subject, &format!("has the token `{token}`"))),
    }
}

/// Whether a subject has nothing in it that could be wrong, as nearly all have: told without branches, because every
/// message passes here. False says nothing.
fn is_plain(subject: &str) -> bool {
    let bytes = subject.as_bytes();
    let is_token = |byte: u8| byte > b' ' && !matches!(byte, 0x7f | b'*' | b'>');
    let two_dots = bytes.windows(2).fold(false, |found, pair| found | (pair == b".."));
    let (first, last) = (bytes.first().copied().unwrap_or(b'.'), bytes.last().copied().unwrap_or(b'.'));
    bytes.len() <= MAX_SUBJECT_BYTES
        && first != b'.'
        && last != b'.'
        && !two_dots
        && bytes.iter().fold(true, |fine, byte| fine & is_token(*byte))
}

/// Refuses what cannot be subscribed to.
pub(super) fn check_pattern(pattern: &str) -> Result<(), TransportError> {
    check_length_and_bytes("pattern", pattern)?;
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() {
            return Err(refused("pattern", pattern, "has an empty token"));
        }
        if token == ">" && tokens.peek().is_some() {
            return Err(refused("pattern", pattern, "has a `>` that is not its last token"));
        }
    }
    Ok(())
}

/// Refuses what cannot name a queue group.
pub(super) fn check_queue(queue: &str) -> Result<(), TransportError> {
    check_length_and_bytes("queue group", queue)
}

fn check_length_and_bytes(what: &str, text: &str) -> Result<(), TransportError> {
    if text.is_empty() {
        return Err(TransportError::Refused(format!("an empty {what}")));
    }
    if text.len() > MAX_SUBJECT_BYTES {
        let bytes = text.len();
        return Err(TransportError::Refused(format!("a {what} of {bytes} bytes, more than {MAX_SUBJECT_BYTES}")));
    }
    if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(refused(what, text, "has white space or control characters"));
    }
    Ok(())
}

fn refused(what: &str, text: &str, reason: &str) -> TransportError {
    TransportError::Refused(format!("the {what} {text:?} {reason}"))
}

/// Whether a subscription to `pattern` is answered by more than one subject.
pub(super) fn has_wildcard(pattern: &str) -> bool {
    pattern.split('.').any(|token| matches!(token, "*" | ">"))
}

/// Whether `pattern` takes in `subject`: `*` is one token, a last `>` one or more.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject_tokens = subject.split('.');
    for token in pattern.split('.') {
        let Some(found) = subject_tokens.next() else { return false };
        match token {
            ">" => return true,
            "*" => {}
            literal if literal == found => {}
            _ => return false,
        }
    }
    subject_tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_token_and_a_last_greater_than_one_or_more() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b.d", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c.d", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a*", "ab", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} on {subject}");
        }
    }

    #[test]
    fn what_would_break_the_protocol_or_reach_more_than_one_subject_is_refused() {
        for subject in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\tb", "a\r\nPUB", "a\0", "\u{7f}"] {
            assert!(matches!(check_subject(subject), Err(TransportError::Refused(_))), "{subject:?}");
        }
        assert!(check_subject(&"a".repeat(MAX_SUBJECT_BYTES + 1)).is_err());
        assert_eq!(check_subject(&"a".repeat(MAX_SUBJECT_BYTES)), Ok(()));
        for subject in ["stream.my-id_7.updates", "a*.>b", "*a", "stream.zo\u{eb}"] {
            assert_eq!(check_subject(subject), Ok(()), "{subject:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_told_without_taking_it_apart_holds_token_by_token(subject in "[a.*> \u{7f}\u{eb}]{0,6}") {
            let fine = |token: &str| !matches!(token, "" | "*" | ">") && !token.contains([' ', '\u{7f}']);
            proptest::prop_assert_eq!(check_subject(&subject).is_ok(), subject.split('.').all(fine));
        }
    }

    #[test]
    fn a_pattern_may_have_wildcards_as_whole_tokens() {
        for pattern in ["a", "a.*", "*", ">", "a.*.>"] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern:?}");
        }
        for pattern in ["", "a..b", ">.a", "a.>.b", "a b", "a\n"] {
            assert!(matches!(check_pattern(pattern), Err(TransportError::Refused(_))), "{pattern:?}");
        }
    }
}
