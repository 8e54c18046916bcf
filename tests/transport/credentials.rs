//! Credentials that end, at a real server that asks for them: an operator, an account and users, each a key that signs the
//! next one's JWT.

use std::{fmt::Write as _, path::Path};

use nkeys::KeyPair;
use orchestrator_service::transport::{
    Transport as _,
    nats::{NatsOptions, NatsTransport},
};

use crate::{
    broker::{wait_until_away, wait_until_connected},
    support::{
        nats_server::{NatsServer, ServerOptions},
        waiting::{LIMIT, eventually, wall_ms},
    },
};

/// As JWTs have it: the alphabet for URLs, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// What `issuer` says of `subject`, until that second since 1970.
fn jwt(issuer: &KeyPair, subject: &KeyPair, expires: Option<u64>, claims: &str) -> String {
    let (from, of, now) = (issuer.public_key(), subject.public_key(), wall_ms() / 1_000);
    let mut body = format!("{{\"jti\":\"{of}\",\"iat\":{now},\"iss\":\"{from}\",\"name\":\"test\",\"sub\":\"{of}\"");
    if let Some(expires) = expires {
        write!(body, ",\"exp\":{expires}").expect("written");
    }
    write!(body, ",\"nats\":{{{claims},\"version\":2}}}}").expect("written");
    let said = format!("{}.{}", base64url(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#), base64url(body.as_bytes()));
    let signature = issuer.sign(said.as_bytes()).expect("a private key");
    format!("{said}.{}", base64url(&signature))
}

/// Who may let users in.
struct Account {
    keys: KeyPair,
    /// For the server.
    config: String,
}

impl Account {
    fn new() -> Self {
        let (operator, keys) = (KeyPair::new_operator(), KeyPair::new_account());
        let limits = "\"subs\":-1,\"data\":-1,\"payload\":-1,\"imports\":-1,\"exports\":-1,\"wildcards\":true,\
                      \"conn\":-1,\"leaf\":-1";
        let account = jwt(&operator, &keys, None, &format!("\"type\":\"account\",\"limits\":{{{limits}}}"));
        let operator = jwt(&operator, &operator, None, "\"type\":\"operator\"");
        let config = format!(
            "operator: \"{operator}\"\nresolver: MEMORY\nresolver_preload {{ {}: \"{account}\" }}\n",
            keys.public_key()
        );
        Self { keys, config }
    }

    /// Writes the credentials of a user who is let in for so many seconds.
    fn write(&self, path: &Path, seconds: u64) {
        let user = KeyPair::new_user();
        let expires = Some(wall_ms() / 1_000 + seconds);
        let jwt = jwt(&self.keys, &user, expires, "\"type\":\"user\",\"subs\":-1,\"data\":-1,\"payload\":-1");
        let seed = user.seed().expect("a private key");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(path, text).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_end_are_followed_by_those_in_the_file_by_then() {
    // It waits for some of them to end.
    tokio::time::timeout(4 * LIMIT, async {
        let account = Account::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user.creds");
        let server = NatsServer::start_with(ServerOptions { more: account.config.clone(), ..Default::default() });
        account.write(&path, 5);
        let options = NatsOptions { credentials: Some(path.clone()), ..NatsOptions::new(server.url(), "test") };
        let transport = NatsTransport::connect(options).await.expect("a transport");
        wait_until_connected(&*transport, 1).await;
        transport.barrier().await.expect("let in");

        // Renewed in time.
        account.write(&path, 20);
        wait_until_connected(&*transport, 2).await;
        eventually_a_barrier(&transport).await;

        // Renewed too late.
        wait_until_away(&*transport).await;
        account.write(&path, 3_600);
        wait_until_connected(&*transport, 3).await;
        eventually_a_barrier(&transport).await;
    })
    .await
    .expect("it ends in time");
}

async fn eventually_a_barrier(transport: &NatsTransport) {
    eventually("the new login is let in", async || transport.barrier().await.is_ok()).await;
}
