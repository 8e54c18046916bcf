//! The reader of subscriptions, beside prost's.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// What prost reads, in the form of this reader.
fn of(command: &Command) -> Subscription<'_> {
    let named = |client_id, source_addr, session| Named { client_id, source_addr, session };
    let handles = |handles: &[u64]| handles.iter().copied().map(Handle).collect();
    match command {
        Command::Register(m) => Subscription {
            stream_id: &m.stream_id,
            named: named(&m.client_id, &m.source_addr, m.session),
            filter: m.filter.as_ref().map(|filter| Box::new(filters::draft(filter))),
            ..Subscription::empty(Kind::Register)
        },
        Command::Unregister(m) => Subscription {
            stream_id: &m.stream_id,
            named: named(&m.client_id, "", m.session),
            ..Subscription::empty(Kind::Unregister)
        },
        Command::Heartbeat(m) => Subscription {
            stream_id: &m.stream_id,
            named: named(&m.client_id, "", m.session),
            ..Subscription::empty(Kind::Heartbeat)
        },
        Command::HeartbeatBatch(m) => Subscription {
            handles: handles(&m.handle),
            ..named_batch(Kind::HeartbeatBatch, &m.stream_id, &m.client_id)
        },
        Command::UnregisterBatch(m) => Subscription {
            handles: handles(&m.handle),
            ..named_batch(Kind::UnregisterBatch, &m.stream_id, &m.client_id)
        },
        Command::Follow(m) => Subscription {
            stream_id: &m.stream_id,
            filter: m.filter.as_ref().map(|filter| Box::new(filters::draft(filter))),
            ..Subscription::empty(Kind::Follow)
        },
        Command::RegisterBatch(m) => Subscription {
            stream_id: &m.stream_id,
            subscribers: m.subscriber.iter().map(|s| named(&s.client_id, &s.source_addr, s.session)).collect(),
            ..Subscription::empty(Kind::RegisterBatch)
        },
    }
}

fn named_batch<'a>(kind: Kind, stream_id: &'a str, ids: &'a [String]) -> Subscription<'a> {
    let clients: Vec<_> = ids.iter().map_while(|id| ClientId::parse(id).ok()).collect();
    let place = clients.len();
    let refused = ids.get(place).map(|id| Invalid(format!("entry {place}: {}", ClientId::parse(id).unwrap_err())));
    let refused = refused.map(|why| Refused { why, count: ids.len() - place });
    Subscription { stream_id, clients, refused, ..Subscription::empty(kind) }
}

fn compare(bytes: &[u8]) -> Result<(), TestCaseError> {
    let by_prost = proto::SubscriptionCommand::decode(bytes);
    match (Subscription::read(bytes), &by_prost) {
        (Ok(read), Ok(message)) => {
            // As texts and bytes: a number that is none differs from itself.
            prop_assert_eq!(format!("{read:?}"), format!("{:?}", message.command.as_ref().map(of)));
            if read.as_ref().is_none_or(|read| read.refused.is_none()) {
                let again = read.map(|read| read.to_proto()).unwrap_or_default();
                prop_assert_eq!(again.encode_to_vec(), message.encode_to_vec());
            }
        }
        (Err(_), Err(_)) => {}
        (read, _) => prop_assert!(false, "read {:?}, by prost {:?}", read, by_prost),
    }
    if let Ok(Some(batch)) = Subscription::read(bytes)
        && !matches!(batch.kind, Kind::Register | Kind::Unregister | Kind::Heartbeat | Kind::Follow)
    {
        let checked = check_batch(&batch);
        prop_assert_eq!(checked, input(batch, true).map(drop));
    }
    if let Ok(whole) = Subscription::read(bytes) {
        let of = |whole: Subscription<'_>| (whole.stream_id.to_owned(), whole.handles.clone(), whole.entries());
        let route = SubscriptionRoute::read(bytes).expect("what is read whole is read in part");
        let route = route.map(|route| (route.stream_id.to_owned(), route.handles, route.entries));
        prop_assert_eq!(route, whole.map(of));
    }
    Ok(())
}

fn command() -> impl Strategy<Value = Command> {
    let text = || prop_oneof![Just("6f9619ff-8b86-d011-b42d-00cf4fc964ff".to_owned()), "[a-z0-9é]{0,5}"];
    let texts = || prop::collection::vec(text(), 0..4);
    let one = || (text(), text(), text(), any::<u64>());
    let batch = || (text(), texts(), prop::collection::vec(any::<u64>(), 0..4));
    let subscribers = prop::collection::vec((text(), text(), 0..3u64), 0..4);
    let filter = || {
        let filter = (texts(), any::<bool>(), any::<u32>(), any::<f64>());
        prop::option::of(filter.prop_map(|(scene, changes_only, min_interval_ms, min_progress)| proto::Filter {
            scene,
            changes_only,
            min_interval_ms,
            min_progress,
        }))
    };
    prop_oneof![
        (one(), filter()).prop_map(|((stream_id, client_id, source_addr, session), filter)| {
            Command::Register(proto::Register { stream_id, client_id, source_addr, session, filter })
        }),
        (text(), filter()).prop_map(|(stream_id, filter)| Command::Follow(proto::Follow { stream_id, filter })),
        one().prop_map(|(stream_id, client_id, _, session)| Command::Unregister(proto::Unregister {
            stream_id,
            client_id,
            session
        })),
        one().prop_map(|(stream_id, client_id, _, session)| Command::Heartbeat(proto::Heartbeat {
            stream_id,
            client_id,
            session
        })),
        batch().prop_map(|(stream_id, client_id, handle)| Command::HeartbeatBatch(proto::HeartbeatBatch {
            stream_id,
            client_id,
            handle
        })),
        batch().prop_map(|(stream_id, client_id, handle)| Command::UnregisterBatch(proto::UnregisterBatch {
            stream_id,
            client_id,
            handle
        })),
        (text(), subscribers).prop_map(|(stream_id, subscribers)| {
            let subscriber = subscribers.into_iter().map(|(client_id, source_addr, session)| proto::Subscriber {
                client_id,
                source_addr,
                session,
            });
            Command::RegisterBatch(proto::RegisterBatch { stream_id, subscriber: subscriber.collect() })
        }),
    ]
}

#[test]
fn a_piece_of_handles_is_what_prost_writes() {
    for (kind, stream_id) in [(Kind::HeartbeatBatch, ""), (Kind::UnregisterBatch, "show")] {
        let handles: Vec<Handle> = (1..=300_u64).map(|number| Handle(number.pow(7))).collect();
        let batch = Subscription { stream_id, handles: handles.clone(), ..Subscription::empty(kind) };
        let parts = handles.chunks(200).map(|part| {
            let part = Subscription { handles: part.to_vec(), ..batch.clone() };
            Bytes::from(part.to_proto().encode_to_vec())
        });
        assert_eq!(batch.pieces(200), parts.collect::<Vec<_>>());
    }
}

proptest! {
    #[test]
    fn it_reads_what_prost_reads(
        commands in prop::collection::vec(command(), 0..3),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes: Vec<u8> = commands
            .into_iter()
            .flat_map(|command| proto::SubscriptionCommand { command: Some(command) }.encode_to_vec())
            .collect();
        compare(&bytes)?;
        for (place, byte) in flips {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        compare(&bytes)?;
    }
}

#[test]
fn a_batch_in_pieces_says_the_same_in_the_same_order() {
    let client_id: Vec<String> = (0..5).map(|n| format!("c{n}")).collect();
    let batch = proto::UnregisterBatch { stream_id: "s".into(), client_id, handle: vec![1, 2, 3] };
    let message = proto::SubscriptionCommand { command: Some(Command::UnregisterBatch(batch)) }.encode_to_vec();
    let whole = Subscription::read(&message).unwrap().unwrap();
    let pieces = whole.pieces(2);
    let read: Vec<_> = pieces.iter().map(|piece| Subscription::read(piece).unwrap().unwrap()).collect();
    assert_eq!(read.iter().map(Subscription::entries).collect::<Vec<_>>(), [2, 1, 2, 2, 1]);
    assert!(read.iter().all(|piece| (piece.kind, piece.stream_id) == (Kind::UnregisterBatch, "s")));
    assert_eq!(read.iter().flat_map(|piece| piece.clients.clone()).collect::<Vec<_>>(), whole.clients);
    assert_eq!(read.iter().flat_map(|piece| piece.handles.clone()).collect::<Vec<_>>(), whole.handles);

    let nobody = Subscription { stream_id: "s", ..Subscription::empty(Kind::HeartbeatBatch) };
    let pieces = nobody.pieces(2);
    assert_eq!(pieces.iter().map(|piece| Subscription::read(piece).unwrap()).collect::<Vec<_>>(), [Some(nobody)]);
}

#[test]
fn handles_are_read_packed_and_one_by_one() {
    let mut batch = vec![0x1a, 16];
    batch.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    batch.extend([0x19, 3, 0, 0, 0, 0, 0, 0, 0]);
    let bytes = [&[0x22, batch.len() as u8][..], &batch].concat();
    let read = Subscription::read(&bytes).unwrap().unwrap();
    assert_eq!(read.handles, [Handle(1), Handle(2), Handle(3)]);
    compare(&bytes).unwrap();
}

#[test]
fn a_batch_of_names_needs_a_stream_and_one_of_handles_none() {
    let refused = |stream_id: &str, ids: &[&str]| {
        let client_id = ids.iter().map(|id| (*id).to_owned()).collect();
        let batch = proto::HeartbeatBatch { stream_id: stream_id.to_owned(), client_id, handle: vec![1] };
        let command = Command::HeartbeatBatch(batch);
        let bytes = proto::SubscriptionCommand { command: Some(command) }.encode_to_vec();
        let message = Subscription::read(&bytes).unwrap().unwrap();
        let checked = check_batch(&message);
        assert_eq!(checked, input(message, true).map(drop), "both refuse the same");
        checked.err().map(|error| error.0).unwrap_or_default()
    };
    assert_eq!(refused("", &[]), "");
    assert_eq!(refused("s", &["a"]), "");
    for ids in [&["a"][..], &["\0"], &["a", "\0"]] {
        assert!(refused("", ids).starts_with("stream_id must have"), "{ids:?}");
    }
    assert!(refused("s", &["a", "\0", ""]).starts_with("entry 1: client_id"));
}
