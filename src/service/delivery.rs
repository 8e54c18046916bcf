//! What a publisher does next, as a plain state machine: the publisher drives it over a transport, and a simulator in
//! virtual time. It waits for nothing and sends nothing.

use std::collections::VecDeque;

use crate::{
    shard::owed::Owed,
    transport::{Connection, Outgoing},
};

/// How many messages are taken over at once: few enough that ticks do not grow old behind them.
const MESSAGES_AT_ONCE: usize = 512;

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

/// See the module.
#[derive(Debug)]
pub struct Delivery {
    /// The connection that is published on.
    connection: Connection,
    /// Taken over and not yet published.
    taken: VecDeque<Outgoing>,
    /// While a barrier is under way: how many changes had been handed over before it.
    barrier: Option<u64>,
}

impl Delivery {
    /// Nothing taken over, on a connection as it is now.
    #[must_use]
    pub const fn new(connection: Connection) -> Self {
        Self { connection, taken: VecDeque::new(), barrier: None }
    }

    /// What to do next.
    pub fn next(&mut self, owed: &mut Owed) -> Step {
        if !self.connection.connected {
            return Step::Wait;
        }
        if self.taken.is_empty() {
            // Before more is taken over, so that a shard that always owes something is confirmed something too.
            if self.barrier.is_none() && owed.has_unconfirmed() {
                self.barrier = Some(owed.handed_over());
                return Step::Barrier;
            }
            owed.hand_over(MESSAGES_AT_ONCE, |subject, payload| self.taken.push_back(Outgoing { subject, payload }));
        }
        if self.taken.is_empty() { Step::Wait } else { Step::Publish }
    }

    /// What [`Step::Publish`] is about: whoever publishes removes it from here.
    pub const fn taken(&mut self) -> &mut VecDeque<Outgoing> {
        &mut self.taken
    }

    /// The connection is this now. If it is another, what was under way is lost, the barrier too, and it says how many
    /// messages were dropped.
    pub fn connection_is(&mut self, now: Connection, owed: &mut Owed) -> Option<usize> {
        if now == self.connection {
            return None;
        }
        self.connection = now;
        Some(self.lost(owed))
    }

    /// Publishing failed, or the barrier did: what the broker is not known to have is owed again if it is a change; the
    /// rest has been outrun by time. A barrier that is under way counts no more. Returns how many messages were dropped.
    pub fn lost(&mut self, owed: &mut Owed) -> usize {
        let dropped = self.taken.len();
        self.taken.clear();
        self.barrier = None;
        owed.owe_again();
        dropped
    }

    /// The barrier is done, on a connection that is `now` this. A barrier speaks for its own connection: if that is not
    /// the one published on, it says nothing of what was published, and [`Delivery::connection_is`] will find out.
    pub fn barrier_passed(&mut self, now: Connection, owed: &mut Owed) {
        if let Some(until) = self.barrier.take().filter(|_| now == self.connection) {
            owed.confirm(until);
        }
    }

    /// Whether the broker is known to have everything.
    #[must_use]
    pub fn is_settled(&self, owed: &Owed) -> bool {
        self.taken.is_empty() && owed.is_settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{Command, Config, Draft, Engine, Input, Limits, Outbox, Request, Scene, Settings, StreamId, Tick},
        shard::{clock::Now, owed::PublishTo},
    };

    const UP: Connection = Connection { connected: true, generation: 1 };

    /// An engine whose stream is stopped and reset in turn, for changes to owe.
    fn owe_changes(owed: &mut Owed, count: usize) {
        let (mut engine, mut outbox) = (Engine::new(Settings::default()), Outbox::default());
        let draft = Draft { scenes: vec![Scene { name: "Main", duration_ms: 1_000 }], ..Draft::default() };
        let config = Config::new(&draft, &Limits::default()).unwrap();
        let stream_id = StreamId::parse("show").unwrap();
        for command in [Command::Start(Some(config)), Command::Stop, Command::Reset].into_iter().take(count) {
            let request = Request { stream_id, request_id: None, expected_revision: None, command };
            engine.handle(Tick(0), Input::Command(request), &mut outbox).unwrap();
        }
        assert_eq!(outbox.updates.len(), count);
        outbox.updates.iter().for_each(|update| owed.update(update, Now { tick: Tick(0), wall_ms: 0 }));
    }

    fn owing(changes: usize) -> Owed {
        let mut owed = Owed::new(PublishTo::Subjects);
        owe_changes(&mut owed, changes);
        owed
    }

    #[test]
    fn after_a_failed_publish_a_barrier_from_before_confirms_nothing() {
        let (mut delivery, mut owed) = (Delivery::new(UP), owing(2));
        assert_eq!(delivery.next(&mut owed), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut owed), Step::Barrier);
        owe_changes(&mut owed, 1);
        assert_eq!(delivery.next(&mut owed), Step::Publish);
        assert_eq!(delivery.lost(&mut owed), 1);
        delivery.barrier_passed(UP, &mut owed);
        assert_eq!(delivery.next(&mut owed), Step::Publish);
        assert_eq!(delivery.taken().len(), 3);
    }

    #[test]
    fn a_barrier_of_another_connection_confirms_nothing() {
        let (mut delivery, mut owed) = (Delivery::new(UP), owing(1));
        assert_eq!(delivery.next(&mut owed), Step::Publish);
        delivery.taken().clear();
        assert_eq!(delivery.next(&mut owed), Step::Barrier);
        let again = Connection { connected: true, generation: 2 };
        delivery.barrier_passed(again, &mut owed);
        assert!(owed.has_unconfirmed());
        assert_eq!(delivery.connection_is(again, &mut owed), Some(0));
        assert_eq!(delivery.next(&mut owed), Step::Publish);
        assert_eq!(delivery.taken().len(), 1);
    }

    #[test]
    fn while_the_connection_is_away_nothing_is_taken_over() {
        let (mut delivery, mut owed) = (Delivery::new(Connection { connected: false, generation: 1 }), owing(1));
        assert_eq!(delivery.next(&mut owed), Step::Wait);
        assert!(!owed.is_empty());
    }
}
