//! A headless Chromium, spoken to over its DevTools protocol.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// How long anything in a browser may take: it starts slowly on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// `$CHROMIUM`, or one on the PATH.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
    let found =
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.is_file());
    found.expect("no Chromium found: `.ci/test` installs it; or `apt-get install chromium`, or CHROMIUM=/path/to/it")
}

/// The browser with one page. Killed by its own id when it is dropped.
pub(crate) struct Browser {
    child: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    last: u64,
    /// What went wrong in the page.
    errors: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let profile = TempDir::new().expect("a folder");
        let mut child = Command::new(program())
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Chromium starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let url = tokio::task::spawn_blocking(move || {
            let url = lines
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| line.split_once("DevTools listening on ").map(|(_, url)| url.to_owned()));
            // What it says later is read, so that it can go on saying it.
            std::thread::spawn(move || lines.for_each(drop));
            url
        });
        let url = tokio::time::timeout(LIMIT, url)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("it says where it listens");
        let (socket, _) = connect_async(url).await.expect("its DevTools answer");
        let mut browser =
            Self { child, socket, session: String::new(), last: 0, errors: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", target).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page.enable", "Runtime.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser
    }

    /// Calls a method and gives its result.
    pub(crate) async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(message.to_string())).await.expect("sent");
        loop {
            let message =
                tokio::time::timeout(LIMIT, self.socket.next()).await.expect("in time").expect("open").expect("open");
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if message["method"] == "Runtime.exceptionThrown" {
                self.errors.push(message["params"]["exceptionDetails"].to_string());
            }
            if message["id"] == self.last {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
        }
    }

    pub(crate) async fn open(&mut self, url: &str) {
        // A change of the fragment alone would load nothing.
        self.call("Page.navigate", json!({"url": "about:blank"})).await;
        self.call("Page.navigate", json!({"url": url})).await;
        self.until("document.readyState === 'complete'").await;
    }

    pub(crate) async fn width(&mut self, width: u32) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// What an expression is worth in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", parameters).await;
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true, and says how long that took.
    pub(crate) async fn until(&mut self, expression: &str) -> Duration {
        let begun = Instant::now();
        while self.value(expression).await != Value::Bool(true) {
            if begun.elapsed() > LIMIT {
                let page = self.value("document.body.innerText").await;
                panic!("it never came true that {expression}:\n{page}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }

    /// What went wrong in the page since it was last asked.
    pub(crate) fn errors(&mut self) -> Vec<String> {
        std::mem::take(&mut self.errors)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
