//! Subjects: what they are, what they may look like, and which patterns take them in. The rules are those of NATS and hold
//! for every transport; which subjects there are is said elsewhere ([`wire`](crate::wire::subject)).
//!
//! A server takes far more than it should (wildcards and control characters in a published subject) and answers a line
//! that is too long by dropping the whole connection. A client sends its subscriptions again after each reconnect, so
//! one giant pattern would mean an endless loop of that. Hence these checks, before anything is sent.

use std::{borrow::Borrow, fmt, ops::Deref};

use bytes::Bytes;
use bytestring::ByteString;

/// Where a message is published to or where its answer goes: text over shared bytes, so that a clone copies nothing.
///
/// It may be anything that a stranger sent. [`check_subject`] says whether it can be published to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(ByteString);

impl Subject {
    /// The subject of this text, which is not copied.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        Self(ByteString::from_static(text))
    }

    /// The subject of these bytes, which are not copied.
    ///
    /// # Errors
    /// When they are no UTF-8.
    pub fn from_utf8(bytes: impl Into<Bytes>) -> Result<Self, std::str::Utf8Error> {
        ByteString::try_from(bytes.into()).map(Self)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its bytes, which are not copied.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Subject {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Deref for Subject {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Subject {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// For look-ups in collections by text.
impl Borrow<str> for Subject {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

/// Why something is no subject, pattern or queue group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SubjectError(String);

/// The longest subject, pattern or queue group, bytes.
///
/// The server's limit is 4,096 bytes for a whole protocol line, which holds a subject, a reply subject or a group, and
/// two numbers: a quarter leaves room for all of them. Our longest subject is about 150 bytes.
pub const MAX_SUBJECT_BYTES: usize = 1024;

/// Refuses what cannot be published to.
///
/// # Errors
/// When it is empty, too long, has an empty token, one that is a wildcard, white space or control characters.
pub fn check_subject(subject: &str) -> Result<(), SubjectError> {
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
///
/// # Errors
/// As [`check_subject`], but for wildcards: `*` as any token, `>` as the last.
pub fn check_pattern(pattern: &str) -> Result<(), SubjectError> {
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
///
/// # Errors
/// When it is empty, too long, or has white space or control characters.
pub fn check_queue(queue: &str) -> Result<(), SubjectError> {
    check_length_and_bytes("queue group", queue)
}

fn check_length_and_bytes(what: &str, text: &str) -> Result<(), SubjectError> {
    if text.is_empty() {
        return Err(SubjectError(format!("an empty {what}")));
    }
    if text.len() > MAX_SUBJECT_BYTES {
        let bytes = text.len();
        return Err(SubjectError(format!("a {what} of {bytes} bytes, more than {MAX_SUBJECT_BYTES}")));
    }
    if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(refused(what, text, "has white space or control characters"));
    }
    Ok(())
}

fn refused(what: &str, text: &str, reason: &str) -> SubjectError {
    SubjectError(format!("the {what} {text:?} {reason}"))
}

/// Whether a subscription to `pattern` is answered by more than one subject.
#[must_use]
pub fn has_wildcard(pattern: &str) -> bool {
    pattern.split('.').any(|token| matches!(token, "*" | ">"))
}

/// Whether `pattern` takes in `subject`: `*` is one token, a last `>` one or more.
#[must_use]
pub fn matches(pattern: &str, subject: &str) -> bool {
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
    fn a_subject_is_found_by_its_text_and_shares_its_bytes() {
        let subject = Subject::from_utf8(b"stream.s.updates".to_vec()).expect("text");
        let clone = subject.clone();
        assert_eq!(subject.as_ptr(), clone.as_ptr());
        assert_eq!(subject.clone().into_bytes().as_ptr(), clone.as_ptr());
        assert_eq!(format!("{subject} {clone:?}"), "stream.s.updates \"stream.s.updates\"");
        assert!(std::collections::HashSet::from([subject.clone()]).contains("stream.s.updates"));
        assert!(std::collections::BTreeSet::from([subject]).contains("stream.s.updates"));
        assert!(Subject::from_utf8(vec![b'a', 0xff]).is_err());
    }

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
    fn what_breaks_the_protocol_or_means_several_subjects_is_refused() {
        for subject in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\tb", "a\r\nPUB", "a\0", "\u{7f}"] {
            assert!(check_subject(subject).is_err(), "{subject:?}");
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
            assert!(check_pattern(pattern).is_err(), "{pattern:?}");
        }
    }
}
