//! A way to a server that can be cut, for one side of a conversation to lose its connection while the other keeps it.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections while it is open. Dropping it cuts them for good.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Open, on a port of its own.
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let open = watch::Sender::new(true);
        let accepting = tokio::spawn(accept(listener, target, open.clone()));
        Self { address, open, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Ends what goes through, or lets new connections through again.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set_open(false);
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, open: watch::Sender<bool>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let (mut is_open, target) = (open.subscribe(), target.clone());
        if *is_open.borrow_and_update() {
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(target).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = is_open.wait_for(|open| !open) => {}
                }
            });
        }
    }
}
