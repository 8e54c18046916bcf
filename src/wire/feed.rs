//! A feed's message, update by update: which stream each is of, without decoding the rest of it.
//!
//! Who reads a feed follows some of a partition's streams and has no use for the others' updates. The peeks are prost
//! messages of their own, so they agree with the full decoding by construction.

use bytes::Bytes;
use prost::{DecodeError, Message as _};

/// An `UpdateBatch` with its updates as they are.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    update: Vec<Bytes>,
}

/// A `StateUpdate` of which only the stream is of interest.
#[derive(Clone, PartialEq, prost::Message)]
struct Peek {
    #[prost(bytes = "bytes", tag = "1")]
    stream_id: Bytes,
}

/// The updates of an `UpdateBatch`, undecoded: each is a part of the message's own memory.
///
/// # Errors
/// When the bytes are no such message.
pub fn updates(batch: Bytes) -> Result<Vec<Bytes>, DecodeError> {
    Ok(Batch::decode(batch)?.update)
}

/// The stream id of a `StateUpdate`, unchecked.
///
/// # Errors
/// When the bytes are no such message, as far as that shows without looking at other fields.
pub fn stream_id(update: Bytes) -> Result<Bytes, DecodeError> {
    Ok(Peek::decode(update)?.stream_id)
}

/// What an update of so many bytes takes in an `UpdateBatch`.
#[must_use]
pub fn entry_bytes(update_bytes: usize) -> usize {
    // Field 1, which has a key of one byte, and the length.
    1 + prost::length_delimiter_len(update_bytes) + update_bytes
}

/// An `UpdateBatch` in parts of at most `most` bytes, in order; an update that is longer is a part by itself. The parts
/// share the memory.
///
/// # Errors
/// When the bytes are no such message.
pub fn cut(mut batch: Bytes, most: usize) -> Result<Vec<Bytes>, DecodeError> {
    let mut parts = Vec::new();
    let mut end = 0;
    for update in updates(batch.clone())? {
        let entry = entry_bytes(update.len());
        if end > 0 && end + entry > most {
            parts.push(batch.split_to(end));
            end = 0;
        }
        end += entry;
    }
    if !batch.is_empty() {
        parts.push(batch);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{StateUpdate, UpdateBatch};

    #[test]
    fn a_batch_falls_into_its_updates_and_each_tells_its_stream() {
        let update = |id: &str| StateUpdate {
            stream_id: id.into(),
            current_scene: Some("Main".into()),
            progress_percentage: 12.5,
            sequence: 7,
            ..StateUpdate::default()
        };
        let batch = UpdateBatch { update: vec![update("a"), update("b")] };
        let parts = updates(batch.encode_to_vec().into()).unwrap();
        assert_eq!(parts, batch.update.iter().map(StateUpdate::encode_to_vec).collect::<Vec<_>>());
        assert_eq!(parts.into_iter().map(|part| stream_id(part).unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_last_of_repeated_ids_counts_as_it_does_when_all_is_decoded() {
        let twice =
            [StateUpdate { stream_id: "a".into(), ..StateUpdate::default() }.encode_to_vec(), vec![10, 1, b'b']];
        let twice = Bytes::from(twice.concat());
        assert_eq!(stream_id(twice.clone()).unwrap(), StateUpdate::decode(twice).unwrap().stream_id);
        assert_eq!(stream_id(Bytes::new()).unwrap(), "");
    }

    #[test]
    fn a_batch_is_cut_between_updates_and_too_long_a_one_is_alone() {
        let update = |bytes: usize| StateUpdate { stream_id: "a".repeat(bytes), ..StateUpdate::default() };
        // A length of one byte and of two.
        let batch = UpdateBatch { update: [10, 10, 200, 10, 10, 10].map(update).into() };
        let bytes = Bytes::from(batch.encode_to_vec());
        let sizes = |most: usize| {
            let parts = cut(bytes.clone(), most).unwrap();
            assert_eq!(parts.concat(), bytes, "nothing is lost");
            assert!(parts.iter().all(|part| part.len() <= most || updates(part.clone()).unwrap().len() == 1));
            parts.into_iter().map(|part| updates(part).unwrap().len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(28), [2, 1, 2, 1]);
        assert_eq!(sizes(27), [1, 1, 1, 1, 1, 1]);
        assert_eq!(sizes(206 + 14), [2, 2, 2]);
        assert_eq!(sizes(bytes.len()), [6]);
        assert_eq!(cut(Bytes::new(), 10), Ok(vec![]));
        assert!(cut(Bytes::from_static(&[10, 5, 1]), 10).is_err());
    }

    #[test]
    fn what_is_cut_off_does_not_decode() {
        assert!(updates(Bytes::from_static(&[10, 5, 1])).is_err());
        assert!(stream_id(Bytes::from_static(&[10, 5, b'a'])).is_err());
    }
}
