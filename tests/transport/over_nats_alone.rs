//! What only NATS does: servers that are absent, frozen, leaving, or want a login.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::transport::{
    Connection, Outgoing, Transport as _, TransportError,
    nats::{NatsOptions, NatsTransport},
};

use crate::{
    broker::{nats, outgoing, text, wait_until_connected, within_limit},
    support::{
        nats_server::{NatsServer, ServerOptions},
        waiting::LIMIT,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_absent_at_the_start_is_waited_for() {
    within_limit(async {
        let mut server = NatsServer::absent();
        let transport = nats(server.url()).await;
        assert_eq!(*transport.connection().borrow(), Connection { connected: false, generation: 0 });
        assert_eq!(transport.max_payload(), None, "nobody knows yet");
        let mut messages = VecDeque::from([outgoing("news", "first")]);
        assert_eq!(transport.publish(&mut messages).await, Err(TransportError::Disconnected));
        let mut subscription = transport.subscribe("news", None).await.unwrap();

        server.restart();

        wait_until_connected(&*transport, 1).await;
        transport.publish(&mut messages).await.unwrap();
        assert_eq!(text(&subscription.next().await.expect("a message")), "first");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_publish_ends_with_the_outage_and_keeps_the_rest() {
    within_limit(async {
        let mut server = NatsServer::start();
        let transport = nats(server.url()).await;
        wait_until_connected(&*transport, 1).await;
        transport.barrier().await.unwrap();
        server.freeze();
        // 1 GiB, far more than the sockets and the client's queue of 2,048 messages take.
        let payload = Bytes::from(vec![0; 256 * 1024]);
        let sent: VecDeque<Outgoing> = (0..4096)
            .map(|number| Outgoing { subject: format!("bulk.{number}").into(), payload: payload.clone() })
            .collect();
        let mut messages = sent.clone();

        // Dropped while it waits: it waits for as long as the silence is not noticed.
        let stuck = tokio::time::timeout(Duration::from_millis(500), transport.publish(&mut messages)).await;
        assert!(stuck.is_err(), "{stuck:?}");
        assert!(!messages.is_empty() && messages.len() < sent.len(), "{} left", messages.len());
        let mut publish = transport.publish(&mut messages);
        assert_eq!(publish.as_mut().now_or_never(), None, "it waits again");
        server.kill();
        assert_eq!(publish.await, Err(TransportError::Disconnected));

        assert!(!messages.is_empty());
        let taken = sent.len() - messages.len();
        assert!(messages.iter().eq(sent.iter().skip(taken)), "the rest, in order, from {taken} on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_fell_silent_is_noticed_by_its_missing_pongs() {
    tokio::time::timeout(2 * LIMIT, async {
        let server = NatsServer::start();
        let transport = nats(server.url()).await;
        wait_until_connected(&*transport, 1).await;
        server.freeze();

        let mut watch = transport.connection();
        watch.wait_for(|connection| !connection.connected).await.unwrap();

        server.resume();
        wait_until_connected(&*transport, 2).await;
    })
    .await
    .expect("noticed in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_lame_duck_mode_is_left_for_another() {
    within_limit(async {
        let (leaving, mut staying) = (NatsServer::start(), NatsServer::absent());
        let transport = nats(format!("{},{}", leaving.url(), staying.url())).await;
        wait_until_connected(&*transport, 1).await;
        let mut subscription = transport.subscribe("news", None).await.unwrap();
        staying.restart();

        leaving.signal("ldm");

        wait_until_connected(&*transport, 2).await;
        let elsewhere = nats(staying.url()).await;
        wait_until_connected(&*elsewhere, 1).await;
        transport.barrier().await.unwrap();
        elsewhere.publish(&mut VecDeque::from([outgoing("news", "from the other server")])).await.unwrap();
        assert_eq!(text(&subscription.next().await.expect("a message")), "from the other server");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_in_the_url_is_used_and_never_shown() {
    within_limit(async {
        let login = Some(("user".to_owned(), "p@ss".to_owned()));
        let server = NatsServer::start_with(ServerOptions { login, ..Default::default() });
        let url = server.url().replace("nats://", "nats://user:p%40ss@");
        let options = NatsOptions::new(url, "test");
        assert!(!format!("{options:?}").contains("ss"), "{options:?}");

        let transport = NatsTransport::connect(options).await.unwrap();

        wait_until_connected(&*transport, 1).await;
        assert_eq!(transport.barrier().await, Ok(()));
        assert!(!format!("{transport:?}").contains("p@ss"), "{transport:?}");
        assert!(!format!("{transport:?}").contains("p%40ss"), "{transport:?}");
    })
    .await;
}
