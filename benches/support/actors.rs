//! The design that the service replaces: a task for each subscriber and for each stream.
//!
//! A subscriber is a tokio task with a channel of 100 messages and its state asked for through a oneshot, found in a
//! concurrent map by `stream:client`. A stream is a task with an interval and a watch channel. Written for the benches,
//! as such programs are commonly written.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dashmap::DashMap;
use orchestrator_service::wire::proto;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

/// What a subscriber's task is told.
#[derive(Debug)]
pub enum ToSubscriber {
    /// It is still there.
    Heartbeat,
    /// How is it?
    GetState(oneshot::Sender<SubscriberState>),
    /// It is to end.
    Stop,
}

/// What a subscriber's task answers.
#[derive(Clone, Debug)]
pub struct SubscriberState {
    /// When it was last heard of.
    pub last_heartbeat: Instant,
}

/// All subscribers' tasks.
#[derive(Clone, Debug, Default)]
pub struct Subscribers {
    tasks: Arc<DashMap<String, mpsc::Sender<ToSubscriber>>>,
}

impl Subscribers {
    /// Starts a subscriber's task.
    pub fn register(&self, stream: &str, client: &str) {
        let (sender, mut inbox) = mpsc::channel(100);
        let key = format!("{stream}:{client}");
        let mut state = SubscriberState { last_heartbeat: Instant::now() };
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                match message {
                    ToSubscriber::Heartbeat => state.last_heartbeat = Instant::now(),
                    ToSubscriber::GetState(answer) => drop(answer.send(state.clone())),
                    ToSubscriber::Stop => break,
                }
            }
        });
        self.tasks.insert(key, sender);
    }

    /// Passes a heartbeat on.
    pub async fn heartbeat(&self, stream: &str, client: &str) -> bool {
        let key = format!("{stream}:{client}");
        let Some(task) = self.tasks.get(&key).map(|entry| entry.value().clone()) else { return false };
        task.send(ToSubscriber::Heartbeat).await.is_ok()
    }

    /// Asks everybody, and ends those who were not heard of after `since`.
    pub async fn sweep(&self, since: Instant) -> usize {
        let tasks: Vec<_> = self.tasks.iter().map(|entry| (entry.key().clone(), entry.value().clone())).collect();
        let mut removed = 0;
        for (key, task) in tasks {
            let (answer, state) = oneshot::channel();
            if task.send(ToSubscriber::GetState(answer)).await.is_err() {
                continue;
            }
            if state.await.is_ok_and(|state| state.last_heartbeat <= since) {
                let _ = task.send(ToSubscriber::Stop).await;
                self.tasks.remove(&key);
                removed += 1;
            }
        }
        removed
    }
}

/// Starts a stream's task: it makes an update each interval, and tells how late it was.
pub fn stream(
    id: String,
    scenes: Vec<(String, u64)>,
    interval: Duration,
    note_late: impl Fn(Duration) + Send + 'static,
) -> (JoinHandle<()>, watch::Receiver<Bytes>) {
    let (updates, receiver) = watch::channel(Bytes::new());
    let task = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let begun = Instant::now();
        let total_ms: u64 = scenes.iter().map(|(_, ms)| ms).sum();
        let mut sequence = 0;
        loop {
            let due = ticks.tick().await;
            sequence += 1;
            let position = begun.elapsed().as_millis() as u64 % total_ms;
            let mut start = 0;
            let mut present = (0, 0, 0);
            for (place, (_, ms)) in scenes.iter().enumerate() {
                if position < start + ms {
                    present = (place, position - start, start + ms - position);
                    break;
                }
                start += ms;
            }
            let update = proto::StateUpdate {
                stream_id: id.clone(),
                current_scene: Some(scenes[present.0].0.clone()),
                current_time: position,
                time_remaining: total_ms - position,
                progress_percentage: position as f64 * 100.0 / total_ms as f64,
                is_running: true,
                sequence,
                total_duration: total_ms,
                scene_index: Some(present.0 as u32),
                scene_elapsed: present.1,
                scene_remaining: present.2,
                ..Default::default()
            };
            if updates.send(update.encode_to_vec().into()).is_err() {
                return;
            }
            note_late(due.elapsed());
        }
    });
    (task, receiver)
}
