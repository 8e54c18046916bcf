//! A NATS server that does what the test tells it and remembers what it was told: the parts of the protocol that the
//! transport uses, with the faults of a real server at the moment that the test wants them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::{Notify, mpsc},
    task::JoinHandle,
};

/// Accepts connections until it is dropped.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    end_connections: Arc<Notify>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct State {
    /// What each connection said of itself, in JSON.
    pub(crate) connects: Vec<String>,
    /// Of the present connection: pattern by its number.
    pub(crate) subscriptions: BTreeMap<u64, String>,
    pub(crate) unsubscribed: Vec<u64>,
    /// Subject, reply subject and payload of what was published.
    pub(crate) published: Vec<(String, String, String)>,
    /// Subscriptions to what begins like this are refused.
    pub(crate) refused: Option<&'static str>,
    /// Nothing that is published is passed on.
    pub(crate) is_silent: bool,
    to_client: Option<mpsc::UnboundedSender<String>>,
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("nats://{}", listener.local_addr().expect("an address"));
        let (state, end_connections) = (Arc::<Mutex<State>>::default(), Arc::<Notify>::default());
        let (shared, end) = (Arc::clone(&state), Arc::clone(&end_connections));
        let accepting = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                number += 1;
                tokio::select! {
                    _ = serve(stream, number, &shared) => {}
                    () = end.notified() => {}
                }
            }
        });
        Self { url, state, end_connections, accepting }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic before")
    }

    /// Ends the present connection; the next one is accepted at once.
    pub(crate) fn end_connection(&self) {
        self.end_connections.notify_one();
    }

    /// Sends a message to whoever subscribes to its subject.
    pub(crate) fn send(&self, subject: &str, text: &str) {
        self.state().pass_on(subject, text);
    }

    /// Sends these bytes of the protocol.
    pub(crate) fn send_raw(&self, text: String) {
        self.state().to_client(text);
    }

    /// The patterns that are subscribed to, without the client's inbox.
    pub(crate) fn patterns(&self) -> Vec<String> {
        self.state().subscriptions.values().filter(|pattern| !pattern.starts_with("_INBOX")).cloned().collect()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    fn to_client(&self, text: String) {
        if let Some(to_client) = &self.to_client {
            let _ = to_client.send(text);
        }
    }

    fn pass_on(&self, subject: &str, text: &str) {
        for (number, pattern) in &self.subscriptions {
            let matches = pattern.strip_suffix('*').map_or(pattern == subject, |prefix| subject.starts_with(prefix));
            if matches {
                self.to_client(format!("MSG {subject} {number} {}\r\n{text}\r\n", text.len()));
            }
        }
    }

    fn obey(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["CONNECT", ..] => self.connects.push(line.to_owned()),
            ["PING"] => self.to_client("PONG\r\n".to_owned()),
            ["SUB", pattern, .., number] => {
                if self.refused.is_some_and(|prefix| pattern.starts_with(prefix)) {
                    let error = format!("-ERR 'Permissions Violation for Subscription to {pattern:?}'\r\n");
                    return self.to_client(error);
                }
                self.subscriptions.insert(number.parse().expect("a number"), (*pattern).to_owned());
            }
            ["UNSUB", number, ..] => {
                let number = number.parse().expect("a number");
                self.unsubscribed.push(number);
                self.subscriptions.remove(&number);
            }
            _ => {}
        }
    }
}

/// One connection, until it ends.
async fn serve(stream: TcpStream, number: u64, state: &Mutex<State>) -> std::io::Result<()> {
    let (reading, writing) = stream.into_split();
    let (to_client, outgoing) = mpsc::unbounded_channel();
    let nonce = format!("nonce-{number}");
    let info = format!(
        "INFO {{\"server_id\":\"fake\",\"client_id\":{number},\"max_payload\":1048576,\"headers\":true,\
         \"nonce\":{nonce:?}}}\r\n"
    );
    let _ = to_client.send(info);
    {
        let mut state = state.lock().expect("no panic before");
        state.subscriptions.clear();
        state.to_client = Some(to_client);
    }
    // Together, so that both end with this future.
    tokio::select! {
        done = read(BufReader::new(reading), state) => done,
        () = write(writing, outgoing) => Ok(()),
    }
}

async fn write(mut writing: OwnedWriteHalf, mut outgoing: mpsc::UnboundedReceiver<String>) {
    while let Some(text) = outgoing.recv().await {
        if writing.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(mut reading: BufReader<tokio::net::tcp::OwnedReadHalf>, state: &Mutex<State>) -> std::io::Result<()> {
    let mut line = String::new();
    while reading.read_line(&mut line).await? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"PUB") {
            let (subject, size) = (words[1].to_owned(), words[words.len() - 1].parse::<usize>().expect("a size"));
            let reply = if words.len() == 4 { words[2].to_owned() } else { String::new() };
            let mut payload = vec![0; size + 2];
            reading.read_exact(&mut payload).await?;
            let text = String::from_utf8_lossy(&payload[..size]).into_owned();
            let mut state = state.lock().expect("no panic before");
            if !state.is_silent {
                state.pass_on(&subject, &text);
            }
            state.published.push((subject, reply, text));
        } else {
            state.lock().expect("no panic before").obey(line.trim_end());
        }
        line.clear();
    }
    Ok(())
}
