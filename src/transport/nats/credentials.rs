//! A `.creds` file: a user's JWT and the key that proves it is theirs.
//!
//! It is read for each attempt to connect, since whoever issues such files renews them before they expire.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

/// The largest file, bytes: some ten times what the longest of them has.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What the file says.
pub(super) struct Credentials {
    jwt: String,
    key: KeyPair,
}

impl Credentials {
    /// Reads the file, away from the tasks that must go on.
    pub(super) async fn read(path: PathBuf) -> io::Result<Self> {
        tokio::task::spawn_blocking(move || Self::read_now(&path)).await.map_err(io::Error::other)?
    }

    fn read_now(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Self::parse(&text).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// The first two texts between lines of dashes. No error repeats any of them.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let is_fence = |line: &str| line.len() > 6 && line.starts_with("---") && line.ends_with("---");
        let is_text = |line: &str| !line.is_empty() && !is_fence(line);
        let mut fenced = lines.windows(3).filter(|lines| is_fence(lines[0]) && is_text(lines[1]) && is_fence(lines[2]));
        let jwt = fenced.next().ok_or("there is no JWT in it")?[1].to_owned();
        let seed = fenced.next().ok_or("there is no key in it")?[1];
        let key = KeyPair::from_seed(seed).map_err(|_| "the key in it is none")?;
        Ok(Self { jwt, key })
    }

    /// What the server is told, which has asked with this nonce.
    pub(super) fn auth(self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let signature = self.key.sign(nonce).map_err(|_| AuthError::new("the key cannot sign"))?;
        let mut auth = Auth::new();
        (auth.jwt, auth.signature) = (Some(self.jwt), Some(signature));
        Ok(auth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n"
        )
    }

    #[test]
    fn a_file_has_a_jwt_and_a_key_that_signs() {
        let key = KeyPair::new_user();
        let text = file("header.claims.signature", &key.seed().unwrap());
        for text in [text.clone(), text.replace('\n', "\r\n"), text.trim_end().to_owned()] {
            let credentials = Credentials::parse(&text).map_err(str::to_owned).expect("credentials");
            let auth = credentials.auth(b"nonce").expect("signed");
            assert_eq!(auth.jwt.as_deref(), Some("header.claims.signature"));
            key.verify(b"nonce", &auth.signature.expect("a signature")).expect("its own");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused_without_repeating_it() {
        let seed = KeyPair::new_user().seed().unwrap();
        let half = file("jwt", &seed).split("BEGIN USER").next().unwrap().to_owned();
        for text in
            [String::new(), "secret".to_owned(), half, file("jwt", "SUsecret"), file("", &seed), file("jwt", "")]
        {
            let refusal = Credentials::parse(&text).map(drop).expect_err(&text);
            assert!(!refusal.contains("secret"), "{refusal}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(Credentials::read_now(folder.path()).is_err(), "a folder");
        assert!(Credentials::read_now(&folder.path().join("absent")).is_err());
    }
}
