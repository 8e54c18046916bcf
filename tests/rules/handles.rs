//! Who is found by a handle, a name or a hint, and that nobody else is.

use orchestrator_service::engine::*;

use crate::{
    command,
    driver::{EngineDriver, T0, config, show},
    register, stream,
};

#[test]
fn a_handle_of_a_stream_just_removed_stands_for_nobody() {
    let mut world = EngineDriver::with_show(&show());
    let (handle, _) = world.join("a", 0);
    world.command("show", Command::Remove).unwrap();
    // Before the records of its subscribers are freed, which takes a call.
    let batch = || Batch { handles: vec![handle], ..Batch::default() };
    for input in [Input::HeartbeatBatch(batch()), Input::UnregisterBatch(batch())] {
        let unplaced = Unplaced { handles: vec![handle], ..Unplaced::default() };
        assert_eq!(world.handle(input), Ok(Accepted::Batch(unplaced)));
    }
    world.until(1);
    assert!(world.engine.is_empty());
}

#[test]
fn a_batch_that_meets_a_removed_stream_still_serves_the_others() {
    let mut world = EngineDriver::with_show(&show());
    let (gone, _) = world.join("a", 0);
    world.command("show", Command::Remove).unwrap();
    world.command("show", Command::Start(Some(config(&show())))).unwrap();
    let (there, _) = world.join("a", 0);
    world.until(89_999);
    world.command("other", Command::Start(Some(config(&show())))).unwrap();
    world.register("other", "b", 0, true).unwrap();
    world.command("other", Command::Remove).unwrap();

    let batch = Batch { handles: vec![there, gone], ..Batch::default() };

    let unplaced = Unplaced { handles: vec![gone], ..Unplaced::default() };
    assert_eq!(world.handle(Input::HeartbeatBatch(batch)), Ok(Accepted::Batch(unplaced)));
    world.until(90_000);
    assert_eq!(world.engine.counts().active, 1, "it was heard");
}

#[test]
fn thousands_on_one_stream_are_each_found_and_each_let_go() {
    // More than a chunk of records, and so many in the index that the first bits of two hashes are often the same.
    const MANY: usize = 20_000;
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let mut tell = |input: Input<'_>| engine.handle(Tick(T0), input, &mut outbox);
    tell(command("show", None, Command::Start(Some(config(&show()))))).unwrap();
    let names: Vec<String> = (0..MANY).map(|number| format!("viewer-{number}")).collect();
    for (there, name) in names.iter().enumerate() {
        let Ok(Accepted::Registered { new, total, .. }) = tell(register("show", name)) else { panic!("{name} joins") };
        assert_eq!((new, total), (true, there as u64 + 1), "{name}");
    }
    for (gone, name) in names.iter().enumerate() {
        let client_id = ClientId::parse(name).expect("a valid id");
        let viewer = Subscriber { stream_id: stream("show"), client_id, session: 0 };
        let left = (MANY - 1 - gone) as u64;
        assert_eq!(tell(Input::Unregister(viewer)), Ok(Accepted::Unregistered { total: left, source: None }));
        assert!(matches!(tell(Input::Heartbeat(viewer)), Err(Rejection::UnknownSubscriber { .. })), "{name}");
    }
    engine.check();
}

#[test]
fn a_late_leave_or_heartbeat_by_an_old_handle_touches_nobody() {
    let mut world = EngineDriver::with_show(&show());
    let batch = |handle| Batch { handles: vec![handle], ..Batch::default() };
    let unknown = |handle| Ok(Accepted::Batch(Unplaced { handles: vec![handle], ..Unplaced::default() }));
    let (old, _) = world.join("a", 7);
    world.until(60_000);
    // The same client and session at another gateway, or registered again after an answer that was lost.
    let (new, _) = world.join("a", 7);
    assert_ne!(old, new);
    world.until(61_000);
    assert_eq!(world.handle(Input::UnregisterBatch(batch(old))), unknown(old));
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(old))), unknown(old));
    assert_eq!(world.engine.counts().active, 1);
    // An old gateway knows no handles: it registers again, or sends heartbeats, by name.
    world.until(100_000);
    world.beat("a", 7).unwrap();
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(new))), Ok(Accepted::Batch(Unplaced::default())));
    // What the void handle asked for did not count as a sign of life: 90 s from here.
    world.until(189_999);
    assert_eq!(world.handle(Input::HeartbeatBatch(batch(old))), unknown(old));
    world.until(190_000);
    assert_eq!((world.engine.counts().active, world.engine.counts().stale), (0, 1));
}

#[test]
fn registering_a_batch_again_voids_each_of_its_handles() {
    let mut world = EngineDriver::with_show(&show());
    let newcomer = |id| Newcomer { client_id: ClientId::parse(id).expect("a valid id"), session: 0, source: None };
    let mut register = |ids: &[&'static str]| {
        let subscribers = ids.iter().map(|id| Ok(newcomer(*id))).collect();
        match world.handle(Input::RegisterBatch { stream_id: stream("show"), subscribers, answered: true }) {
            Ok(Accepted::RegisteredBatch { handles, .. }) => handles.into_iter().map(Result::unwrap).collect(),
            other => panic!("a batch was answered with {other:?}"),
        }
    };
    let first: Vec<Handle> = register(&["a", "b"]);
    // Twice in one batch: the last one stands.
    let second: Vec<Handle> = register(&["a", "b", "a"]);
    let void = [first, vec![second[0]]].concat();
    let handles = [void.clone(), second[1..].to_vec()].concat();
    let answer = world.handle(Input::UnregisterBatch(Batch { handles, ..Batch::default() }));
    assert_eq!(answer, Ok(Accepted::Batch(Unplaced { handles: void, ..Unplaced::default() })));
    assert_eq!(world.engine.counts().total, 0);
}

#[test]
fn no_handle_can_be_derived_from_ten_thousand_of_ones_own() {
    for seed in [0, 7, u64::MAX] {
        let mut engine = Engine::new(Settings { seed, ..Settings::default() });
        let mut outbox = Outbox::default();
        let mut own = Vec::new();
        let start = |id| command(id, None, Command::Start(Some(config(&show()))));
        for id in ["show", "other"] {
            engine.handle(Tick(T0), start(id), &mut outbox).expect("created");
        }
        // Turn and turn about, so that theirs lie right beside ours, on the same stream and on another.
        for number in 0..10_000 {
            for (id, client) in [("show", "own"), ("show", "theirs"), ("other", "theirs")] {
                let client = format!("{client}-{number}");
                match engine.handle(Tick(T0), register(id, &client), &mut outbox) {
                    Ok(Accepted::Registered { handle, .. }) if client.starts_with("own") => own.push(handle),
                    Ok(_) => {}
                    Err(rejection) => panic!("{client} is not registered: {rejection}"),
                }
            }
        }
        outbox.clear();
        let mut guesses = Vec::new();
        for (place, Handle(mine)) in own.iter().enumerate() {
            let before = own[place.saturating_sub(1)].0;
            // The numbers beside it, slots and tags beside it, every bit, the way from the last to this one once more,
            // and the same in the other stream's partition.
            guesses.extend((1..=4_u64).flat_map(|near| [mine.wrapping_add(near), mine.wrapping_sub(near)]));
            guesses.extend((1..=4_u64).flat_map(|near| [mine.wrapping_add(near << 28), mine.wrapping_sub(near << 28)]));
            guesses.extend((0..64).map(|bit| mine ^ 1 << bit));
            guesses.extend([mine.wrapping_add(mine.wrapping_sub(before)), mine ^ before, mine & before, mine | before]);
            guesses.push(mine & u64::MAX >> 8 | u64::from(stream("other").partition()) << 56);
        }
        let known: std::collections::BTreeSet<u64> = own.iter().map(|handle| handle.0).collect();
        guesses.retain(|guess| !known.contains(guess));
        let count = guesses.len();
        let batch = Batch { handles: guesses.into_iter().map(Handle).collect(), ..Batch::default() };
        let Ok(Accepted::Batch(unplaced)) = engine.handle(Tick(T0), Input::UnregisterBatch(batch), &mut outbox) else {
            panic!("a batch")
        };
        assert_eq!((unplaced.handles.len(), engine.counts().total), (count, 30_000), "seed {seed}");
        engine.check();
    }
}

#[test]
fn a_hundred_thousand_guessed_handles_remove_nobody() {
    let (mut engine, mut outbox) = (Engine::new(Settings::default()), Outbox::default());
    engine
        .handle(Tick(T0), command("show", None, Command::Start(Some(config(&show())))), &mut outbox)
        .expect("created");
    for number in 0..10_000 {
        engine.handle(Tick(T0), register("show", &number.to_string()), &mut outbox).expect("registered");
    }
    let partition = u64::from(stream("show").partition()) << 56;
    // By counting, as handles once were: slots and generations; and by a generator of numbers.
    let counted = (0..10_000).flat_map(|slot| (0..5).map(move |tag| tag << 28 | slot));
    let drawn = (1..=50_000_u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8);
    let handles: Vec<Handle> = counted.chain(drawn).map(|guess| Handle(partition | guess)).collect();
    assert_eq!(handles.len(), 100_000);
    let batch = Batch { handles, ..Batch::default() };
    let Ok(Accepted::Batch(unplaced)) = engine.handle(Tick(T0), Input::UnregisterBatch(batch), &mut outbox) else {
        panic!("a batch")
    };
    assert_eq!((unplaced.handles.len(), engine.counts().total), (100_000, 10_000));
}

#[test]
fn a_hint_decides_nothing_whatever_became_of_what_it_points_to() {
    for client in ["viewer", "6f9619ff-8b86-d011-b42d-00cf4fc964ff"] {
        let mut engine = Engine::new(Settings::default());
        let mut outbox = Outbox::default();
        let now = Tick(T0);
        let client_id = ClientId::parse(client).expect("a valid id");
        let subscriber = |session| Subscriber { stream_id: stream("show"), client_id, session };
        let newcomer = |session| Newcomer { client_id, session, source: None };
        let join =
            |session| Input::Register { stream_id: stream("show"), subscriber: newcomer(session), answered: true };
        let start = || command("show", None, Command::Start(Some(config(&show()))));
        let mut tell = |engine: &mut Engine, input: Input<'_>| {
            engine.handle(now, input, &mut outbox).expect("it is carried out");
        };
        let unknown = |session| Err(Rejection::UnknownSubscriber { client_id: client.to_owned(), session });
        tell(&mut engine, start());
        tell(&mut engine, join(0));
        let [hint] = engine.fetch(&[Input::Heartbeat(subscriber(0))])[..] else { panic!("a hint for each") };
        assert_ne!(hint, Hint::NONE);
        let mut outbox = Outbox::default();
        let mut beat = |engine: &mut Engine, session| {
            let outcome = engine.handle_with(now, Input::Heartbeat(subscriber(session)), hint, &mut outbox);
            engine.check();
            outcome
        };
        assert_eq!(beat(&mut engine, 0), Ok(Accepted::Heard));
        assert_eq!(beat(&mut engine, 1), unknown(1), "it points to another session");
        tell(&mut engine, Input::Unregister(subscriber(0)));
        assert_eq!(beat(&mut engine, 0), unknown(0), "it points to a free slot");
        // The slot is used again, by a session that is not the client's first.
        tell(&mut engine, command("other", None, Command::Start(Some(config(&show())))));
        tell(&mut engine, register("other", client));
        assert_eq!(beat(&mut engine, 0), unknown(0), "it points to a subscriber of another stream");
        tell(&mut engine, join(7));
        tell(&mut engine, Input::Unregister(Subscriber { stream_id: stream("other"), client_id, session: 0 }));
        tell(&mut engine, join(8));
        assert_eq!((beat(&mut engine, 7), beat(&mut engine, 8)), (Ok(Accepted::Heard), Ok(Accepted::Heard)));
        tell(&mut engine, command("show", None, Command::Remove));
        let gone = Err(Rejection::StreamNotFound("show".to_owned()));
        assert_eq!(beat(&mut engine, 8), gone, "it points to a stream that is gone");
        tell(&mut engine, start());
        assert_eq!(beat(&mut engine, 8), unknown(8), "it points to a record of the stream before");
    }
}

#[test]
fn what_is_fetched_together_is_found_where_it_is_found_alone() {
    let mut engine = Engine::new(Settings::default());
    let mut outbox = Outbox::default();
    let names: Vec<String> = (0..300).map(|number| format!("n{number}")).collect();
    for name in &names[..3] {
        engine
            .handle(Tick(T0), command(name, None, Command::Start(Some(config(&show())))), &mut outbox)
            .expect("created");
    }
    let beat = |number: usize| {
        let client_id = ClientId::parse(&names[number]).expect("a valid id");
        Input::Heartbeat(Subscriber { stream_id: stream(&names[number % 3]), client_id, session: 0 })
    };
    for number in 0..300 {
        engine.handle(Tick(T0), register(&names[number % 3], &names[number]), &mut outbox).expect("registered");
    }
    // More than are looked up at once, and some that name nobody in between.
    let inputs: Vec<Input<'_>> =
        (0..300).map(|number| if number % 7 == 3 { Input::GetStats(None) } else { beat(number) }).collect();
    let hints = engine.fetch(&inputs);
    assert_eq!(hints.len(), inputs.len());
    for (input, hint) in inputs.iter().zip(&hints) {
        assert_eq!(engine.fetch(std::slice::from_ref(input)), [*hint], "{input:?}");
    }
    let distinct: std::collections::HashSet<String> = hints.iter().map(|hint| format!("{hint:?}")).collect();
    assert!(distinct.len() > 250, "nearly each points elsewhere, not {} places", distinct.len());
}
