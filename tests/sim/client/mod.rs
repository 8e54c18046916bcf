//! Gateways that are built on the real client: its registration table, its background task, its update streams and its
//! calls run here as they are, over a [connection](transport) of this world.
//!
//! A client is made of tasks and of tokio's timers. They run on a runtime of one thread whose clock stands still until
//! nothing is left to do, and then jumps to whatever is next: a timer of a client, or the next event of the world, which
//! sleeps on the same clock. So both have one time, and a seed is still one run.

mod ask;
mod calls;
mod transport;
pub mod viewer;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use orchestrator_service::{
    client::{Client, ClientOptions, ErrorKind, ServiceState, Standing, UpdatesFrom},
    shard::publish_queue::PublishTo,
    transport::{Connection, Denial, Message as Received, TransportError},
    wire::proto::{Code, Mode},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, Sleep},
};

use self::{
    transport::{Calls, SimTransport},
    viewer::{Tale, Told, Who},
};
use crate::{
    checkers::Fact,
    gateway::SubId,
    net::{Link, Party, Update},
    plan::Plan,
    reading::stream_id,
    world::{Event, Phase, T0, World},
};

/// Behind its heartbeat a client has asked by name and registered again so soon, ms.
const TOLD_WITHIN_MS: u64 = 2_000;

/// All clients of a world, and the runtime of their tasks. None has no runtime.
pub struct Clients {
    runtime: Option<Rc<Runtime>>,
    /// When the world began.
    start: Option<Instant>,
    /// The world's own timer.
    sleep: Option<Pin<Box<Sleep>>>,
    calls: Arc<Calls>,
    tale: Arc<Tale>,
    pub each: Vec<RealGateway>,
    /// How many connections there ever were, and viewers.
    transports: usize,
    viewers: usize,
    /// Something was given to them that they have not looked at.
    has_news: bool,
}

/// A gateway with a client.
pub struct RealGateway {
    /// None while it is dead, or closed.
    client: Option<Client>,
    options: ClientOptions,
    /// Whether it asks its client if there is a service.
    asks: bool,
    transport: Arc<SimTransport>,
    transport_number: usize,
    /// By their number.
    pub viewers: BTreeMap<usize, RealViewer>,
    /// Tasks that are not a viewer's: calls, and those of viewers who go.
    tasks: Vec<JoinHandle<()>>,
    /// Requests that are waited for: the number of the call by that of the request, and the way to who waits.
    requests: BTreeMap<usize, Waiting>,
    /// Of the register that was last answered to its client, by subscriber; none where one was not.
    given: BTreeMap<SubId, u64>,
    /// Since when it has its connection.
    pub reconnected_at: u64,
    /// When its client last registered somebody, or asked by name.
    asked: BTreeMap<SubId, u64>,
    /// The client's subscriptions, and those that the broker has.
    subscriptions: BTreeMap<u64, Subscribed>,
    at_broker: BTreeMap<u64, String>,
    /// Since when it has its connection, and all its subscriptions.
    pub connected_since: u64,
    /// How often updates of a subscription were lost while the connection held.
    gaps: u64,
    /// What its client says of the service, if anybody asks.
    service: Option<watch::Receiver<ServiceState>>,
}

struct Waiting {
    number: u64,
    answers: mpsc::UnboundedSender<Result<Received, TransportError>>,
}

struct Subscribed {
    subject: String,
    messages: mpsc::UnboundedSender<Received>,
    denied: watch::Sender<Option<Denial>>,
    /// Until the broker has it.
    confirmed: Option<oneshot::Sender<Result<(), TransportError>>>,
}

/// A viewer of such a gateway.
pub struct RealViewer {
    pub sub: SubId,
    /// Which of the filters it follows, if any.
    pub filter: Option<usize>,
    /// The client says that the service knows it.
    pub registered: bool,
    /// The last that was heard is that its stream is not there.
    misses_stream: bool,
    /// The newest update that it was shown, and over which connection it came.
    pub view: Option<(u64, Rc<Update>)>,
    /// Over which connection its subscription was made, and when.
    opened_on: u64,
    pub since: u64,
    /// When it began to show what came: until it is registered, that waits, and its connection may be another by then.
    shows_since: Option<u64>,
    leave: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Clients {
    pub fn new(plan: &Plan, seed: u64, link: &Link) -> Self {
        let calls = Arc::new(Calls::default());
        let tale = Arc::new(Tale::new(Arc::clone(&calls)));
        let runtime = (!plan.clients.is_empty()).then(|| {
            // All that can run does before time goes on and before the world looks.
            let runtime =
                Builder::new_current_thread().enable_time().start_paused(true).event_interval(u32::MAX).build();
            Rc::new(runtime.expect("a runtime without threads and sockets"))
        });
        let (start, sleep) = runtime
            .as_ref()
            .map(|runtime| {
                let _inside = runtime.enter();
                (Instant::now(), Box::pin(tokio::time::sleep(Duration::ZERO)))
            })
            .unzip();
        let mut own =
            Self { runtime, start, sleep, calls, tale, each: Vec::new(), transports: 0, viewers: 0, has_news: false };
        for (number, style) in plan.clients.iter().enumerate() {
            let feed = match plan.publish_to {
                PublishTo::Subjects => false,
                PublishTo::Feed => true,
                PublishTo::Both => number.is_multiple_of(2),
            };
            let options = ClientOptions {
                heartbeat_interval: Duration::from_millis(plan.heartbeat_ms),
                attempt_timeout: Duration::from_millis(style.attempt_ms),
                total_timeout: Duration::from_millis(style.total_ms),
                absent_timeout: Duration::from_millis(style.absent_ms),
                close_timeout: Duration::from_secs(2),
                updates: if feed { UpdatesFrom::Feed } else { UpdatesFrom::Subjects },
                max_registrations: style.max_registrations,
                max_unregisters: style.max_unregisters,
                seed: Some(seed ^ number as u64),
                wall_clock: || SystemTime::UNIX_EPOCH + Duration::from_millis(T0),
            };
            let gateway = own.gateway(options, style.asks, link);
            own.each.push(gateway);
        }
        own
    }

    fn gateway(&mut self, options: ClientOptions, asks: bool, link: &Link) -> RealGateway {
        let transport_number = self.transports;
        self.transports += 1;
        let transport = SimTransport::new(transport_number, Arc::clone(&self.calls), link.believed, link.max_payload);
        RealGateway {
            client: None,
            options,
            asks,
            transport: Arc::new(transport),
            transport_number,
            viewers: BTreeMap::new(),
            tasks: Vec::new(),
            requests: BTreeMap::new(),
            given: BTreeMap::new(),
            reconnected_at: T0,
            asked: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            at_broker: BTreeMap::new(),
            connected_since: T0,
            gaps: 0,
            service: None,
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("a world with clients")
    }

    /// Starts the client of a gateway that has none.
    fn start(&mut self, number: usize) {
        let _inside = self.runtime.as_ref().expect("a world with clients").enter();
        let gateway = &mut self.each[number];
        let transport = Arc::clone(&gateway.transport);
        let client = Client::new(transport, gateway.options.clone());
        gateway.service = gateway.asks.then(|| client.service());
        gateway.client = Some(client);
        self.has_news = true;
    }

    /// The runtime, if there are clients.
    pub fn has_runtime(&self) -> Option<Rc<Runtime>> {
        self.runtime.clone()
    }

    /// The world's time by the clients' clock, ms since 1970.
    fn clock(&self) -> u64 {
        let start = self.start.expect("a world with clients");
        T0 + u64::try_from(start.elapsed().as_millis()).expect("within this age of the world")
    }

    /// Lets the clients do all that they can do now, if they were given anything.
    async fn yield_to(&mut self) {
        if std::mem::take(&mut self.has_news) {
            tokio::task::yield_now().await;
        }
    }

    /// Lets time go on until then, or until a client has done something.
    async fn sleep_until(&mut self, at: u64) {
        let until = self.start.expect("a world with clients") + Duration::from_millis(at - T0);
        let sleep = self.sleep.as_mut().expect("a world with clients");
        sleep.as_mut().reset(until);
        std::future::poll_fn(|context| match self.calls.poll_news(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => sleep.as_mut().poll(context),
        })
        .await;
    }
}

impl RealGateway {
    pub fn reads_feed(&self) -> bool {
        self.options.updates == UpdatesFrom::Feed
    }

    pub fn is_alive(&self) -> bool {
        self.client.is_some()
    }
}

impl World {
    // --- time ----------------------------------------------------------------------------------------------------

    /// As `run_until` without clients; what they do happens when they do it.
    pub async fn run_with_clients(&mut self, end: u64) {
        loop {
            self.clients.yield_to().await;
            self.take_from_clients();
            let next = self.next_event_at().filter(|at| *at <= end);
            let until = next.unwrap_or(end);
            if until > self.now {
                self.clients.sleep_until(until).await;
                self.now = self.clients.clock();
                assert!(self.now <= until, "time went on by itself");
                self.take_from_clients();
                if self.now < until || self.next_event_at().is_some_and(|at| at <= until) != next.is_some() {
                    continue;
                }
            }
            match next {
                Some(_) => self.next_event(),
                None => return,
            }
        }
    }

    fn take_from_clients(&mut self) {
        loop {
            if let Some((transport, call)) = self.clients.calls.pop() {
                self.carry_out(transport, call);
            } else if let Some((viewer, told)) = self.clients.tale.pop() {
                self.take_told(viewer, told);
            } else {
                return;
            }
        }
    }

    // --- gateways ------------------------------------------------------------------------------------------------

    /// The client of a gateway that has none starts.
    pub fn client_starts(&mut self, client: usize) {
        if !self.clients.each[client].is_alive() {
            self.clients.start(client);
        }
    }

    /// A gateway dies with all its viewers, and without a word.
    pub fn client_dies(&mut self, client: usize) {
        self.log.note(self.clock(), "client dies", &[client as u64], &[]);
        let back = self.rng.within(100, 20_000);
        self.break_link(Party::Client(client), back.min(3_000));
        let number = self.number_of(Party::Client(client));
        let RealGateway { asks, ref options, .. } = self.clients.each[client];
        let options = options.clone();
        let successor = self.clients.gateway(options, asks, &self.links[number]);
        let dead = std::mem::replace(&mut self.clients.each[client], successor);
        // Its tasks end by themselves: nothing that they ask for is carried out.
        dead.transport.is_now(Connection { connected: false, generation: 0 });
        dead.viewers.values().for_each(|viewer| viewer.task.abort());
        dead.tasks.iter().for_each(JoinHandle::abort);
        self.clients.has_news = true;
        self.at(self.now + back, Event::ClientStarts(client));
    }

    // --- viewers -------------------------------------------------------------------------------------------------

    pub fn real_viewer_comes(&mut self, client: usize, sub: SubId) {
        let Some(real) = self.clients.each[client].client.clone() else { return };
        let viewer = self.clients.viewers * self.clients.each.len() + client;
        self.clients.viewers += 1;
        let known = &self.truth.subs[sub];
        let (stream_id, client_id, session) = (stream_id(known.stream), known.client.to_string(), known.session);
        let filter = self.rng.chance(self.plan.filtered).then(|| self.rng.below(viewer::filters().len()));
        let who = Who { viewer, stream_id, client_id, session, filter };
        self.log.note(self.clock(), "viewer of a client comes", &[client as u64, sub as u64, viewer as u64], &[]);
        self.log.tell(|| format!("{who:?}"));
        let (leave, leaving) = oneshot::channel();
        let task = viewer::view(real, who, Arc::clone(&self.clients.tale), leaving);
        let task = self.clients.runtime().spawn(task);
        let viewer_of = RealViewer {
            sub,
            filter,
            registered: false,
            misses_stream: false,
            view: None,
            opened_on: 0,
            since: self.now,
            shows_since: None,
            leave,
            task,
        };
        self.clients.each[client].viewers.insert(viewer, viewer_of);
        self.clients.has_news = true;
    }

    pub fn real_viewer_goes(&mut self, client: usize, viewer: usize) {
        let gateway = &mut self.clients.each[client];
        let Some(RealViewer { sub, leave, task, .. }) = gateway.viewers.remove(&viewer) else { return };
        let _ = leave.send(());
        gateway.tasks.push(task);
        gateway.tasks.retain(|task| !task.is_finished());
        self.log.note(self.clock(), "viewer of a client goes", &[client as u64, sub as u64, viewer as u64], &[]);
        self.clients.has_news = true;
    }

    fn take_told(&mut self, viewer: usize, told: Told) {
        let client = viewer % self.clients.each.len();
        // Over this connection, and since the last gap in it.
        let generation = self.course(Party::Client(client), self.clients.each[client].gaps);
        let Some(known) = self.clients.each[client].viewers.get_mut(&viewer) else { return };
        let stream = self.truth.subs[known.sub].stream;
        match told {
            Told::Ended => (known.registered, known.view) = (false, None),
            Told::Opened => {
                (known.view, known.opened_on, known.since, known.shows_since) = (None, generation, self.now, None);
            }
            Told::Standing(standing) => {
                known.shows_since.get_or_insert(self.now);
                known.registered = matches!(standing, Standing::Registered { .. });
                known.misses_stream = standing == Standing::Lost(Code::StreamNotFound);
            }
            Told::Failed(error) => {
                known.registered = false;
                known.misses_stream = error.code() == Code::StreamNotFound;
                self.log.note(self.clock(), "viewer refused", &[viewer as u64, error.code() as u64], &[]);
                self.log.tell(|| format!("{error:?}"));
                if error.kind() == ErrorKind::Exhausted {
                    self.real_viewer_goes(client, viewer);
                }
            }
            Told::Shown(state) => {
                let update = Rc::new(Update { stream, bytes_hash: 0, state: *state });
                // The snapshot, which comes first, is news since the subscription, and so is what waited behind it.
                let has_waited = known.view.is_none() || known.shows_since == Some(self.now);
                let seen_on = if has_waited { known.opened_on } else { generation };
                let (filter, before) = (known.filter, known.view.replace((seen_on, Rc::clone(&update))));
                self.log.note(self.clock(), "shown", &[viewer as u64, update.epoch, update.sequence], &[]);
                let covered = before.as_ref().is_some_and(|(seen_on, _)| *seen_on == generation);
                let before = before.as_ref().map(|(_, before)| &**before);
                self.fact(&match filter {
                    None => Fact::Seen { before, covered, update: &update },
                    Some(filter) => Fact::SeenFiltered { filter, before, covered, update: &update },
                });
            }
        }
    }

    /// Once nothing goes wrong any more, streams that viewers of a client miss are started.
    pub fn client_tends(&mut self, client: usize) {
        if self.phase != Phase::Liveness {
            return;
        }
        let missing = self.clients.each[client].viewers.values().filter(|viewer| viewer.misses_stream);
        let missing: BTreeSet<usize> = missing.map(|viewer| self.truth.subs[viewer.sub].stream).collect();
        missing.into_iter().for_each(|stream| self.start_for_good(stream));
        self.at(self.now + 1_300, Event::ClientTends(client));
    }

    /// Those who were away when faults stopped have registered everybody again, without waiting for a heartbeat.
    pub fn check_reconnected_clients(&self, since: u64) {
        // Who follows a filter follows before it registers, and does neither while there is no such stream.
        let has_begun = |viewer: &RealViewer| viewer.filter.is_none() || viewer.registered;
        for (client, viewer) in self.real_viewers().filter(|(_, viewer)| has_begun(viewer)) {
            let RealGateway { reconnected_at, asked, .. } = &self.clients.each[client];
            let has_asked = asked.get(&viewer.sub).is_some_and(|asked| asked >= reconnected_at);
            assert!(
                *reconnected_at < since || has_asked,
                "reconnected: client {client} has not asked for {} since",
                self.truth.subs[viewer.sub]
            );
            // That a stream is gone whoever follows a filter is shown at once, and its client told with the next heartbeat.
            let is_gone = viewer.view.as_ref().is_some_and(|(_, view)| view.mode() == Mode::Unknown);
            // Another holder of the same session may have said that it leaves, not knowing its own handle: by name, which
            // ends whatever registration there is; or what this one had said came twice. It is told with its next heartbeat.
            let named_away = self.truth.named_away_against(viewer.sub, Party::Client(client));
            let is_being_told = named_away.is_some_and(|at| self.now <= at + self.plan.heartbeat_ms + TOLD_WITHIN_MS);
            let is_known = self.truth.may_know(viewer.sub) || !viewer.registered || is_gone || is_being_told;
            assert!(
                *reconnected_at < since || is_known,
                "reconnected: client {client} says that {} is there",
                self.truth.subs[viewer.sub]
            );
        }
    }

    // --- the end -------------------------------------------------------------------------------------------------

    /// All viewers leave, one by one or with their gateway.
    pub fn clients_close(&mut self) {
        for client in 0..self.clients.each.len() {
            if self.rng.chance(500) {
                let viewers: Vec<usize> = self.clients.each[client].viewers.keys().copied().collect();
                viewers.into_iter().for_each(|viewer| self.real_viewer_goes(client, viewer));
            }
            if let Some(real) = self.clients.each[client].client.take() {
                let closing = self.clients.runtime().spawn(async move { real.close().await });
                self.clients.each[client].tasks.push(closing);
            }
        }
        self.clients.has_news = true;
    }

    /// Asserts that the clients that were closed have left nothing behind.
    pub fn check_closed(&mut self) {
        for client in 0..self.clients.each.len() {
            let viewers: Vec<usize> = self.clients.each[client].viewers.keys().copied().collect();
            viewers.into_iter().for_each(|viewer| self.real_viewer_goes(client, viewer));
        }
    }

    pub fn check_nothing_is_left_of_clients(&self) {
        for (number, gateway) in self.clients.each.iter().enumerate() {
            let RealGateway { requests, subscriptions, at_broker, tasks, .. } = gateway;
            let running = tasks.iter().filter(|task| !task.is_finished()).count();
            let left = (requests.len(), subscriptions.len(), at_broker.len(), running);
            assert_eq!(left, (0, 0, 0, 0), "leak: client {number}: requests, subscriptions, at the broker, tasks");
            let holders = Arc::strong_count(&gateway.transport);
            assert_eq!(holders, 1, "leak: client {number}: its transport is still held");
        }
        if let Some(runtime) = &self.clients.runtime {
            let alive = runtime.metrics().num_alive_tasks();
            assert_eq!(alive, 0, "leak: tasks of clients");
        }
    }

    /// Distinct subscribers of the gateways with a client, and whether its client says that it is registered.
    pub fn real_viewers(&self) -> impl Iterator<Item = (usize, &RealViewer)> {
        let each = self.clients.each.iter().enumerate();
        each.flat_map(|(number, gateway)| gateway.viewers.values().map(move |viewer| (number, viewer)))
    }
}
