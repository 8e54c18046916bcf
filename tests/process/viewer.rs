//! A viewer's WebSocket.

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::support::{program::Program, waiting::LIMIT};

pub(crate) struct Viewer(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Viewer {
    pub(crate) async fn of(gateway: &Program, stream_id: &str, query: &str) -> Self {
        let url = format!("ws://{}/streams/{stream_id}/ws{query}", gateway.web().await);
        Self(connect_async(url).await.expect("the socket opens").0)
    }

    /// The next update; nothing once the socket is closed.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            match tokio::time::timeout(LIMIT, self.0.next()).await.expect("an update") {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).expect("JSON");
                    if message.get("live").is_none() {
                        return Some(message);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The first update like this; they come in the order of their sequences.
    pub(crate) async fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut last = 0;
        loop {
            let update = self.next().await.expect("the socket is open");
            let sequence = update["sequence"].as_u64().expect("a number");
            assert!(sequence >= last, "{sequence} behind {last}");
            last = sequence;
            if is_it(&update) {
                return update;
            }
        }
    }
}
