//! Which stream a command is for, without decoding it: all that ingress has to know.
//!
//! The peek is a prost message of its own that has only the ids, so it agrees with the full decoding by construction:
//! also when fields are repeated, or come in another order, or are unknown.

use prost::Message as _;

/// A message that names a stream in field 1 of its command, whatever else it holds.
#[derive(Clone, PartialEq, prost::Message)]
struct Peek {
    #[prost(oneof = "Which", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    command: Option<Which>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Which {
    #[prost(message, tag = "1")]
    Number1(Named),
    #[prost(message, tag = "2")]
    Number2(Named),
    #[prost(message, tag = "3")]
    Number3(Named),
    #[prost(message, tag = "4")]
    Number4(Named),
    #[prost(message, tag = "5")]
    Number5(Named),
    #[prost(message, tag = "6")]
    Number6(Named),
    #[prost(message, tag = "7")]
    Number7(Named),
    #[prost(message, tag = "8")]
    Number8(Named),
    #[prost(message, tag = "9")]
    Number9(Named),
    #[prost(message, tag = "10")]
    Number10(Named),
    #[prost(message, tag = "11")]
    Number11(Named),
    #[prost(message, tag = "12")]
    Number12(Named),
    #[prost(message, tag = "13")]
    Number13(Named),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    stream_id: String,
}

/// The stream that a message on `orchestrator.command` names, not checked; empty if it does not decode, which the shard
/// will say.
#[must_use]
pub fn command(bytes: &[u8]) -> String {
    let which = Peek::decode(bytes).ok().and_then(|peek| peek.command);
    let named = which.map(|which| match which {
        Which::Number1(named)
        | Which::Number2(named)
        | Which::Number3(named)
        | Which::Number4(named)
        | Which::Number5(named)
        | Which::Number6(named)
        | Which::Number7(named)
        | Which::Number8(named)
        | Which::Number9(named)
        | Which::Number10(named)
        | Which::Number11(named)
        | Which::Number12(named)
        | Which::Number13(named) => named,
    });
    named.unwrap_or_default().stream_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{self, orchestrator_command::Command};

    #[test]
    fn a_command_is_for_the_stream_it_names_wherever_its_fields_stand() {
        let seek = proto::Seek { stream_id: "show".into(), position_ms: 7 };
        let message = proto::OrchestratorCommand {
            command: Some(Command::Seek(seek)),
            request_id: "r".into(),
            expected_revision: Some(3),
        };
        let mut bytes = proto::OrchestratorCommand { command: None, ..message.clone() }.encode_to_vec();
        bytes.extend(message.encode_to_vec());
        assert_eq!(command(&bytes), "show");
        // The last command counts, as for prost.
        let stop = Command::Stop(proto::Stop { stream_id: "other".into() });
        bytes.extend(proto::OrchestratorCommand { command: Some(stop), ..Default::default() }.encode_to_vec());
        assert_eq!(command(&bytes), "other");
    }

    #[test]
    fn what_does_not_decode_is_for_nobody() {
        assert_eq!(command(&[0xff, 0xff]), "");
    }
}
