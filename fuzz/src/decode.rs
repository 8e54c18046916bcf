//! Bytes as messages: whatever comes in is refused or understood, and both ways the same.

use ::bytes::Bytes;
use orchestrator_service::{
    engine::{Engine, Outbox, Settings, Tick},
    shard::feed::{Fed, Message},
    wire::{
        WireLimits,
        encode::{self, Now},
        proto, route,
        subscription::Address,
    },
};
use prost::Message as _;

/// The first byte chooses the message, the rest is it.
pub fn check(input: &[u8]) {
    let Some((kind, message)) = input.split_first() else { return };
    match kind % 6 {
        0 => request(message, Kind::Command),
        1 => request(message, Kind::Subscription),
        2 => request(message, Kind::Query),
        3 => roundtrip::<proto::StateUpdate>(message),
        4 => roundtrip::<proto::Reply>(message),
        _ => roundtrip::<proto::UpdateBatch>(message),
    }
}

enum Kind {
    Command,
    Subscription,
    Query,
}

/// What a stranger can send: routed where it is decoded, handled or refused, and nothing panics.
fn request(message: &[u8], kind: Kind) {
    let bytes = Bytes::copy_from_slice(message);
    let (fed, routed) = match kind {
        Kind::Command => (Fed::Command(bytes.clone()), Some(route::command(message))),
        Kind::Subscription => (
            Fed::Subscription { message: bytes.clone(), answered: false },
            Address::read(message).ok().flatten().map(|read| read.stream_id.to_owned()),
        ),
        Kind::Query => (Fed::Query(bytes.clone()), None),
    };
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let now = Now { tick: Tick(1_000), wall_ms: 1_000 };
    let outcome = fed.apply(now.tick, &mut engine, &WireLimits::default(), &mut outbox);
    engine.check();
    if let (Some(routed), Message::Command(_) | Message::Subscription { .. }) = (routed, &outcome.message) {
        assert_eq!(routed, outcome.message.stream_id(), "routed to another stream than it names");
    }
    for update in &outbox.updates {
        let mut written = Vec::new();
        encode::write_state(&mut written, update, now);
        assert_eq!(written, encode::state(update, now).encode_to_vec());
    }
    match &outcome.result {
        Ok(accepted) => _ = encode::reply(accepted, "s", now).encode_to_vec(),
        Err(refusal) => {
            assert_ne!(refusal.code(), proto::Code::Ok);
            assert!(!refusal.to_string().is_empty());
            assert!(engine.is_empty(), "refused, but something is there");
        }
    }
}

/// What a client reads.
fn roundtrip<M: prost::Message + Default + PartialEq>(message: &[u8]) {
    if let Ok(first) = M::decode(message) {
        let again = M::decode(&*first.encode_to_vec()).expect("what was encoded decodes");
        // A number that is no number differs from itself; its bytes do not.
        assert_eq!(first.encode_to_vec(), again.encode_to_vec());
    }
}
