//! How many connections and bytes there may be, in all and of one address.
//!
//! A connection for which there is nothing to do here (a new one, one with half a head, an idle one, one that only waits for
//! its peer to read an answer) gives way when there is no place for a newcomer, the one that has waited longest first. So
//! a crowd that sends nothing or reads nothing keeps nobody out. A request that is being worked on never gives way, nor
//! does a WebSocket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

/// How many connections that were told to give way may still be ending: the file descriptors that they have are beyond
/// the cap.
pub(super) const MAX_ENDING: u32 = 32;

/// All connections of one server.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    state: Mutex<State>,
    /// A place has become free.
    freed: Notify,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: u32,
    pub(super) per_address: u32,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Those that have a place.
    open: u32,
    /// Those that gave way and are not gone yet.
    ending: u32,
    next_ticket: u64,
    /// Invariant: by ticket, those that have a place and wait for a request; who came first is first.
    waiting: BTreeMap<u64, Weak<ConnectionGuard>>,
    by_address: HashMap<IpAddr, OfAddress>,
    bytes: usize,
}

/// Invariant: there while anything of it is not 0.
#[derive(Debug, Default)]
struct OfAddress {
    open: u32,
    waiting: BTreeSet<u64>,
    bytes: usize,
}

impl OfAddress {
    fn is_empty(&self) -> bool {
        self.open == 0 && self.bytes == 0
    }
}

/// Why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken by connections that work.
    Server,
    /// All that one address may have.
    Address,
    /// One gives way as soon as those before it have ended.
    Ending,
}

/// A connection's place, until the last copy is dropped: who upgrades a connection keeps one.
#[derive(Debug)]
pub struct ConnectionGuard {
    table: Arc<Table>,
    address: IpAddr,
    /// 0 while it works. Changed under the table's lock.
    ticket: AtomicU64,
    /// Its place is somebody else's. Changed under the table's lock.
    gave_way: AtomicBool,
    give_way: Notify,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default(), freed: Notify::new() })
    }

    /// A place for a connection from `address`, which waits for its first request.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Arc<ConnectionGuard>, Full> {
        let address = subscriber(address);
        let mut state = self.state();
        let of_address = state.by_address.get(&address);
        let mut gives_way = None;
        if of_address.is_some_and(|of_address| of_address.open >= self.limits.per_address) {
            let oldest = of_address.and_then(|of_address| of_address.waiting.first().copied());
            gives_way = Some(state.end(oldest.ok_or(Full::Address)?)?);
        } else if state.open >= self.limits.connections {
            let oldest = state.waiting.first_key_value().map(|(ticket, _)| *ticket);
            gives_way = Some(state.end(oldest.ok_or(Full::Server)?)?);
        }
        state.open += 1;
        state.by_address.entry(address).or_default().open += 1;
        let guard = Arc::new(ConnectionGuard {
            table: Arc::clone(self),
            address,
            ticket: AtomicU64::new(0),
            gave_way: AtomicBool::new(false),
            give_way: Notify::new(),
        });
        state.wait(&guard);
        drop(state);
        // It may be the last copy by now, whose drop locks the table.
        drop(gives_way);
        Ok(guard)
    }

    /// Resolves when a place may have become free since this was called.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Resolves when no connection is left.
    pub(super) async fn emptied(&self) {
        loop {
            let freed = self.freed();
            if self.open() == 0 {
                return;
            }
            freed.await;
        }
    }

    /// Connections that there are.
    pub(super) fn open(&self) -> u32 {
        let state = self.state();
        state.open + state.ending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(&mut self, guard: &Arc<ConnectionGuard>) {
        self.next_ticket += 1;
        guard.ticket.store(self.next_ticket, Ordering::Relaxed);
        self.waiting.insert(self.next_ticket, Arc::downgrade(guard));
        self.by_address.entry(guard.address).or_default().waiting.insert(self.next_ticket);
    }

    fn work(&mut self, guard: &ConnectionGuard) {
        let ticket = guard.ticket.swap(0, Ordering::Relaxed);
        if ticket != 0 {
            self.waiting.remove(&ticket);
            if let Some(of_address) = self.by_address.get_mut(&guard.address) {
                of_address.waiting.remove(&ticket);
            }
        }
    }

    /// Takes away the place of one that waits. The caller drops it when it has unlocked the table.
    fn end(&mut self, ticket: u64) -> Result<Arc<ConnectionGuard>, Full> {
        if self.ending >= MAX_ENDING {
            return Err(Full::Ending);
        }
        // One that is being dropped this moment gives its place back by itself.
        let guard = self.waiting.get(&ticket).and_then(Weak::upgrade).ok_or(Full::Ending)?;
        self.work(&guard);
        self.leave(guard.address);
        self.ending += 1;
        guard.gave_way.store(true, Ordering::Relaxed);
        guard.give_way.notify_one();
        Ok(guard)
    }

    fn leave(&mut self, address: IpAddr) {
        self.open -= 1;
        self.change(address, |of_address| of_address.open -= 1);
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut OfAddress)) {
        if let Some(of_address) = self.by_address.get_mut(&address) {
            change(of_address);
            if of_address.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}

impl ConnectionGuard {
    /// A request has begun: the connection does not give way any more.
    pub(super) fn work(&self) {
        self.table.state().work(self);
    }

    /// The connection waits for a request again.
    pub(super) fn wait(self: &Arc<Self>) {
        let mut state = self.table.state();
        if !self.gave_way.load(Ordering::Relaxed) && self.ticket.load(Ordering::Relaxed) == 0 {
            state.wait(self);
        }
    }

    /// Resolves when the connection has to end, for a newcomer.
    pub(super) async fn told_to_give_way(&self) {
        self.give_way.notified().await;
    }

    /// Leave to keep so many bytes for this connection's peer, until it is dropped. `None` when that would be too much for
    /// all connections, or more than half of it for one address.
    #[must_use]
    pub fn buffer(self: &Arc<Self>, bytes: usize) -> Option<Buffered> {
        let mut buffered = Buffered { table: Arc::clone(&self.table), address: self.address, bytes: 0 };
        buffered.grow(bytes).then_some(buffered)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut state = self.table.state();
        if *self.gave_way.get_mut() {
            state.ending -= 1;
        } else {
            state.work(self);
            state.leave(self.address);
        }
        drop(state);
        self.table.freed.notify_waiters();
    }
}

/// Bytes that are kept for a peer, and counted.
#[derive(Debug)]
pub struct Buffered {
    table: Arc<Table>,
    address: IpAddr,
    bytes: usize,
}

impl Buffered {
    /// Leave to keep so many more, under the same bounds. False when that would be too much: it is as before then.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let mut state = self.table.state();
        let limit = self.table.limits.bytes;
        let of_address = state.by_address.get(&self.address).map_or(0, |of_address| of_address.bytes);
        if bytes > limit - state.bytes || of_address.saturating_add(bytes) > limit / 2 {
            return false;
        }
        state.bytes += bytes;
        state.by_address.entry(self.address).or_default().bytes += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        let mut state = self.table.state();
        state.bytes -= self.bytes;
        state.change(self.address, |of_address| of_address.bytes -= self.bytes);
    }
}

/// What stands for one subscriber of a provider: an IPv4 address, or the /64 that an IPv6 address is in.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections: u32, per_address: u32) -> Arc<Table> {
        Table::new(Limits { connections, per_address, bytes: 100 })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn gave_way(guard: &ConnectionGuard) -> bool {
        guard.gave_way.load(Ordering::Relaxed)
    }

    fn is_as_new(table: &Table) -> bool {
        let state = table.state();
        state.open == 0
            && state.ending == 0
            && state.waiting.is_empty()
            && state.by_address.is_empty()
            && state.bytes == 0
    }

    #[test]
    fn who_has_waited_longest_gives_way_and_who_works_does_not() {
        let table = table(3, 3);
        let guards: Vec<_> = (1..=3).map(|last| table.admit(address(last)).expect("a place")).collect();
        guards[0].work();
        guards[1].work();
        guards[1].wait();
        let newcomer = table.admit(address(4)).expect("the third's place");
        assert_eq!([0, 1, 2].map(|place| gave_way(&guards[place])), [false, false, true]);
        newcomer.work();
        let second = table.admit(address(4)).expect("the second's place");
        second.work();
        assert_eq!(table.admit(address(5)).err(), Some(Full::Server));
        drop((guards, newcomer, second));
        assert!(is_as_new(&table));
    }

    #[test]
    fn a_connection_that_ends_while_it_is_told_to_give_way_does_so() {
        let table = table(1, 1);
        let waiting = table.admit(address(1)).expect("a place");
        let mut state = table.state();
        let ticket = *state.waiting.first_key_value().expect("it waits").0;
        let gives_way = state.end(ticket).expect("it may");
        // Its own copy goes first: the other is the last one, and its drop takes the lock.
        drop(waiting);
        drop(state);
        drop(gives_way);
        assert!(is_as_new(&table));
    }

    #[test]
    fn an_address_that_has_all_it_may_have_pushes_out_only_its_own() {
        let table = table(10, 2);
        let other = table.admit(address(2)).expect("a place");
        let guards: Vec<_> = (0..2).map(|_| table.admit(address(1)).expect("a place")).collect();
        let third = table.admit(address(1)).expect("the first's place");
        assert!(gave_way(&guards[0]) && !gave_way(&guards[1]) && !gave_way(&other));
        guards[1].work();
        third.work();
        assert_eq!(table.admit(address(1)).err(), Some(Full::Address));
        assert!(table.admit(address(3)).is_ok());
    }

    #[test]
    fn one_subscribers_ipv6_addresses_are_one() {
        let table = table(10, 1);
        let first = table.admit("2001:db8::1".parse().expect("an address")).expect("a place");
        first.work();
        assert_eq!(table.admit("2001:db8::ffff".parse().expect("an address")).err(), Some(Full::Address));
        assert!(table.admit("2001:db8:0:1::1".parse().expect("an address")).is_ok());
        let mapped = table.admit("::ffff:10.0.0.1".parse().expect("an address")).expect("a place");
        mapped.work();
        assert_eq!(table.admit(address(1)).err(), Some(Full::Address), "an IPv4 address within IPv6 is itself");
    }

    #[test]
    fn only_so_many_are_ending_at_once() {
        let table = table(1, 1);
        let mut all = vec![table.admit(address(1)).expect("a place")];
        for _ in 0..MAX_ENDING {
            all.push(table.admit(address(1)).expect("a place"));
        }
        assert_eq!(table.admit(address(1)).err(), Some(Full::Ending));
        all.remove(0);
        assert!(table.admit(address(1)).is_ok(), "one has ended");
    }

    #[test]
    fn bytes_are_bounded_for_all_and_by_half_for_one_address() {
        let table = table(10, 10);
        let [first, second, third] = [1, 2, 3].map(|last| table.admit(address(last)).expect("a place"));
        let kept = first.buffer(50).expect("half");
        assert!(first.buffer(1).is_none(), "over the half of one address");
        let other = second.buffer(45).expect("of the rest");
        assert!(third.buffer(6).is_none(), "over what there is");
        drop(kept);
        assert!(third.buffer(6).is_some());
        drop((other, first, second, third));
        assert!(is_as_new(&table));
    }
}
