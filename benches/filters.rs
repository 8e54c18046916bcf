//! What filters cost: 10,000 streams that tick every 100 ms, read as they are and through 3 filters each that 100,000
//! share. `cargo bench --bench filters` takes some seconds, `-- --quick` one.
//!
//! Time is played and not waited for. Each update is made, marked, encoded and handed over, but not sent; followers repeat
//! Follow every 30 s, each for itself, as messages that are read and carried out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, reason = "a bench")]

mod support;

use orchestrator_service::{
    engine::{
        Accepted, ClientId, Command, Config, Draft, Engine, Input, Limits, Newcomer, Outbox, Request, Scene, Settings,
        StreamId, Tick,
    },
    shard::{
        clock::Now,
        publish_queue::{AtOnce, DEFAULT_MAX_PAYLOAD, PublishQueue, PublishTo},
        turn::EXPIRE_BUDGET,
    },
    wire::{
        proto::{self, subscription_command},
        subscriptions::{self, Subscription},
    },
};
use prost::Message as _;
use support::{Args, ids, process::Stopwatch, report::Row, run, tell};

const STREAMS: u64 = 10_000;
/// Of all streams, evenly over their filters.
const FOLLOWERS: u64 = 100_000;
const REPEAT_MS: u64 = 30_000;
const INTERVAL_MS: u64 = 100;
const ORIGIN: u64 = 1_800_000_000_000;

fn main() {
    let args = Args::read();
    if let Some(words) = &args.child {
        return measure(&words[0], words[1].parse().unwrap());
    }
    let seconds: u64 = if args.quick { 5 } else { 60 };
    // Some 15 s are played in one.
    let step = |who: &str| (vec![who.to_owned(), seconds.to_string()], seconds.div_ceil(15));
    run("filters", "Filters of 10,000 streams", &args, vec![step("nobody follows"), step("3 filters each")]);
}

/// What somebody may follow: an overlay of changes, a display of one scene, a coarse progress bar.
fn filters() -> [proto::Filter; 3] {
    [
        proto::Filter { changes_only: true, ..Default::default() },
        proto::Filter { scene: vec!["Main".into()], min_interval_ms: 1_000, ..Default::default() },
        proto::Filter { min_progress: 5.0, ..Default::default() },
    ]
}

fn follow(stream: u64, filter: usize) -> Vec<u8> {
    let follow = proto::Follow { stream_id: ids::stream(stream), filter: Some(filters()[filter].clone()) };
    let command = Some(subscription_command::Command::Follow(follow));
    proto::SubscriptionCommand { command }.encode_to_vec()
}

/// What was handed over for how many messages and bytes.
#[derive(Default)]
struct Sent {
    messages: u64,
    bytes: u64,
}

struct World {
    engine: Engine,
    queue: PublishQueue,
    outbox: Outbox,
    updates: u64,
    for_all: Sent,
    filtered: Sent,
}

impl World {
    /// Streams whose beats are spread over the interval, each with a viewer.
    fn new() -> Self {
        let mut world = Self {
            engine: Engine::new(Settings { seed: 7, ..Settings::default() }),
            queue: PublishQueue::new(PublishTo::Subjects),
            outbox: Outbox::default(),
            updates: 0,
            for_all: Sent::default(),
            filtered: Sent::default(),
        };
        let scenes = [("Intro", 3_000), ("Main", 10_000), ("Outro", 2_000)].map(|(name, ms)| Scene::new(name, ms));
        let tick_interval_ms = Some(INTERVAL_MS);
        let draft = Draft { scenes: scenes.into(), loop_scenes: true, tick_interval_ms, ..Draft::default() };
        let config = Config::new(&draft, &Limits::default()).unwrap();
        let client_id = ClientId::parse("0b9f8a9e-3c1f-4d53-9a57-3c1f4d539a57").unwrap();
        for stream in 0..STREAMS {
            let now = Tick(ORIGIN + stream * INTERVAL_MS / STREAMS);
            let id = ids::stream(stream);
            let stream_id = StreamId::parse(&id).unwrap();
            let start = Request::new(stream_id, Command::Start(Some(config.clone())));
            world.engine.handle(now, Input::Command(start), &mut world.outbox).unwrap();
            let subscriber = Newcomer { client_id, session: 0, source: None };
            let register = Input::Register { stream_id, subscriber, answered: true };
            world.engine.handle(now, register, &mut world.outbox).unwrap();
        }
        world.outbox.clear();
        world
    }

    /// What a shard does with a Follow.
    fn follow(&mut self, now: Tick, message: &[u8]) {
        let read = Subscription::read(message).unwrap().unwrap();
        let input = subscriptions::input(read, true).unwrap();
        let answer = self.engine.handle(now, input, &mut self.outbox);
        assert!(matches!(answer, Ok(Accepted::Following(_))), "{answer:?}");
    }

    /// What a shard and its publisher do at that time.
    fn turn(&mut self, now: Tick) {
        while self.engine.next_deadline().is_some_and(|due| due <= now) {
            self.engine.expire(now, EXPIRE_BUDGET, &mut self.outbox);
            self.queue_outbox(now);
        }
        self.queue_outbox(now);
        let (for_all, filtered) = (&mut self.for_all, &mut self.filtered);
        self.queue.hand_over(AtOnce::ALL, DEFAULT_MAX_PAYLOAD, |publication| {
            let sent = if publication.subject.ends_with(".updates") { &mut *for_all } else { &mut *filtered };
            sent.messages += 1;
            sent.bytes += (publication.subject.len() + publication.payload.len()) as u64;
        });
        self.queue.confirm(self.queue.handed_over());
    }

    fn queue_outbox(&mut self, now: Tick) {
        self.updates += self.outbox.updates.len() as u64;
        for update in &self.outbox.updates {
            self.queue.update(update, Now { tick: now, wall_ms: now.0 });
        }
        self.outbox.clear();
    }
}

fn measure(who: &str, seconds: u64) {
    let mut world = World::new();
    let is_followed = who != "nobody follows";
    let messages: Vec<Vec<u8>> =
        (0..STREAMS).flat_map(|stream| (0..3).map(move |filter| follow(stream, filter))).collect();
    let follower = |number: u64| &messages[(number * 7_919 % messages.len() as u64) as usize];
    let begin = ORIGIN + INTERVAL_MS;
    if is_followed {
        messages.iter().for_each(|message| world.follow(Tick(begin), message));
        assert_eq!(world.engine.counts().filters, 3 * STREAMS);
    }
    world.turn(Tick(begin));
    (world.updates, world.for_all, world.filtered) = (0, Sent::default(), Sent::default());

    let (watch, mut repeats, mut repeating) = (Stopwatch::start(), 0, std::time::Duration::ZERO);
    for ms in 1..=seconds * 1_000 {
        let now = Tick(begin + ms);
        if is_followed {
            let before = watch.elapsed();
            while repeats * REPEAT_MS < ms * FOLLOWERS {
                world.follow(now, follower(repeats));
                repeats += 1;
            }
            repeating += watch.elapsed() - before;
        }
        world.turn(now);
    }
    let elapsed = watch.elapsed();

    let playing = elapsed - repeating;
    let row = |what, value, unit| tell(&Row::new(what, "10 k streams", who, value, unit));
    row("processor time", elapsed.as_secs_f64() / seconds as f64 * 100.0, "% of a core");
    row("an update, made and handed over", playing.as_secs_f64() * 1e9 / world.updates as f64, "ns");
    if is_followed {
        row("a Follow, read and carried out", repeating.as_secs_f64() * 1e9 / repeats as f64, "ns");
        let counts = world.engine.counts();
        row("memory of a filter", counts.filter_bytes as f64 / counts.filters as f64, "bytes");
    }
    let per_second = |sum: u64| sum as f64 / seconds as f64;
    row("updates published for all", per_second(world.for_all.messages), "messages/s");
    row("… and for filters", per_second(world.filtered.messages), "messages/s");
    let published = world.for_all.bytes + world.filtered.bytes;
    row("published", per_second(published) / 1e6, "MB/s");
    // Each follower is sent what its filter, or its stream, has.
    let (bytes, subjects) =
        if is_followed { (world.filtered.bytes, 3 * STREAMS) } else { (world.for_all.bytes, STREAMS) };
    let readers = FOLLOWERS as f64 / subjects as f64;
    row("sent to 100,000 followers", per_second(bytes) * readers / 1e6, "MB/s");
}
