//! Bytes as messages: whatever comes in is refused or understood, and both ways the same.

use ::bytes::Bytes;
use orchestrator_service::{
    engine::{Accepted, ClientId, Engine, Hint, MAX_FILTER_SCENES, Outbox, Settings, Tick},
    shard::engine_op::{EngineOp, Message},
    wire::{
        WireLimits,
        commands::CommandRoute,
        encode::{self, Now},
        proto, read_back,
        subscriptions::{Subscription, SubscriptionRoute},
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
    if let Kind::Subscription = kind {
        read_by_hand(message);
    }
    let bytes = Bytes::copy_from_slice(message);
    let (fed, routed) = match kind {
        Kind::Command => {
            (EngineOp::Command(bytes.clone()), CommandRoute::read(message).ok().map(|route| route.stream_id.to_owned()))
        }
        Kind::Subscription => (
            EngineOp::Subscription { message: bytes.clone(), answered: false, hint: Hint::NONE },
            SubscriptionRoute::read(message).ok().flatten().map(|read| read.stream_id.to_owned()),
        ),
        Kind::Query => (EngineOp::Query(bytes.clone()), None),
    };
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let now = Now { tick: Tick(1_000), wall_ms: 1_000 };
    let is_query = matches!(kind, Kind::Query);
    if is_query {
        watched_stream(&mut engine, &mut outbox);
    }
    let outcome = fed.apply(now.tick, &mut engine, &WireLimits::default(), &mut outbox);
    engine.check();
    if let Message::Command(_) | Message::Subscription { .. } = outcome.message {
        let named = Some(outcome.message.stream_id().to_owned());
        assert_eq!(routed, named, "routed to another stream than it names");
    }
    for update in &outbox.updates {
        let mut written = Vec::new();
        encode::write_state(&mut written, update, now);
        assert_eq!(written, encode::state(update, now).encode_to_vec());
    }
    match &outcome.result {
        Ok(accepted) if is_query => answered(accepted, now),
        Ok(accepted) => _ = encode::reply(accepted, "s", now).encode_to_vec(),
        Err(refusal) => {
            assert_ne!(refusal.code(), proto::Code::Ok);
            assert!(!refusal.to_string().is_empty());
            assert!(is_query || engine.is_empty(), "refused, but something is there");
        }
    }
}

/// Something to ask about: the stream `s` and somebody who watches it.
fn watched_stream(engine: &mut Engine, outbox: &mut Outbox) {
    let scene = proto::SceneConfig { name: "Main".to_owned(), duration_ms: 1_000, ..Default::default() };
    let config = Some(proto::OrchestratorConfig { scenes: vec![scene], ..Default::default() });
    let start = proto::orchestrator_command::Command::Start(proto::Start { stream_id: "s".to_owned(), config });
    let start =
        proto::OrchestratorCommand { command: Some(start), issued_by: "somebody".to_owned(), ..Default::default() };
    let register = proto::Register { stream_id: "s".to_owned(), client_id: "c".to_owned(), ..Default::default() };
    let register =
        proto::SubscriptionCommand { command: Some(proto::subscription_command::Command::Register(register)) };
    let message = register.encode_to_vec().into();
    for fed in [
        EngineOp::Command(start.encode_to_vec().into()),
        EngineOp::Subscription { message, answered: true, hint: Hint::NONE },
    ] {
        let outcome = fed.apply(Tick(1_000), engine, &WireLimits::default(), outbox);
        assert!(outcome.result.is_ok(), "{outcome:?}");
    }
}

/// Whatever is asked, its answer is one, however little the connection takes.
fn answered(accepted: &Accepted, now: Now) {
    for most in [usize::MAX, 200, 40] {
        let answer = match accepted {
            Accepted::Config { config, state } => read_back::configured(config, state, now, most),
            Accepted::Subscribers { subscribers, next_slot } => {
                read_back::subscribers(subscribers, *next_slot, now, most)
            }
            Accepted::History(entries) => read_back::history(entries, now, most),
            _ => return,
        };
        match answer {
            Ok(bytes) => {
                assert!(bytes.len() <= most);
                proto::QueryReply::decode(bytes).expect("an answer decodes");
            }
            Err(refusal) => assert_eq!(refusal.code(), proto::Code::ResourceExhausted),
        }
    }
}

/// What prost reads, the reader that allocates nothing reads as well, and the same.
fn read_by_hand(message: &[u8]) {
    use proto::subscription_command::Command;
    let Ok(by_prost) = proto::SubscriptionCommand::decode(message) else { return };
    let read = Subscription::read(message).expect("prost reads it");
    let Some(command) = by_prost.command else { return assert_eq!(read, None) };
    let read = read.expect("prost finds a command");
    let route = SubscriptionRoute::read(message).expect("it reads").expect("a command");
    let (stream_id, clients, handles): (_, Vec<&String>, &[u64]) = match &command {
        Command::Register(m) => (&m.stream_id, vec![&m.client_id], &[]),
        Command::Unregister(m) => (&m.stream_id, vec![&m.client_id], &[]),
        Command::Heartbeat(m) => (&m.stream_id, vec![&m.client_id], &[]),
        Command::HeartbeatBatch(m) => (&m.stream_id, m.client_id.iter().collect(), &m.handle),
        Command::UnregisterBatch(m) => (&m.stream_id, m.client_id.iter().collect(), &m.handle),
        Command::RegisterBatch(m) => (&m.stream_id, m.subscriber.iter().map(|s| &s.client_id).collect(), &[]),
        Command::Follow(m) => (&m.stream_id, Vec::new(), &[]),
    };
    assert_eq!((read.stream_id, route.stream_id), (&**stream_id, &**stream_id));
    assert_eq!(read.handles.iter().map(|handle| handle.0).collect::<Vec<_>>(), handles);
    assert_eq!(route.handles, read.handles);
    let entries = if let Command::Follow(_) = command { 1 } else { clients.len() + handles.len() };
    assert_eq!((read.entries(), route.entries), (entries, entries));
    let filter = match &command {
        Command::Register(m) => m.filter.as_ref(),
        Command::Follow(m) => m.filter.as_ref(),
        _ => None,
    };
    assert_eq!(read.filter.is_some(), filter.is_some());
    if let (Some(read), Some(filter)) = (&read.filter, filter) {
        let rates = (read.changes_only, read.min_interval_ms, read.min_progress.to_bits());
        assert_eq!(rates, (filter.changes_only, filter.min_interval_ms, filter.min_progress.to_bits()));
        // Behind the first one too many none is read: it is refused.
        let read_ones = filter.scene.iter().take(MAX_FILTER_SCENES + 1);
        assert!(read.scenes.iter().copied().eq(read_ones.map(String::as_str)));
    }
    let named = match command {
        Command::Register(_) | Command::Unregister(_) | Command::Heartbeat(_) => {
            vec![read.named.client_id.to_owned()]
        }
        Command::Follow(_) => Vec::new(),
        Command::RegisterBatch(_) => read.subscribers.iter().map(|named| named.client_id.to_owned()).collect(),
        Command::HeartbeatBatch(_) | Command::UnregisterBatch(_) => {
            read.clients.iter().map(ToString::to_string).collect()
        }
    };
    let (before, from) = clients.split_at(named.len());
    assert!(named.iter().eq(before.iter().copied()), "{named:?} are read");
    // Behind a client that is refused none is read, and what is refused is to be refused.
    assert_eq!(read.refused.map_or(0, |refused| refused.count), from.len());
    assert!(from.first().is_none_or(|id| ClientId::parse(id).is_err()), "{from:?} are refused");
}

/// What a client reads.
fn roundtrip<M: prost::Message + Default + PartialEq>(message: &[u8]) {
    if let Ok(first) = M::decode(message) {
        let again = M::decode(&*first.encode_to_vec()).expect("what was encoded decodes");
        // A number that is no number differs from itself; its bytes do not.
        assert_eq!(first.encode_to_vec(), again.encode_to_vec());
    }
}
