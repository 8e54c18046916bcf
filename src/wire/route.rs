//! Which stream a command is for, without decoding it: all that ingress has to know.
//!
//! The peek is a prost message of its own that has only the ids, so it agrees with the full decoding by construction:
//! also when fields are repeated, or come in another order, or are unknown.

use prost::{DecodeError, Message as _};

/// A message that names a stream in field 1 of its command, whatever else it holds.
#[derive(Clone, PartialEq, prost::Message)]
struct Peek {
    #[prost(oneof = "Which", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    command: Option<Which>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Which {
    #[prost(message, tag = "1")]
    Start(Configured),
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
    Reconfigure(Configured),
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

/// A message that also brings a configuration.
#[derive(Clone, PartialEq, prost::Message)]
struct Configured {
    #[prost(string, tag = "1")]
    stream_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Config>,
}

/// A configuration of which only the number of scenes is of interest: nothing is kept of them.
#[derive(Clone, PartialEq, prost::Message)]
struct Config {
    #[prost(message, repeated, tag = "1")]
    scenes: Vec<()>,
}

/// What can be told of a command without decoding it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// The stream, as it is named; not checked, and empty if none is.
    pub stream_id: String,
    /// How many scenes it brings.
    pub scenes: usize,
}

/// Whom a message on `orchestrator.command` is for.
///
/// # Errors
/// When the bytes are no such message, as far as that shows.
pub fn command(bytes: &[u8]) -> Result<Address, DecodeError> {
    Ok(match Peek::decode(bytes)?.command {
        None => Address::default(),
        Some(Which::Start(Configured { stream_id, config }) | Which::Reconfigure(Configured { stream_id, config })) => {
            Address { stream_id, scenes: config.map_or(0, |config| config.scenes.len()) }
        }
        Some(
            Which::Number2(named)
            | Which::Number3(named)
            | Which::Number4(named)
            | Which::Number5(named)
            | Which::Number6(named)
            | Which::Number7(named)
            | Which::Number9(named)
            | Which::Number10(named)
            | Which::Number11(named)
            | Which::Number12(named)
            | Which::Number13(named),
        ) => Address { stream_id: named.stream_id, scenes: 0 },
    })
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
        assert_eq!(command(&bytes).unwrap().stream_id, "show");
        // The last command counts, as for prost.
        let stop = Command::Stop(proto::Stop { stream_id: "other".into() });
        bytes.extend(proto::OrchestratorCommand { command: Some(stop), ..Default::default() }.encode_to_vec());
        assert_eq!(command(&bytes).unwrap().stream_id, "other");
    }

    #[test]
    fn scenes_are_counted_of_what_brings_them() {
        let scenes = vec![proto::SceneConfig { name: "Main".into(), duration_ms: 1 }; 3];
        let config = Some(proto::OrchestratorConfig { scenes, ..Default::default() });
        for (with_config, scenes) in [
            (Command::Start(proto::Start { stream_id: "show".into(), config: config.clone() }), 3),
            (Command::Reconfigure(proto::Reconfigure { stream_id: "show".into(), config }), 3),
            (Command::Start(proto::Start { stream_id: "show".into(), config: None }), 0),
        ] {
            let message = proto::OrchestratorCommand { command: Some(with_config), ..Default::default() };
            let address = Address { stream_id: "show".into(), scenes };
            assert_eq!(command(&message.encode_to_vec()), Ok(address));
        }
    }

    #[test]
    fn what_does_not_decode_says_so() {
        assert!(command(&[0xff, 0xff]).is_err());
    }
}
