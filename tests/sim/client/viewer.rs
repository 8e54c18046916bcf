//! What a gateway does for a viewer, with the real client: subscribe, register, show what comes, and again if that fails.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orchestrator_service::{
    client::{Client, ClientError, Registration, Standing, UpdateStream},
    wire::proto::{self, StateUpdate},
};
use tokio::sync::oneshot;

use super::transport::Calls;

/// After that somebody who was refused is tried for again, plus some ms of its own: they are not all at once.
const RETRY: Duration = Duration::from_millis(1_000);

/// Something that a task of this world has to say.
#[derive(Debug)]
pub enum Told {
    /// A viewer's subscription is there: what was shown before was of another one.
    Opened,
    /// A viewer is shown this.
    Shown(Box<StateUpdate>),
    /// What it followed has ended, and it is registered no more.
    Ended,
    /// The client says so of its registration.
    Standing(Standing),
    /// Subscribing or registering was refused, or nobody answered.
    Failed(ClientError),
}

/// What was said and not heard yet, each with the number of the viewer.
#[derive(Debug)]
pub struct Tale {
    told: Mutex<VecDeque<(usize, Told)>>,
    calls: Arc<Calls>,
}

impl Tale {
    pub fn new(calls: Arc<Calls>) -> Self {
        Self { told: Mutex::default(), calls }
    }

    pub fn push(&self, viewer: usize, told: Told) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push_back((viewer, told));
        self.calls.wake();
    }

    pub fn pop(&self) -> Option<(usize, Told)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The filters of this world, as the client sends them. Scenes have names such that some streams have all of them.
pub fn filters() -> [proto::Filter; 3] {
    let scenes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    [
        proto::Filter { changes_only: true, ..Default::default() },
        proto::Filter { min_interval_ms: 1_000, min_progress: 1.0, ..Default::default() },
        proto::Filter { scene: scenes(&["last", "scene 1"]), ..Default::default() },
    ]
}

/// Who watches what.
#[derive(Debug)]
pub struct Who {
    pub viewer: usize,
    pub stream_id: String,
    pub client_id: String,
    pub session: u64,
    /// Which of the filters it follows, if any.
    pub filter: Option<usize>,
}

/// Watches until `leave`, at whichever point that comes.
pub async fn view(client: Client, who: Who, tale: Arc<Tale>, leave: oneshot::Receiver<()>) {
    tokio::select! {
        biased;
        _ = leave => {}
        () = watch(&client, &who, &tale) => {}
    }
}

async fn watch(client: &Client, who: &Who, tale: &Tale) {
    loop {
        match begin(client, who, tale).await {
            Ok((updates, registration)) => {
                show(updates, registration, who, tale).await;
                tale.push(who.viewer, Told::Ended);
            }
            Err(error) => tale.push(who.viewer, Told::Failed(error)),
        }
        tokio::time::sleep(RETRY + Duration::from_millis(who.viewer as u64 % 97)).await;
    }
}

async fn begin(client: &Client, who: &Who, tale: &Tale) -> Result<(UpdateStream, Registration), ClientError> {
    let mut updates = match who.filter {
        None => client.updates(&who.stream_id).await?,
        Some(filter) => client.follow(&who.stream_id, &filters()[filter]).await?,
    };
    tale.push(who.viewer, Told::Opened);
    let address = (who.session % 3 == 1).then(|| ([192, 0, 2, 7], 51_000).into());
    let registration = client.register(&who.stream_id, &who.client_id, address, who.session).await?;
    // Who follows a filter begins with the state that it was answered.
    if who.filter.is_none() && updates.seed(registration.state()) {
        tale.push(who.viewer, Told::Shown(Box::new(registration.state().clone())));
    }
    Ok((updates, registration))
}

/// Shows what comes, until nothing does any more.
async fn show(mut updates: UpdateStream, registration: Registration, who: &Who, tale: &Tale) {
    let mut standing = registration.watch();
    tale.push(who.viewer, Told::Standing(*standing.borrow_and_update()));
    loop {
        tokio::select! {
            biased;
            update = updates.next() => match update {
                Some(update) => tale.push(who.viewer, Told::Shown(Box::new(update))),
                None => return,
            },
            changed = standing.changed() => {
                tale.push(who.viewer, Told::Standing(*standing.borrow_and_update()));
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
