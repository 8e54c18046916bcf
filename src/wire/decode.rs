//! What the readings of all messages share: sizes, and the words of a refusal.

use super::{Refusal, WireLimits};
use crate::engine::Invalid;

/// Decodes the bytes of one message.
///
/// # Errors
/// `INVALID_ARGUMENT` for one over the size limit, `UNDECODABLE` for what is no such message.
pub fn message<M: prost::Message + Default>(bytes: &[u8], limits: &WireLimits) -> Result<M, Refusal> {
    check_size(bytes, limits)?;
    M::decode(bytes).map_err(|error| Refusal::Undecodable(error.to_string()))
}

/// Checks a message's size, before anybody looks into it.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the limit.
pub fn check_size(bytes: &[u8], limits: &WireLimits) -> Result<(), Refusal> {
    if bytes.len() <= limits.max_message_bytes {
        return Ok(());
    }
    let (most, bytes) = (limits.max_message_bytes, bytes.len());
    Err(Invalid::new(format!("a message must have at most {most} bytes, this one has {bytes}")).into())
}

/// Checks the length of a text.
pub(super) fn short<'a>(field: &str, text: &'a str, most: usize) -> Result<&'a str, Invalid> {
    if text.len() <= most {
        return Ok(text);
    }
    Err(Invalid::new(format!("{field} must have at most {most} bytes, this has {}", text.len())))
}

/// What must be there is not.
pub(super) fn missing(field: &str, what: &str) -> Invalid {
    Invalid::new(format!("{field} is missing: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_looked_into() {
        let limits = WireLimits::default();
        let error = message::<proto::Query>(&vec![0; (1 << 20) + 1], &limits).unwrap_err();
        assert_eq!(error.code(), proto::Code::InvalidArgument);
        assert!(error.to_string().contains("at most 1048576 bytes, this one has 1048577"), "{error}");
    }

    #[test]
    fn what_does_not_decode_is_said_to_be_so() {
        let error = message::<proto::OrchestratorCommand>(&[0xff, 0xff], &WireLimits::default()).unwrap_err();
        assert_eq!(error.code(), proto::Code::Undecodable);
    }
}
