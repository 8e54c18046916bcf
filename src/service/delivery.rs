//! What a publisher does next, as a plain state machine: the publisher drives it over a transport, and a simulator in
//! virtual time. It waits for nothing and sends nothing.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    shard::publish_queue::{self, Kind, Publication, PublishQueue},
    transport::{Connection, Outgoing, Subject},
    wire::feed,
};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Publish what was taken over, then come again.
    Publish,
    /// Begin a barrier behind what was published, then come again.
    Barrier,
    /// Come again when the connection changes, something is owed, or the barrier is done.
    Wait,
}

/// What has to be known of a message that was taken over when it turns out that it cannot be published.
#[derive(Debug)]
enum Taken {
    Update,
    Feed(Subject, Bytes),
    Answer(Subject),
}

/// See the module.
#[derive(Debug)]
pub struct Delivery {
    /// The connection that is published on.
    connection: Connection,
    /// Taken over and not yet published.
    outgoing: VecDeque<Outgoing>,
    /// What each of them is. Until it is looked at, those that were published are still here, before the others.
    taken: VecDeque<Taken>,
    /// While a barrier is under way: how many changes had been handed over before it.
    barrier: Option<u64>,
    /// The subjects of messages that were refused before they were sent, before the barrier and since.
    refused_before: BTreeSet<String>,
    refused_since: BTreeSet<String>,
}

impl Delivery {
    /// Nothing taken over, on a connection as it is now.
    #[must_use]
    pub const fn new(connection: Connection) -> Self {
        Self {
            connection,
            outgoing: VecDeque::new(),
            taken: VecDeque::new(),
            barrier: None,
            refused_before: BTreeSet::new(),
            refused_since: BTreeSet::new(),
        }
    }

    /// What to do next, on a connection that takes messages of `max_payload` bytes at present.
    pub fn next(&mut self, queue: &mut PublishQueue, max_payload: usize) -> Step {
        if !self.connection.connected {
            return Step::Wait;
        }
        if self.outgoing.is_empty() {
            self.taken.clear();
            // Before more is taken over, so that a shard that always owes something is confirmed something too.
            if self.barrier.is_none() && queue.has_unconfirmed() {
                self.barrier = Some(queue.handed_over());
                self.refused_before.append(&mut self.refused_since);
                return Step::Barrier;
            }
            queue.hand_over(queue.at_once(), max_payload, |publication| {
                let Publication { kind, subject, payload } = publication;
                self.taken.push_back(match kind {
                    Kind::Update => Taken::Update,
                    Kind::Feed => Taken::Feed(subject.clone(), payload.clone()),
                    Kind::Answer => Taken::Answer(subject.clone()),
                });
                self.outgoing.push_back(Outgoing { subject, payload });
            });
        }
        if self.outgoing.is_empty() { Step::Wait } else { Step::Publish }
    }

    /// What [`Step::Publish`] is about: whoever publishes removes it from here.
    pub const fn taken(&mut self) -> &mut VecDeque<Outgoing> {
        &mut self.outgoing
    }

    /// The last message that was removed was too large for the connection after all: its limit is another since it was
    /// taken over. A message of a feed is cut and published next, in place of an answer goes a short refusal, and an update
    /// that fits nowhere is given up. So nothing that could go is lost, and nothing waits for ever.
    pub fn too_large(&mut self, bytes: usize, limit: usize, queue: &mut PublishQueue) {
        queue.set_max_payload(limit);
        match self.last_removed() {
            Some(Taken::Feed(subject, batch)) => {
                // It was made here, so it is well-formed.
                for part in feed::cut(batch, limit).unwrap_or_default().into_iter().rev() {
                    if part.len() > limit {
                        queue.give_up_too_large(part.len(), limit);
                    } else {
                        self.taken.push_front(Taken::Feed(subject.clone(), part.clone()));
                        self.outgoing.push_front(Outgoing { subject: subject.clone(), payload: part });
                    }
                }
            }
            Some(Taken::Answer(subject)) => {
                if let Some(payload) = publish_queue::refusal_fitting(bytes, limit) {
                    self.taken.push_front(Taken::Answer(subject.clone()));
                    self.outgoing.push_front(Outgoing { subject, payload });
                }
            }
            Some(Taken::Update) | None => queue.give_up_too_large(bytes, limit),
        }
    }

    /// The last message that was removed was not sent, because the broker had refused this subject before. It may have
    /// taken it again by the time the next barrier passes, so that is noted here: a change is held behind the barrier.
    pub fn refused(&mut self, subject: String, queue: &PublishQueue) {
        let is_answer = matches!(self.last_removed(), Some(Taken::Answer(_)));
        // Without changes no barrier comes that would forget it; which subjects answers have, strangers decide.
        if !is_answer && queue.has_unconfirmed() {
            self.refused_since.insert(subject);
        }
    }

    /// What the last message was that was removed from [`Delivery::taken`].
    fn last_removed(&mut self) -> Option<Taken> {
        let mut last = None;
        while self.taken.len() > self.outgoing.len() {
            last = self.taken.pop_front();
        }
        last
    }

    /// The connection is this now. If it is another, what was under way is lost, the barrier too, and it says how many
    /// messages were dropped.
    pub fn connection_is(&mut self, now: Connection, queue: &mut PublishQueue) -> Option<usize> {
        if now == self.connection {
            return None;
        }
        self.connection = now;
        Some(self.lost(queue))
    }

    /// Publishing failed, or the barrier did: what the broker is not known to have is owed again if it is a change; the
    /// rest has been outrun by time. A barrier that is under way counts no more. Returns how many messages were dropped.
    pub fn lost(&mut self, queue: &mut PublishQueue) -> usize {
        let dropped = self.outgoing.len();
        self.outgoing.clear();
        self.taken.clear();
        self.barrier = None;
        self.refused_before.clear();
        self.refused_since.clear();
        queue.requeue_unconfirmed();
        dropped
    }

    /// The barrier is done, on a connection that is `now` this. A barrier speaks for its own connection: if that is not
    /// the one published on, it says nothing of what was published, and [`Delivery::connection_is`] will find out.
    pub fn barrier_passed(&mut self, now: Connection, queue: &mut PublishQueue) {
        self.barrier_passed_but(now, queue, false, |_| false);
    }

    /// As [`Delivery::barrier_passed`], but messages to subjects that are `refused` have not gone anywhere, and of the
    /// others that is not known if they are in doubt.
    pub fn barrier_passed_but(
        &mut self,
        now: Connection,
        queue: &mut PublishQueue,
        in_doubt: bool,
        refused: impl Fn(&str) -> bool,
    ) {
        if let Some(until) = self.barrier.take().filter(|_| now == self.connection) {
            queue.confirm_but(until, in_doubt, |subject| refused(subject) || self.refused_before.contains(subject));
        }
        self.refused_before.clear();
    }

    /// Whether the broker is known to have everything.
    #[must_use]
    pub fn is_settled(&self, queue: &PublishQueue) -> bool {
        self.outgoing.is_empty() && queue.is_settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{Command, Config, Draft, Engine, Input, Limits, Outbox, Request, Scene, Settings, StreamId, Tick},
        shard::{clock::Now, publish_queue::PublishTo},
    };

    const LIMIT: usize = 1 << 20;
    /// Longer than what a short refusal says.
    const SHOW: &str =
        "a-show-whose-name-is-as-long-as-names-are-when-people-have-all-the-room-that-they-could-wish-for";
    const UP: Connection = Connection { connected: true, generation: 1 };

    /// An engine whose stream is stopped and reset in turn, for changes to owe.
    fn owe_changes(queue: &mut PublishQueue, count: usize) {
        let (mut engine, mut outbox) = (Engine::new(Settings::default()), Outbox::default());
        let draft = Draft { scenes: vec![Scene::new("Main", 1_000)], ..Draft::default() };
        let config = Config::new(&draft, &Limits::default()).unwrap();
        let stream_id = StreamId::parse(SHOW).unwrap();
        for command in [Command::Start(Some(config)), Command::Stop, Command::Reset].into_iter().take(count) {
            let request = Request::new(stream_id, command);
            engine.handle(Tick(0), Input::Command(request), &mut outbox).unwrap();
        }
        assert_eq!(outbox.updates.len(), count);
        outbox.updates.iter().for_each(|update| queue.update(update, Now { tick: Tick(0), wall_ms: 0 }));
    }

    fn owing(changes: usize) -> PublishQueue {
        let mut queue = PublishQueue::new(PublishTo::Subjects);
        owe_changes(&mut queue, changes);
        queue
    }

    #[test]
    fn after_a_failed_publish_a_barrier_from_before_confirms_nothing() {
        let (mut delivery, mut queue) = (Delivery::new(UP), owing(2));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        owe_changes(&mut queue, 1);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        assert_eq!(delivery.lost(&mut queue), 1);
        delivery.barrier_passed(UP, &mut queue);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        assert_eq!(delivery.taken().len(), 3);
    }

    #[test]
    fn a_barrier_of_another_connection_confirms_nothing() {
        let (mut delivery, mut queue) = (Delivery::new(UP), owing(1));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        let again = Connection { connected: true, generation: 2 };
        delivery.barrier_passed(again, &mut queue);
        assert!(queue.has_unconfirmed());
        assert_eq!(delivery.connection_is(again, &mut queue), Some(0));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        assert_eq!(delivery.taken().len(), 1);
    }

    #[test]
    fn an_unsent_change_is_held_though_its_subject_is_taken_again() {
        let (mut delivery, mut queue) = (Delivery::new(UP), owing(1));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        let subject = delivery.taken().pop_front().unwrap().subject;
        delivery.refused(subject.as_str().to_owned(), &queue);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        delivery.barrier_passed(UP, &mut queue);
        assert!(queue.has_held() && delivery.refused_before.is_empty());
        queue.release_held();
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        delivery.barrier_passed(UP, &mut queue);
        assert!(delivery.is_settled(&queue) && !queue.has_held());
    }

    #[test]
    fn which_answers_were_refused_is_not_kept() {
        let (mut delivery, mut queue) = (Delivery::new(UP), owing(1));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        delivery.taken().clear();
        for number in 0..100 {
            queue.reply(&format!("inbox.{number}").into(), Bytes::new());
        }
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        while let Some(outgoing) = delivery.taken().pop_front() {
            delivery.refused(outgoing.subject.as_str().to_owned(), &queue);
        }
        assert!(queue.has_unconfirmed() && delivery.refused_since.is_empty());
    }

    #[test]
    fn an_earlier_barrier_forgets_nothing_refused_behind_it() {
        let (mut delivery, mut queue) = (Delivery::new(UP), owing(1));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        owe_changes(&mut queue, 1);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        let subject = delivery.taken().pop_front().unwrap().subject;
        delivery.refused(subject.as_str().to_owned(), &queue);
        delivery.barrier_passed(UP, &mut queue);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Barrier);
        delivery.barrier_passed(UP, &mut queue);
        assert!(queue.has_held());
    }

    /// Publishes over a connection that takes no more than `limit` bytes, as a transport does; gives what got through.
    fn publish(delivery: &mut Delivery, queue: &mut PublishQueue, limit: usize) -> Vec<Outgoing> {
        let mut sent = Vec::new();
        while let Some(outgoing) = delivery.taken().pop_front() {
            match outgoing.payload.len() {
                bytes if bytes > limit => delivery.too_large(bytes, limit, queue),
                _ => sent.push(outgoing),
            }
            queue.check();
        }
        sent
    }

    #[test]
    fn a_feed_that_became_too_large_is_cut_and_nothing_is_lost() {
        let mut queue = PublishQueue::new(PublishTo::Feed);
        (0..20).for_each(|_| owe_changes(&mut queue, 3));
        let mut delivery = Delivery::new(UP);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        assert_eq!(delivery.taken().len(), 1);
        let whole = delivery.taken()[0].payload.clone();

        let sent = publish(&mut delivery, &mut queue, 200);

        assert!(sent.len() > 10 && sent.iter().all(|outgoing| outgoing.payload.len() <= 200));
        assert_eq!(sent.into_iter().flat_map(|outgoing| outgoing.payload).collect::<Bytes>(), whole);
        assert_eq!((queue.take_too_large(), queue.max_payload()), (None, 200));
    }

    #[test]
    fn what_fits_nowhere_any_more_ends_with_the_next_barrier() {
        let mut queue = PublishQueue::new(PublishTo::Both);
        owe_changes(&mut queue, 2);
        queue.reply(&Subject::from("answer"), vec![0; 500].into());
        let mut delivery = Delivery::new(UP);
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Publish);
        let sent = publish(&mut delivery, &mut queue, 80);
        assert_eq!(sent.iter().map(|outgoing| outgoing.subject.as_str()).collect::<Vec<_>>(), ["answer"]);
        assert!(queue.take_too_large().is_some());
        assert_eq!(delivery.next(&mut queue, 80), Step::Barrier);
        delivery.barrier_passed(UP, &mut queue);
        assert!(delivery.is_settled(&queue));
    }

    #[test]
    fn while_the_connection_is_away_nothing_is_taken_over() {
        let (mut delivery, mut queue) = (Delivery::new(Connection { connected: false, generation: 1 }), owing(1));
        assert_eq!(delivery.next(&mut queue, LIMIT), Step::Wait);
        assert!(!queue.is_empty());
    }
}
