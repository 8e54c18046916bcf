//! Receives requests and hands them to the ingress.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::ReadyChunks};
use metrics::counter;
use tokio::sync::watch;
use tracing::error;

use crate::{
    shard::{ingress::Ingress, thread::Phase},
    transport::{Message, Outgoing, Subscription, Transport, TransportError},
    wire::subject,
};

/// How many messages are taken at a wake-up: one wake-up a message costs more than the message.
const MESSAGES_AT_ONCE: usize = 256;
/// How long an answer to a refused message may wait for the connection. Then its sender finds out by its own timeout.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a service that ends waits for what is still on its way to it: a share of the 5 s that a stop may take.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_millis(500);

/// How soon a subscription that the broker refused is tried again.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// Why requests do not come in at present, as far as their subscription was never made.
pub(super) type NotSubscribed = watch::Sender<Option<String>>;

/// Subscribes to requests; `None` when the broker refuses that, which is noted.
///
/// # Errors
/// Any other reason.
pub(super) async fn subscribe(
    transport: &dyn Transport,
    refused: &NotSubscribed,
) -> Result<Option<Subscription>, TransportError> {
    match transport.subscribe(subject::ALL_REQUESTS, Some(subject::QUEUE_GROUP)).await {
        Ok(subscription) => {
            refused.send_replace(None);
            Ok(Some(subscription))
        }
        Err(TransportError::Denied(denial)) => {
            refused.send_replace(Some(denial.to_string()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn subscribe_again(transport: &dyn Transport, refused: &NotSubscribed) -> Subscription {
    loop {
        tokio::time::sleep(SUBSCRIBE_AGAIN).await;
        match subscribe(transport, refused).await {
            Ok(Some(subscription)) => return subscription,
            Ok(None) => {}
            Err(error) => _ = refused.send_replace(Some(format!("cannot subscribe to requests: {error}"))),
        }
    }
}

/// Receives until the service drains; then takes what has arrived, and ends the subscription.
pub(super) async fn receive(
    subscription: Option<Subscription>,
    ingress: Ingress,
    transport: Arc<dyn Transport>,
    mut phases: watch::Receiver<Phase>,
    refused: Arc<NotSubscribed>,
) {
    let subscription = match subscription {
        Some(subscription) => subscription,
        None => tokio::select! {
            () = stopped(&mut phases) => return,
            subscription = subscribe_again(&*transport, &refused) => subscription,
        },
    };
    let mut messages = subscription.ready_chunks(MESSAGES_AT_ONCE);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut phases) => break,
            chunk = messages.next() => match chunk {
                Some(chunk) => accept(chunk, &ingress, &*transport).await,
                None => {
                    error!("the subscription to requests has ended; nothing is received any more");
                    return;
                }
            },
        }
    }
    let until = tokio::time::Instant::now() + LAST_MESSAGES_TIMEOUT;
    // What reached the broker before is here once a round trip is.
    let _ = tokio::time::timeout_at(until, transport.barrier()).await;
    take_ready(&mut messages, &ingress, &*transport).await;
    // Then nothing more is asked for, and what came in the meantime is here. Not at once: what is on its way when a
    // subscription stops may be lost.
    let _ = tokio::time::timeout_at(until, async {
        messages.get_mut().stop().await?;
        transport.barrier().await
    })
    .await;
    take_ready(&mut messages, &ingress, &*transport).await;
}

async fn take_ready(messages: &mut ReadyChunks<Subscription>, ingress: &Ingress, transport: &dyn Transport) {
    // Without tokio's budget for a task, which would say that nothing is there when it is used up.
    while let Some(Some(chunk)) = tokio::task::unconstrained(messages.next()).now_or_never() {
        accept(chunk, ingress, transport).await;
    }
}

async fn stopped(phases: &mut watch::Receiver<Phase>) {
    let _ = phases.wait_for(|phase| *phase != Phase::Work).await;
}

async fn accept(messages: Vec<Message>, ingress: &Ingress, transport: &dyn Transport) {
    counter!("orchestrator_received_total").increment(messages.len() as u64);
    let mut answers: VecDeque<Outgoing> = messages
        .into_iter()
        .filter_map(|Message { subject, payload, reply }| ingress.accept(&subject, payload, reply))
        .map(|(subject, payload)| Outgoing { subject, payload })
        .collect();
    while !answers.is_empty() {
        let left = answers.len();
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, transport.publish(&mut answers)).await;
        // What was refused by itself has been taken out, and those behind it go on; of a connection that takes nothing
        // all are given up.
        let given_up = match sent {
            Ok(Ok(())) => return,
            _ if answers.len() == left => std::mem::take(&mut answers).len(),
            Ok(Err(TransportError::Denied(_) | TransportError::TooLarge { .. } | TransportError::Refused(_))) => 1,
            _ => 0,
        };
        counter!("orchestrator_dropped_total", "reason" => "answer_not_sent").increment(given_up as u64);
    }
}
