//! `Filter`: read in place, checked, and as a message again.

use prost::{DecodeError, encoding::WireType};

use super::{
    proto,
    reader::{double, each_field, number, skip, text},
};
use crate::engine::{Filter, FilterDraft, Invalid, MAX_FILTER_SCENES};

/// Reads the fields of a `Filter` into what was read of it before, as prost merges them.
///
/// Of more scenes than a filter may have, those behind the first one too many are only looked at.
pub(super) fn merge<'a>(draft: &mut FilterDraft<'a>, bytes: &'a [u8]) -> Result<(), DecodeError> {
    each_field(bytes, |tag, wire_type: WireType, rest| {
        match tag {
            1 => {
                let scene = text(wire_type, rest)?;
                if draft.scenes.len() <= MAX_FILTER_SCENES {
                    draft.scenes.push(scene);
                }
            }
            2 => draft.changes_only = number(wire_type, rest)? != 0,
            #[allow(clippy::cast_possible_truncation, reason = "as protobuf reads a uint32")]
            3 => draft.min_interval_ms = number(wire_type, rest)? as u32,
            4 => draft.min_progress = double(wire_type, rest)?,
            tag => skip(wire_type, tag, rest)?,
        }
        Ok(())
    })
}

/// A message as a draft.
pub(super) fn draft(filter: &proto::Filter) -> FilterDraft<'_> {
    let proto::Filter { scene, changes_only, min_interval_ms, min_progress } = filter;
    FilterDraft {
        scenes: scene.iter().map(String::as_str).collect(),
        changes_only: *changes_only,
        min_interval_ms: *min_interval_ms,
        min_progress: *min_progress,
    }
}

/// What [`merge`] would read this from.
pub(super) fn to_proto(draft: &FilterDraft<'_>) -> proto::Filter {
    let FilterDraft { scenes, changes_only, min_interval_ms, min_progress } = draft;
    proto::Filter {
        scene: scenes.iter().map(|scene| (*scene).to_owned()).collect(),
        changes_only: *changes_only,
        min_interval_ms: *min_interval_ms,
        min_progress: *min_progress,
    }
}

impl TryFrom<&proto::Filter> for Filter {
    type Error = Invalid;

    /// Checks a message.
    fn try_from(filter: &proto::Filter) -> Result<Self, Invalid> {
        Self::new(&draft(filter))
    }
}

impl From<&Filter> for proto::Filter {
    fn from(filter: &Filter) -> Self {
        Self {
            scene: filter.scenes().map(str::to_owned).collect(),
            changes_only: filter.changes_only(),
            min_interval_ms: filter.min_interval_ms(),
            min_progress: filter.min_progress(),
        }
    }
}
