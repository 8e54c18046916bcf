//! What is said to a server, at moments that a real one would not keep still for.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use orchestrator_service::transport::{
    Connection, Transport, TransportError,
    nats::{NatsOptions, NatsTransport},
};

use crate::{
    broker::{NEVER, outgoing, text, wait_until_connected, within_limit},
    fake_server::FakeServer,
    support::waiting::eventually,
};

async fn connected() -> (FakeServer, Arc<NatsTransport>) {
    let server = FakeServer::start().await;
    let transport = NatsTransport::connect(NatsOptions::new(&server.url, "test")).await.expect("a transport");
    wait_until_connected(&*transport, 1).await;
    transport.barrier().await.expect("a barrier");
    (server, transport)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscribe_that_is_cancelled_leaves_nothing_at_the_server() {
    within_limit(async {
        let (server, transport) = connected().await;
        server.state().is_silent = true;
        let mut subscribing = transport.subscribe("news", None);
        assert!(subscribing.as_mut().now_or_never().is_none());
        eventually("it is subscribed", async || server.patterns() == ["news"]).await;

        drop(subscribing);

        assert_eq!(transport.subscriptions(), 1, "the inbox");
        server.state().is_silent = false;
        // What the server has not passed on before, nobody will: the wait for it ends with the connection.
        server.end_connection();
        wait_until_connected(&*transport, 2).await;
        transport.barrier().await.unwrap();
        eventually("nothing is subscribed", async || server.patterns().is_empty()).await;
        // A new connection has a question of its own.
        eventually("nothing is asked", async || transport.pending_requests() == 0).await;
        assert_eq!(transport.subscriptions(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_or_stopped_subscription_is_taken_back_at_the_server() {
    within_limit(async {
        let (server, transport) = connected().await;
        let dropped = transport.subscribe("dropped", None).await.unwrap();
        let mut stopped = transport.subscribe("stopped", Some("group")).await.unwrap();
        server.send("stopped", "the last one");
        transport.barrier().await.unwrap();
        assert_eq!(server.patterns(), ["dropped", "stopped"]);

        drop(dropped);
        stopped.stop().await.unwrap();

        eventually("nothing is subscribed", async || server.patterns().is_empty()).await;
        assert_eq!(server.state().unsubscribed.len(), 2);
        assert_eq!(text(&stopped.next().await.expect("it came before")), "the last one");
        assert!(stopped.next().await.is_none());
        assert_eq!(transport.subscriptions(), 1);

        // Nor does it come back with the next connection.
        server.end_connection();
        wait_until_connected(&*transport, 2).await;
        transport.barrier().await.unwrap();
        assert_eq!(server.patterns(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_finds_nobody_and_the_next_request_gets_its_own() {
    within_limit(async {
        let (server, transport) = connected().await;
        let late = transport.request("question", Bytes::from("first"), Duration::from_millis(50)).await;
        assert!(matches!(late, Err(TransportError::Timeout(_))));
        eventually("nothing is asked", async || transport.pending_requests() == 0).await;
        let reply_of = |asked: &str| {
            let state = server.state();
            state.published.iter().find(|(_, _, text)| text == asked).map(|(_, reply, _)| reply.clone())
        };
        eventually("it was asked", async || reply_of("first").is_some()).await;
        let first = reply_of("first").expect("the first request");

        let mut second = transport.request("question", Bytes::from("second"), NEVER);
        assert!(second.as_mut().now_or_never().is_none());
        eventually("it is asked", async || reply_of("second").is_some()).await;
        server.send(&first, "late");
        server.send(&reply_of("second").expect("the second"), "in time");

        assert_eq!(text(&second.await.unwrap()), "in time");
        server.send(&first, "very late");
        transport.barrier().await.unwrap();
        eventually("nothing is asked", async || transport.pending_requests() == 0).await;
        assert_eq!(transport.dropped(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_while_subscribing_subscribes_with_the_next_connection() {
    within_limit(async {
        let (server, transport) = connected().await;
        server.state().is_silent = true;
        let subscribing = {
            let transport = Arc::clone(&transport);
            tokio::spawn(async move { transport.subscribe("news", None).await })
        };
        eventually("it is subscribed", async || server.patterns() == ["news"]).await;

        server.state().is_silent = false;
        server.end_connection();

        let mut subscription = subscribing.await.unwrap().expect("a subscription");
        wait_until_connected(&*transport, 2).await;
        transport.barrier().await.unwrap();
        assert_eq!(server.patterns(), ["news"]);
        server.send("news", "after the outage");
        assert_eq!(text(&subscription.next().await.expect("a message")), "after the outage");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_too_short_to_be_seen_is_another_connection() {
    within_limit(async {
        let (server, transport) = connected().await;
        server.state().is_silent = true;
        let (watch, mut barrier) = (transport.connection(), transport.barrier());
        assert!(barrier.as_mut().now_or_never().is_none());
        let mut asked = transport.request("question", Bytes::new(), NEVER);
        assert!(asked.as_mut().now_or_never().is_none());

        // Nobody looks at the watch before all of it is over.
        for connections in 2..4 {
            server.end_connection();
            eventually("it has connected again", async || server.state().connects.len() == connections).await;
        }
        server.state().is_silent = false;

        assert_eq!(barrier.await, Err(TransportError::Disconnected), "what was before it may be lost");
        assert_eq!(asked.await.unwrap_err(), TransportError::Disconnected);
        eventually("it has come", async || *watch.borrow() == Connection { connected: true, generation: 3 }).await;
        assert_eq!(transport.barrier().await, Ok(()));
        eventually("nothing is pending", async || transport.pending_requests() == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_come_all_at_once_are_found_out_one_by_one() {
    within_limit(async {
        let (server, transport) = connected().await;
        let mut held = Vec::new();
        for number in 0..200 {
            held.push(transport.subscribe(&format!("news.{number}"), None).await.unwrap());
        }
        // The server has taken them away, and so many other errors come in the same breath that the client reports
        // only the first 128.
        server.state().subscriptions.retain(|_, pattern| pattern.starts_with("_INBOX"));
        server.state().refused = Some("news");
        let mut burst = "-ERR 'Permissions Violation for Publish to \"elsewhere\"'\r\n".repeat(2_000);
        for number in 0..200 {
            burst +=
                &format!("-ERR 'Permissions Violation for Subscription to \"news.{number}\" (sid \"{number}\")'\r\n");
        }
        server.send_raw(burst);

        let mut denied = transport.denied();
        denied.wait_for(|denied| denied.subscribe.len() == 200).await.unwrap();
        assert!(denied.borrow().missed > 0);

        server.state().refused = None;
        denied.wait_for(|denied| denied.subscribe.is_empty()).await.unwrap();
        assert_eq!(server.patterns().len(), 200);
        for (number, subscription) in held.iter_mut().enumerate() {
            server.send(&format!("news.{number}"), "back");
            assert_eq!(text(&subscription.next().await.expect("a message")), "back");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_calls_leave_nothing_behind() {
    within_limit(async {
        let (server, transport) = connected().await;
        server.state().refused = Some("news");
        for _ in 0..20 {
            assert!(transport.subscribe("news", None).await.is_err());
            assert!(transport.subscribe("a..b", None).await.is_err());
            assert!(transport.request("a b", Bytes::new(), NEVER).await.is_err());
            assert!(transport.request("news", Bytes::from(vec![0; 2 << 20]), NEVER).await.is_err());
            assert!(transport.publish(&mut VecDeque::from([outgoing("a.*", "")])).await.is_err());
        }
        transport.barrier().await.unwrap();
        eventually("nothing is asked", async || transport.pending_requests() == 0).await;
        assert_eq!(transport.subscriptions(), 1);
        eventually("nothing is subscribed", async || server.patterns().is_empty()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_is_read_anew_for_each_connection() {
    within_limit(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user.creds");
        let write = |jwt: &str| {
            let seed = nkeys::KeyPair::new_user().seed().unwrap();
            let text = format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            );
            std::fs::write(&path, text).unwrap();
        };
        write("the.first.one");
        let server = FakeServer::start().await;
        let options = NatsOptions { credentials: Some(path.clone()), ..NatsOptions::new(&server.url, "test") };
        let transport = NatsTransport::connect(options).await.expect("a transport");
        wait_until_connected(&*transport, 1).await;
        assert!(server.state().connects[0].contains("\"the.first.one\""));

        write("the.second.one");
        server.end_connection();
        wait_until_connected(&*transport, 2).await;
        assert!(server.state().connects[1].contains("\"the.second.one\""), "{:?}", server.state().connects);
        let signature = |connect: &str| connect.split("\"sig\":").nth(1).map(|rest| rest[..20].to_owned());
        let signatures = server.state().connects.iter().map(|connect| signature(connect)).collect::<Vec<_>>();
        assert!(signatures[0].is_some() && signatures[0] != signatures[1], "each proves another key");

        // For as long as it cannot be read nobody is connected, and then it goes on.
        std::fs::remove_file(&path).unwrap();
        server.end_connection();
        transport.connection().wait_for(|connection| !connection.connected).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(server.state().connects.len(), 2);
        write("the.third.one");
        wait_until_connected(&*transport, 3).await;
        assert!(server.state().connects[2].contains("\"the.third.one\""));
    })
    .await;
}
