//! One subscription to a stream's updates, or to those that pass a filter, for all sockets that show them: a channel, there
//! from its first subscriber to its last. Its task reads the updates, puts them up, and has them written (`fanout`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    fanout::{Fanout, Member, Round},
    freshness::Freshness,
    lag::Lag,
    latest::{Ended, Format, Frames, Latest, Reader},
    line::{Line, binary_frame, text_frame},
};
use crate::client::{
    Client, ClientError, Filter, Received, ServiceState, UpdateStream,
    proto::{self, Code, Mode, StateUpdate},
    shared::{Holder, Shared},
};

/// Over how long the channels of a gateway spread asking for the state, when all have a reason to at once.
const REFRESH_SPREAD_MS: u64 = 500;
/// How long after a question that got no answer it is asked again, plus the spread.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// How long an update that was held up waits for a newer one behind it.
const LATE_PAUSE: Duration = Duration::from_millis(100);

/// What the sockets of a channel have in common: their stream, and the filter if there is one.
type Topic = (Arc<str>, Option<Filter>);

/// All channels, by topic.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    channels: Arc<Shared<Topic, Channel>>,
    /// Measured for as long as there is a channel.
    lag: Arc<Shared<(), Lag>>,
    /// True once the gateway is ending.
    is_ending: watch::Receiver<bool>,
    /// How long a viewer may take to accept one message.
    write_timeout: Duration,
}

/// What the sockets of one stream share.
#[derive(Debug)]
struct Channel {
    stream_id: Arc<str>,
    fanout: Arc<Fanout>,
    /// How many sockets want protobuf: for them, updates are framed in that form too.
    proto_readers: AtomicUsize,
    /// Somebody has reason to think that updates were missed.
    refresh: Notify,
}

/// A socket's part in a channel. With the last one the subscription ends.
#[derive(Debug)]
pub(super) struct Subscriber {
    channel: Holder<Topic, Channel>,
    reader: Reader,
}

impl Hub {
    pub(super) fn new(client: Client, is_ending: watch::Receiver<bool>, write_timeout: Duration) -> Self {
        Self { client, channels: Arc::default(), lag: Arc::default(), is_ending, write_timeout }
    }

    /// Subscribes to a channel. When it returns, whatever is published from now on will be among its latest updates.
    pub(super) async fn join(&self, stream_id: &str, filter: Option<Filter>) -> Result<Subscriber, ClientError> {
        let stream_id: Arc<str> = stream_id.into();
        let follow = filter.as_ref().map(proto::Filter::from);
        let measuring = |lag: Arc<Lag>| async move { Ok(async move { match lag.measure().await {} }) };
        let lag = self.lag.join((), Lag::default, measuring).await?;
        let make = || Channel::new(Arc::clone(&stream_id), Fanout::new(lag, self.write_timeout));
        // Nobody registers before this has succeeded.
        let open = |channel: Arc<Channel>| {
            let (client, is_ending) = (self.client.clone(), self.is_ending.clone());
            async move {
                let updates = match follow {
                    None => client.updates(&channel.stream_id).await?,
                    Some(filter) => client.follow(&channel.stream_id, &filter).await?,
                };
                // Boxed: it is moved from one future to another, and each would keep room for it.
                Ok(Box::pin(async move {
                    let mut end = EndOnDrop(&channel, Ended::NoUpdates);
                    end.1 = Reading::new(&channel, &client, updates).run(is_ending).await;
                }))
            }
        };
        let channel = self.channels.join((Arc::clone(&stream_id), filter), make, open).await?;
        let reader = channel.fanout.reader(Format::Json);
        Ok(Subscriber { channel, reader })
    }

    /// How many channels there are.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }
}

impl Subscriber {
    pub(super) fn stream_id(&self) -> &str {
        &self.channel.stream_id
    }

    pub(super) fn format(&self) -> Format {
        self.reader.format()
    }

    /// Gives this socket its updates in that form; for it, all that is up now is old.
    pub(super) fn read_as(&mut self, format: Format) {
        self.channel.count_reader(format);
        // Counted before it looks: whatever is put up behind this place has its form.
        let reader = self.channel.fanout.reader(format);
        let before = std::mem::replace(&mut self.reader, reader);
        self.channel.uncount_reader(before.format());
    }

    /// A place for a line among those that updates are written to. What is in the snapshot is not sent again.
    pub(super) fn follow(&self, line: Line, snapshot: &StateUpdate) -> Member {
        let mut reader = self.reader.clone();
        reader.start_at(snapshot);
        self.channel.fanout.join(line, reader)
    }

    /// Updates may have been missed: asks for the state, once for all who say so.
    pub(super) fn refresh(&self) {
        self.channel.refresh.notify_one();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.channel.uncount_reader(self.reader.format());
    }
}

impl Channel {
    fn new(stream_id: Arc<str>, fanout: Fanout) -> Self {
        let proto_readers = AtomicUsize::new(0);
        Self { stream_id, fanout: Arc::new(fanout), proto_readers, refresh: Notify::new() }
    }

    fn count_reader(&self, format: Format) {
        if format == Format::Proto {
            self.proto_readers.fetch_add(1, Relaxed);
        }
    }

    fn uncount_reader(&self, format: Format) {
        if format == Format::Proto {
            self.proto_readers.fetch_sub(1, Relaxed);
        }
    }

    /// Whether anybody wants protobuf. While something is put up, this is so for all who will read it.
    fn wants_proto(&self) -> bool {
        self.proto_readers.load(Relaxed) > 0
    }
}

/// Tells all sockets that nothing more comes, however the task ends.
struct EndOnDrop<'a>(&'a Channel, Ended);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fanout.post(|latest| latest.end(self.1));
        self.0.fanout.write_all();
    }
}

/// A question for the state, under way.
type Asking<'a> = BoxFuture<'a, Result<StateUpdate, ClientError>>;

async fn answered(asking: &mut Option<Asking<'_>>) -> Result<StateUpdate, ClientError> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// An update that was held up, until when a newer one may take its place.
struct Held {
    received: Received,
    until: Instant,
}

async fn held_until(held: &Option<Held>) {
    match held {
        Some(held) => sleep_until(held.until).await,
        None => std::future::pending().await,
    }
}

/// The task of a channel: reads its stream's updates and posts them.
struct Reading<'a> {
    channel: &'a Channel,
    client: &'a Client,
    updates: UpdateStream,
    round: Round,
    freshness: Freshness,
    held: Option<Held>,
    asking: Option<Asking<'a>>,
    /// Why what is up need not be true any more.
    not_live: Option<String>,
    /// What comes while the service is away was said before it went, and makes nothing live.
    is_service_away: bool,
}

impl<'a> Reading<'a> {
    fn new(channel: &'a Channel, client: &'a Client, updates: UpdateStream) -> Self {
        Self {
            channel,
            client,
            updates,
            round: Round::new(Arc::clone(&channel.fanout)),
            freshness: Freshness::default(),
            held: None,
            asking: None,
            not_live: None,
            is_service_away: false,
        }
    }

    /// Goes on until there is nothing more to come. (When the last subscriber leaves, the task is aborted.)
    async fn run(mut self, mut is_ending: watch::Receiver<bool>) -> Ended {
        let mut connection = self.client.connection();
        let mut generation = connection.borrow_and_update().generation;
        let mut service = self.client.service();
        service.mark_changed();
        loop {
            if self.channel.wants_proto() {
                self.updates.keep_bytes();
            }
            tokio::select! {
                biased;
                _ = is_ending.wait_for(|ending| *ending) => return Ended::ShuttingDown,
                Ok(()) = service.changed() => {
                    let state = service.borrow_and_update().clone();
                    self.look_at_service(&state);
                }
                Ok(()) = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if now.connected && now.generation != generation {
                        generation = now.generation;
                        self.ask(Duration::ZERO);
                    }
                }
                // Before the updates: many of them must not keep it from going on.
                () = self.round.done() => {}
                received = self.updates.next_received(), if self.round.has_room() => match received {
                    Some(received) => self.receive(received),
                    None => {
                        let why = self.updates.end().map(ToString::to_string);
                        tracing::debug!(stream_id = %self.channel.stream_id, why, "the subscription ended");
                        return Ended::NoUpdates;
                    }
                },
                () = held_until(&self.held) => {
                    if let Some(Held { received, .. }) = self.held.take() {
                        self.show(&received);
                    }
                }
                () = self.channel.refresh.notified() => {
                    if self.asking.is_none() {
                        self.ask(Duration::ZERO);
                    }
                }
                answer = answered(&mut self.asking), if self.asking.is_some() => self.learn(answer),
            }
        }
    }

    fn look_at_service(&mut self, state: &ServiceState) {
        self.is_service_away = matches!(state, ServiceState::Away { .. });
        match (state, state.ready()) {
            (ServiceState::Unknown, _) => {}
            (_, Ok(())) if self.not_live.is_some() => self.ask(Duration::ZERO),
            (_, Err(reason)) if self.not_live.is_none() => self.lose(reason),
            (_, Ok(()) | Err(_)) => {}
        }
    }

    /// An update as it comes. One that was held up waits for a moment, since behind a stop many come at once, and only the
    /// newest is worth showing. The last of a stream is never held back.
    fn receive(&mut self, received: Received) {
        let (now, update) = (Instant::now(), &received.update);
        let is_late = self.freshness.is_late(update.server_time_ms, now) && update.mode() != Mode::Unknown;
        if self.held.is_some() {
            metrics::counter!("gateway_late_updates_skipped_total").increment(1);
        }
        if is_late {
            let until = self.held.take().map_or(now + LATE_PAUSE, |held| held.until);
            self.held = Some(Held { received, until });
            return;
        }
        self.held = None;
        // It is the full state, so there is nothing left to ask.
        self.asking = None;
        self.show(&received);
    }

    /// What became of a question for the state.
    fn learn(&mut self, answer: Result<StateUpdate, ClientError>) {
        self.asking = None;
        match answer {
            Ok(state) => {
                // After an outage viewers are told where the clock is now, also if nothing has changed.
                if self.updates.seed(&state) || self.not_live.is_some() {
                    self.show(&state.into());
                }
            }
            Err(error) if error.code() == Code::Unavailable => self.ask(REFRESH_PAUSE),
            // The registrations find out when it is back.
            Err(error) if error.code() == Code::StreamNotFound && self.not_live.is_some() => {
                self.lose("the service does not know this stream any more".to_owned());
            }
            Err(_) => {}
        }
    }

    fn ask(&mut self, pause: Duration) {
        let pause = pause + Duration::from_millis(self.client.random_session() % REFRESH_SPREAD_MS);
        let (client, channel) = (self.client, self.channel);
        self.asking = Some(Box::pin(async move {
            sleep(pause).await;
            client.get_state(&channel.stream_id).await
        }));
    }

    /// Tells that what is up need not be true any more.
    fn lose(&mut self, reason: String) {
        if self.not_live.as_ref() == Some(&reason) {
            return;
        }
        tracing::debug!(stream_id = %self.channel.stream_id, reason, "the state is not live");
        if let Some(frame) = encode(&Liveness { live: false, reason: Some(&reason) }) {
            self.post(|latest| latest.lose(frame));
        }
        self.not_live = Some(reason);
    }

    /// Puts an update up, behind the word that it is live where that was not so and is again.
    fn show(&mut self, received: &Received) {
        let (channel, update) = (self.channel, &received.update);
        let Some(json) = encode(update) else { return };
        let was_not_live = self.not_live.take_if(|_| !self.is_service_away);
        let back = was_not_live.and_then(|_| encode(&Liveness { live: true, reason: None }));
        self.post(|latest| {
            let proto = if channel.wants_proto() { proto_frame(received) } else { Bytes::new() };
            let frames = Frames { json, proto };
            match back {
                None => latest.post(update, frames),
                Some(back) => latest.resume(update, frames.behind(&back)),
            }
        });
        if update.mode() == Mode::Unknown {
            tracing::debug!(stream_id = %self.channel.stream_id, "the stream was removed");
        }
    }

    fn post(&mut self, post: impl FnOnce(&mut Latest)) {
        self.channel.fanout.post(post);
        self.round.write();
    }
}

/// Whether what viewers see is true: `{"live": false, "reason": "…"}`, and `{"live": true}` before the newest state.
#[derive(Serialize)]
struct Liveness<'a> {
    live: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// An update as it was published. What came otherwise, as an answer to a question, is encoded as far as it is known here.
pub(super) fn proto_frame(received: &Received) -> Bytes {
    binary_frame(received.to_bytes())
}

fn encode(message: &impl Serialize) -> Option<Bytes> {
    match serde_json::to_string(message) {
        Ok(text) => Some(text_frame(text)),
        Err(error) => {
            tracing::debug!(%error, "a message does not encode");
            None
        }
    }
}
