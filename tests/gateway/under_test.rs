//! A service, a client and a gateway in one process, and somebody to talk to the gateway.

use std::sync::Arc;

use orchestrator_service::{
    client::{Client, ClientOptions, UpdatesFrom, proto::Stats},
    gateway::{Gateway, GatewayOptions},
    service::{Service, ServiceSettings},
    shard::publish_queue::PublishTo,
    transport::{Transport, memory::MemoryBus},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::support::waiting::eventually;

pub(crate) struct Options {
    pub(crate) gateway: GatewayOptions,
    pub(crate) client: ClientOptions,
    pub(crate) service: ServiceSettings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gateway: GatewayOptions::default(),
            client: ClientOptions::default(),
            service: ServiceSettings { shards: 2, ..ServiceSettings::default() },
        }
    }
}

impl Options {
    /// The service publishes feeds and nothing else, and the gateway reads them.
    pub(crate) fn over_the_feed() -> Self {
        let mut options = Self::default();
        options.service.publish_to = PublishTo::Feed;
        options.client.updates = UpdatesFrom::Feed;
        options
    }
}

pub(crate) struct GatewayUnderTest {
    pub(crate) bus: MemoryBus,
    pub(crate) client: Client,
    pub(crate) gateway: Gateway,
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    http: reqwest::Client,
    service: Option<Service>,
    settings: ServiceSettings,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl GatewayUnderTest {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let bus = MemoryBus::new();
        let client = Client::new(bus.connect(), options.client);
        let gateway = Gateway::new(client.clone(), options.gateway);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn({
            let gateway = gateway.clone();
            async move { gateway.serve(listener, async { _ = stopped.await }).await }
        });
        let mut world = Self {
            bus,
            client,
            gateway,
            address,
            http: reqwest::Client::new(),
            service: None,
            settings: options.service,
            stop: Some(stop),
            serving,
        };
        world.start_service().await;
        world
    }

    pub(crate) async fn start_service(&mut self) {
        let link = || -> Arc<dyn Transport> { self.bus.connect() };
        let service = Service::start(self.settings.clone(), link(), vec![link()]).await.expect("started");
        self.service = Some(service);
    }

    pub(crate) async fn stop_service(&mut self) {
        self.service.take().expect("running").drain().await;
    }

    /// Lets the gateway shut down and waits until it has.
    pub(crate) async fn stop_gateway(&mut self) {
        let _ = self.stop.take().expect("running").send(());
        (&mut self.serving).await.expect("no panic").expect("no error");
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    /// Sends a request and gives the status and the JSON of the answer, which must be JSON.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let response = request.send().await.expect("the gateway answers");
        let status = response.status();
        let content_type = response.headers().get("content-type").expect("a type").to_str().expect("text").to_owned();
        let text = response.text().await.expect("a whole answer");
        assert_eq!(content_type, "application/json", "{status} {text}");
        (status, serde_json::from_str(&text).expect("JSON"))
    }

    pub(crate) async fn post(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::POST, path)).await
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::GET, path)).await
    }

    /// Creates a stream of `name`, with three scenes of 15 s in all.
    pub(crate) async fn create(&self, name: &str) -> Value {
        self.create_with(name, json!({})).await
    }

    pub(crate) async fn create_with(&self, name: &str, more: Value) -> Value {
        let mut config = json!({"stream_id": name, "scenes": scenes()});
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let (status, answer) = self.send(self.request(Method::POST, "/streams").json(&config)).await;
        assert_eq!(status, 201, "{answer}");
        answer
    }

    pub(crate) async fn mode(&self, name: &str) -> Value {
        self.get(&format!("/streams/{name}")).await.1["mode"].take()
    }

    pub(crate) async fn stats(&self, name: &str) -> Stats {
        self.client.stats(Some(name)).await.expect("stats")
    }

    /// Waits until a stream has so many subscribers.
    pub(crate) async fn until_viewers(&self, name: &str, viewers: u64) {
        eventually("the viewers are as many", async || self.stats(name).await.total == viewers).await;
    }
}

pub(crate) fn scenes() -> Value {
    json!([
        {"name": "Intro", "duration_ms": 3000},
        {"name": "Main", "duration_ms": 10000},
        {"name": "Outro", "duration_ms": 2000},
    ])
}
