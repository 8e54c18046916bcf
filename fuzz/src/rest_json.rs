//! A body of `POST /streams`: refused with words, or a configuration that the wire takes or refuses with words.

use orchestrator_service::{
    gateway::parse_stream_body,
    wire::{
        WireLimits, commands,
        proto::{self, orchestrator_command::Command},
    },
};
use prost::Message as _;

pub fn check(input: &[u8]) {
    match parse_stream_body(input) {
        Err(message) => assert!(!message.is_empty()),
        Ok(config) => {
            let start = proto::Start { stream_id: "s".to_owned(), config: Some(config) };
            let message = proto::OrchestratorCommand { command: Some(Command::Start(start)), ..Default::default() };
            let bytes = message.encode_to_vec();
            let again = proto::OrchestratorCommand::decode(&*bytes).expect("what was encoded decodes");
            assert_eq!(again, message);
            if let Err(invalid) = commands::input(&again, &WireLimits::default()) {
                assert!(!invalid.0.is_empty());
            }
        }
    }
}
