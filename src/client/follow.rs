//! Following a filter: a subject of its own for the updates that pass, kept for as long as somebody reads.
//!
//! Follow is asked again until its answer names the subject that is subscribed to by then. So the last answer's state is
//! of a moment behind the subscription, and no change lies between the two. After that it is asked again
//!
//! | when | because |
//! |---|---|
//! | a third of the lease is over | it would end |
//! | the connection is another, or the service there again | updates may have been missed, and the lease with them |
//! | the stream is seen in a new epoch | it was created again: the lease is lost |
//! | a question got no answer, or the stream is not there, or was removed | the stream may come |
//!
//! Any other refusal ends it: nothing comes any more, and whoever reads has to know. The service has no room for the filter
//! then, though it had before: it was restarted, or somebody else took the place of one that was not read for a lease.
//!
//! What such an answer says is told only if a change was missed, see [`Followed::is_news`]: of ticks there are few on
//! purpose. It is asked while the stream is read: there is no task. Who reads too seldom for that asks when it reads, and
//! is told then what it has missed.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Client, ClientError, UpdateStream,
    answer::Expected,
    calls::accepted,
    core::{Core, Returns, subscribe},
    plausible,
    request::Request,
    updates::{Source, Subject},
};
use crate::{
    transport::{Connection, Subscription},
    wire::{
        Filter, StreamId,
        proto::{self, Code, Mode, Reply, StateUpdate, subscription_command::Command},
        subject,
    },
};

/// How long after a question that came to nothing it is asked again, plus up to as much again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Over how long clients spread their questions when a broker or a service is back, which all see at the same moment.
const RETURN_SPREAD: Duration = Duration::from_millis(500);
/// How often Follow is asked at most until its answer names what is subscribed to: it takes two, and a third where a
/// service has taken another's place in between.
const MAX_ROUNDS: usize = 4;
/// A lease is no shorter, whatever an answer says: who asks all the time helps nobody.
const MIN_LEASE: Duration = Duration::from_secs(1);

impl Client {
    /// The updates of a stream that pass a filter: first its state now, then what passes from then on.
    ///
    /// Changes always pass, ticks as the filter says; with scenes, both only while one of them is current, and the change
    /// that leaves it. To follow is not to watch: it starts nothing, and what nobody watches is not published.
    /// Equal filters of a stream are one to the service, so each costs it once; here, each call is a subscription of its
    /// own: share it.
    ///
    /// It is followed again when the connection or the service was away, and when the stream was removed and is there
    /// again. If a change was missed, the state after it comes in its place. This happens while the stream is read. Like
    /// [`Client::updates`], it ends when the transport is closed; also when the last client is dropped, and when the service
    /// refuses to follow it again, for want of room.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an id or a filter that cannot be, `STREAM_NOT_FOUND`, `RESOURCE_EXHAUSTED` where the stream
    /// or the service has too many filters, [`ErrorKind::Denied`](super::ErrorKind::Denied) when the broker refuses the
    /// subscription, `UNAVAILABLE` when nothing answers.
    pub async fn follow(&self, stream_id: &str, filter: &proto::Filter) -> Result<UpdateStream, ClientError> {
        StreamId::parse(stream_id).map_err(|error| ClientError::invalid(error.to_string()))?;
        let filter = Filter::try_from(filter).map_err(|error| ClientError::invalid(error.to_string()))?;
        let core = self.lease().core();
        // From before the first question, so that nothing is missed behind it.
        // Whether there is a service is asked for as long as there is a client.
        drop(self.service());
        let reasons = stream::select(reconnections(self.connection()), returns(Arc::clone(&core.returns))).boxed();
        let question = Question::new(stream_id, &filter);
        let Answer { subscribed, lease, state } = question.clone().ask(Arc::clone(core), None).await?;
        let (name, subscription) = subscribed.ok_or_else(ClientError::closed)?;
        let followed = Followed {
            question,
            filter,
            core: self.lease().downgrade(),
            name,
            subject: Subject::new(subscription),
            asking: None,
            due: Box::pin(sleep_until(Instant::now() + lease / 3)),
            reasons,
            first: Some(state),
            last: None,
        };
        let source = Source::Followed(Box::new(followed));
        Ok(UpdateStream::new(source, stream_id.to_owned(), self.lease().downgrade(), core.options.wall_clock))
    }
}

/// A filter that is followed.
pub(super) struct Followed {
    question: Question,
    filter: Filter,
    /// Weak: who only reads does not keep the client.
    core: Weak<Core>,
    /// What `subject` is subscribed to.
    name: String,
    subject: Subject,
    asking: Option<BoxFuture<'static, Result<Answer, ClientError>>>,
    /// When it is asked again, unless it is being asked.
    due: Pin<Box<Sleep>>,
    /// Each is one to ask again soon.
    reasons: BoxStream<'static, ()>,
    /// The state at the beginning, until it is told.
    first: Option<StateUpdate>,
    /// What was told last.
    last: Option<StateUpdate>,
}

/// What there is to read.
pub(super) enum News {
    /// A message on the subject.
    Message(Bytes),
    /// An answer's state.
    State(Box<StateUpdate>),
}

impl Followed {
    /// What comes next, or why nothing will any more.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<News, ClientError>> {
        if let Some(state) = self.first.take() {
            return Poll::Ready(Ok(News::State(Box::new(state))));
        }
        loop {
            // Updates first: those that were published before an answer tell of their changes themselves.
            if let Poll::Ready(message) = self.subject.poll_next(context) {
                return Poll::Ready(message.unwrap_or_else(|| Err(ClientError::closed())).map(News::Message));
            }
            let answer = ready!(self.poll_answer(context))?;
            if let Some(state) = self.learn(answer)? {
                return Poll::Ready(Ok(News::State(Box::new(state))));
            }
        }
    }

    /// Notes what was told. With a stream its leases end; perhaps it comes again.
    pub(super) fn told(&mut self, update: &StateUpdate) {
        self.last = Some(update.clone());
        if update.mode() == Mode::Unknown
            && let Ok(core) = self.core()
        {
            self.ask_later(&core);
        }
    }

    /// It came to nothing.
    fn ask_later(&mut self, core: &Core) {
        self.due.as_mut().reset(Instant::now() + RETRY_PAUSE + core.random.below(RETRY_PAUSE));
    }

    /// There is reason to ask again.
    pub(super) fn ask_soon(&mut self, core: &Core) {
        self.due.as_mut().reset(Instant::now() + core.random.below(RETURN_SPREAD));
        // What is under way may have been sent to who is not there any more.
        self.asking = None;
    }

    /// Asks when it is time, and gives what came of it.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Result<Answer, ClientError>, ClientError>> {
        while let Poll::Ready(Some(())) = self.reasons.poll_next_unpin(context) {
            let core = self.core()?;
            self.ask_soon(&core);
        }
        if self.asking.is_none() {
            ready!(self.due.as_mut().poll(context));
            let asking = self.question.clone().ask(self.core()?, Some(self.name.clone()));
            self.asking = Some(asking.boxed());
        }
        let Some(asking) = &mut self.asking else { return Poll::Pending };
        let answer = ready!(asking.poll_unpin(context));
        self.asking = None;
        Poll::Ready(Ok(answer))
    }

    /// Takes note of an answer, and gives its state if that is to be told.
    fn learn(&mut self, answer: Result<Answer, ClientError>) -> Result<Option<StateUpdate>, ClientError> {
        let core = self.core()?;
        let Answer { subscribed, lease, state } = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_refusal() && error.code() != Code::StreamNotFound => return Err(error),
            Err(error) => {
                tracing::debug!(stream_id = &*self.question.stream_id, %error, "not followed again, trying again");
                self.ask_later(&core);
                return Ok(None);
            }
        };
        if let Some((name, subscription)) = subscribed {
            (self.name, self.subject) = (name, Subject::new(subscription));
        }
        // Those that began together need not ask together.
        self.due.as_mut().reset(Instant::now() + lease / 4 + core.random.below(lease / 12));
        Ok(Some(state).filter(|state| self.is_news(state)))
    }

    /// Whether a state shows a change that was not told: one that would have passed, and may have been missed.
    fn is_news(&self, state: &StateUpdate) -> bool {
        let Some(last) = &self.last else { return true };
        let what_changes = |state: &StateUpdate| {
            let StateUpdate { epoch, revision, mode, scene_index, loop_count, holding, config_revision, .. } = state;
            (*epoch, *revision, *mode, *scene_index, *loop_count, *holding, *config_revision)
        };
        what_changes(state) != what_changes(last) && (self.asks_for(state) || self.asks_for(last))
    }

    fn asks_for(&self, state: &StateUpdate) -> bool {
        let scene = state.current_scene.as_deref().map(|name| (name, state.scene_id.as_deref()));
        self.filter.asks_for(scene)
    }

    fn core(&self) -> Result<Arc<Core>, ClientError> {
        self.core.upgrade().ok_or_else(ClientError::closed)
    }
}

impl std::fmt::Debug for Followed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Followed").field("subject", &self.name).finish_non_exhaustive()
    }
}

/// A Follow, as it is sent each time.
#[derive(Clone)]
struct Question {
    stream_id: Arc<str>,
    payload: Bytes,
}

/// What it was answered.
struct Answer {
    /// What was subscribed to for it, if that is another subject than before.
    subscribed: Option<(String, Subscription)>,
    lease: Duration,
    state: StateUpdate,
}

impl Question {
    fn new(stream_id: &str, filter: &Filter) -> Self {
        let follow = proto::Follow { stream_id: stream_id.to_owned(), filter: Some(filter.into()) };
        let message = proto::SubscriptionCommand { command: Some(Command::Follow(follow)) };
        Self { stream_id: stream_id.into(), payload: message.encode_to_vec().into() }
    }

    /// Asks until the answer names what is subscribed to: `current`, or what was subscribed to since.
    async fn ask(self, core: Arc<Core>, current: Option<String>) -> Result<Answer, ClientError> {
        let mut subscribed: Option<(String, Subscription)> = None;
        for _ in 0..MAX_ROUNDS {
            let reply = self.ask_once(&core).await?;
            let known = subscribed.as_ref().map(|(name, _)| name).or(current.as_ref());
            if known == Some(&reply.updates_subject) {
                let state = reply.state.ok_or_else(|| ClientError::undecodable("the state is missing"))?;
                let lease = Duration::from_millis(reply.lease_ms).max(MIN_LEASE);
                return Ok(Answer { subscribed, lease, state });
            }
            let timeout = core.options.total_timeout;
            let subscription = subscribe(&*core.transport, &reply.updates_subject, timeout).await?;
            subscribed = Some((reply.updates_subject, subscription));
        }
        Err(ClientError::undecodable("each answer names another subject"))
    }

    async fn ask_once(&self, core: &Core) -> Result<Reply, ClientError> {
        let Self { stream_id, payload } = self;
        let request = Request::new(subject::SUBSCRIPTION, payload.to_vec(), Expected::Stream(stream_id));
        let reply = accepted(core.ask(&request, core.budget()).await?)?;
        let id = StreamId::parse(stream_id).map_err(|error| ClientError::invalid(error.to_string()))?;
        if !subject::is_filtered(&reply.updates_subject, id) {
            let message = format_args!("it names the subject {:?}", reply.updates_subject);
            return Err(ClientError::undecodable(message));
        }
        match reply.state.as_ref().and_then(|state| plausible::doubt(state, (core.options.wall_clock)())) {
            Some(why) => Err(ClientError::undecodable(format_args!("the state cannot be true: {why}"))),
            None => Ok(reply),
        }
    }
}

/// Each time that there is another connection.
fn reconnections(connection: watch::Receiver<Connection>) -> impl Stream<Item = ()> + Send {
    let seen = connection.borrow().generation;
    stream::unfold((connection, seen), |(mut connection, seen)| async move {
        let is_another = |now: &Connection| now.connected && now.generation != seen;
        let now = *connection.wait_for(is_another).await.ok()?;
        Some(((), (connection, now.generation)))
    })
}

/// Each time that the service is there again.
fn returns(returns: Arc<Returns>) -> impl Stream<Item = ()> + Send {
    let seen = returns.count();
    stream::unfold((returns, seen), |(returns, seen)| async move {
        let seen = returns.next(seen).await;
        Some(((), (returns, seen)))
    })
}
