//! How far a viewer may be behind: as far as it answers.
//!
//! What is written to a slow viewer waits in the kernels of both sides, in order, for as long as the viewer takes to read
//! it: it sees states that are many seconds old, and no rule for newer updates reaches them there. Its pongs tell how far
//! it has read. So a ping goes with an update now and then, and while one stays unanswered for long and much was sent
//! behind it, updates wait here, where the newest takes the place of all before it.
//!
//! | a viewer that | gets |
//! |---|---|
//! | keeps up | everything; a ping each 4 KiB at first, each 32 KiB later |
//! | reads slowly | what it can read, each at most about [`LATE_AFTER`] behind what it has read |
//! | answers no ping | an update each [`HOLD`], until it is given up |
//!
//! An answer is also late when it is this process that comes late to read it. By how much it does is known
//! (`lag`), and no viewer's fault.

use std::time::Duration;

use tokio::time::Instant;

/// How long a ping may stay unanswered before it counts as late: more than the longest round trip on earth, and less than a
/// viewer notices.
const LATE_AFTER: Duration = Duration::from_millis(250);
/// How much may be sent behind a ping that is late, bytes: a third of a second for who reads 25 KB a second.
const MAX_BEHIND: u64 = 8 << 10;
/// How long updates wait for a late answer at a time.
const HOLD: Duration = Duration::from_secs(1);
/// How much is sent from one ping to the next, bytes: at first and for slow viewers, and at most.
const PING_EACH: (u32, u32) = (4 << 10, 32 << 10);

/// What was sent to a viewer, and how much of it is answered for.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes sent since the last ping.
    since_ping: u64,
    ping_each: u32,
    /// The last answer was late.
    is_slow: bool,
    /// The number of the last ping.
    ping: u32,
    /// When it was sent, while it is not answered.
    unanswered: Option<Instant>,
    last_sent: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since_ping: 0, ping_each: PING_EACH.0, is_slow: false, ping: 0, unanswered: None, last_sent: now }
    }

    /// Until when nothing should be sent, unless an answer comes before. `lag` is how late this process may be to read it.
    pub(super) fn hold(&self, now: Instant, lag: Duration) -> Option<Instant> {
        let asked = self.unanswered?;
        // Of a viewer whose last answer was late, none is expected to be early.
        let is_late = (self.is_slow || now >= asked + LATE_AFTER + lag) && self.since_ping >= MAX_BEHIND;
        let until = self.last_sent + HOLD;
        (is_late && now < until).then_some(until)
    }

    /// So much was sent. Gives the number of a ping that should follow it.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) -> Option<u32> {
        self.since_ping += bytes as u64;
        self.last_sent = now;
        let is_due = self.unanswered.is_none() && self.since_ping >= u64::from(self.ping_each);
        is_due.then(|| self.ask(now))
    }

    /// The number of a ping that is sent for another reason; none while one is unanswered.
    pub(super) fn ping(&mut self, now: Instant) -> Option<u32> {
        self.unanswered.is_none().then(|| self.ask(now))
    }

    /// So much was sent that is no update.
    pub(super) fn note_sent(&mut self, bytes: usize) {
        self.since_ping += bytes as u64;
    }

    fn ask(&mut self, now: Instant) -> u32 {
        self.ping = self.ping.wrapping_add(1);
        self.since_ping = 0;
        self.unanswered = Some(now);
        self.ping
    }

    /// An answer came; false when it is to no ping that waits for one, and says nothing.
    pub(super) fn answered(&mut self, payload: &[u8], now: Instant, lag: Duration) -> bool {
        let Some(asked) = self.unanswered.filter(|_| payload == self.ping.to_be_bytes()) else { return false };
        self.unanswered = None;
        self.is_slow = now >= asked + LATE_AFTER + lag;
        self.ping_each = if self.is_slow { PING_EACH.0 } else { (self.ping_each * 2).min(PING_EACH.1) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: usize = 560;
    const NONE: Duration = Duration::ZERO;

    #[test]
    fn who_answers_at_once_is_never_held_and_seldom_asked() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut pings = 0;
        for _ in 0..10_000 {
            now += Duration::from_millis(10);
            assert_eq!(pace.hold(now, NONE), None);
            if let Some(ping) = pace.sent(UPDATE, now) {
                pings += 1;
                assert!(pace.answered(&ping.to_be_bytes(), now + Duration::from_millis(200), NONE));
            }
        }
        assert!((150..250).contains(&pings), "{pings}");
    }

    #[test]
    fn a_slow_reader_is_at_most_a_second_behind() {
        // A line that holds 1 MB, and a reader that takes 20 KB a second of 56.
        let begin = Instant::now();
        let (mut now, mut pace) = (begin, Pace::new(begin));
        let mut line = std::collections::VecDeque::new();
        let (mut capacity, mut oldest) = (0, Duration::ZERO);
        for _ in 0..6_000 {
            now += Duration::from_millis(10);
            if pace.hold(now, NONE).is_none() {
                line.push_back((UPDATE, now, None));
                if let Some(ping) = pace.sent(UPDATE, now) {
                    line.push_back((6, now, Some(ping)));
                }
            }
            capacity += 200;
            while line.front().is_some_and(|(bytes, ..)| *bytes <= capacity) {
                let Some((bytes, sent, ping)) = line.pop_front() else { break };
                capacity -= bytes;
                oldest = oldest.max(now - sent);
                if let Some(ping) = ping {
                    assert!(pace.answered(&ping.to_be_bytes(), now, NONE));
                }
            }
            capacity = if line.is_empty() { 0 } else { capacity };
        }
        assert!(oldest <= Duration::from_secs(1), "{oldest:?}");
    }

    #[test]
    fn who_answers_nothing_gets_an_update_a_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut sent = 0;
        for _ in 0..2_000 {
            now += Duration::from_millis(10);
            if pace.hold(now, NONE).is_none() {
                sent += 1;
                pace.sent(UPDATE, now);
            }
        }
        assert!((40..=65).contains(&sent), "in 20 s: {sent}");
        // Whatever else it says is no answer.
        assert!(!pace.answered(b"", now, NONE) && !pace.answered(&[9; 4], now, NONE));
        assert!(pace.hold(now, NONE).is_some());
    }

    #[test]
    fn what_this_process_is_late_by_holds_nobody() {
        let (lag, mut now) = (Duration::from_millis(1_500), Instant::now());
        let (mut fair, mut blamed) = (Pace::new(now), Pace::new(now));
        let mut holds = [0, 0];
        let mut asked = [None, None];
        for _ in 0..6_000 {
            now += Duration::from_millis(10);
            for (place, (pace, lag)) in [(&mut fair, lag), (&mut blamed, NONE)].into_iter().enumerate() {
                // Whatever is asked is answered at once, and read 1.5 s later.
                if let Some((ping, at)) = asked[place]
                    && now >= at + Duration::from_millis(1_500)
                {
                    let ping: u32 = ping;
                    assert!(pace.answered(&ping.to_be_bytes(), now, lag));
                    asked[place] = None;
                }
                match pace.hold(now, lag) {
                    Some(_) => holds[place] += 1,
                    None => asked[place] = pace.sent(UPDATE, now).map(|ping| (ping, now)).or(asked[place]),
                }
            }
        }
        assert_eq!(holds[0], 0);
        assert!(holds[1] > 1_000, "without it there is blame: {}", holds[1]);
    }
}
