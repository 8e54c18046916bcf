//! What instances say of themselves to each other. Strangers can say it too, so all of it is checked.

use bytes::Bytes;
use prost::Message as _;

use super::{proto, subject};
use crate::engine::StreamId;

/// Longest message that is looked into, bytes.
const MAX_BYTES: usize = 512;
/// Longest id of an instance, bytes.
const MAX_INSTANCE_BYTES: usize = 64;
/// Longest name, bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Reads a `Presence` that came on `to`; `None` for what is none, or not well-formed, or another instance's.
#[must_use]
pub fn read(to: &str, payload: &[u8]) -> Option<proto::Presence> {
    if payload.len() > MAX_BYTES {
        return None;
    }
    let presence = proto::Presence::decode(payload).ok()?;
    let proto::Presence { instance, name, .. } = &presence;
    let fine = instance.len() <= MAX_INSTANCE_BYTES
        && StreamId::parse(instance).is_ok()
        && name.len() <= MAX_NAME_BYTES
        && !name.chars().any(char::is_control)
        && subject::presence(instance).as_str() == to;
    fine.then_some(presence)
}

/// A presence as it is published.
#[must_use]
pub fn write(presence: &proto::Presence) -> Bytes {
    presence.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_well_formed_and_about_its_sender_is_a_presence() {
        let good = proto::Presence { instance: "a-1".into(), started_at_ms: 7, name: "host".into(), leaving: false };
        let read_on = |to: &str, presence: &proto::Presence| read(to, &presence.encode_to_vec());
        assert_eq!(read_on("orchestrator.i.a-1.presence", &good), Some(good.clone()));
        assert_eq!(read_on("orchestrator.i.a-2.presence", &good), None);
        for bad in [
            proto::Presence { instance: String::new(), ..good.clone() },
            proto::Presence { instance: "a.b".into(), ..good.clone() },
            proto::Presence { instance: "a".repeat(65), ..good.clone() },
            proto::Presence { name: "x".repeat(129), ..good.clone() },
            proto::Presence { name: "line\nline".into(), ..good.clone() },
        ] {
            let to = format!("orchestrator.i.{}.presence", bad.instance);
            assert_eq!(read_on(&to, &bad), None, "{bad:?}");
        }
        assert_eq!(read("orchestrator.i.a-1.presence", &[0xff]), None);
        assert_eq!(read("orchestrator.i.a-1.presence", &[0; 513]), None);
    }
}
