//! Enum values by name in JSON: `"RUNNING"`, not `2`.

use super::proto;

/// Serializes a protobuf enum, which prost keeps as an `i32`, by its name without the enum's own name before it.
macro_rules! by_name {
    ($module:ident, $type:ty, $prefix:literal) => {
        #[doc = concat!("`", stringify!($type), "` by name; a number that this version does not know as `UNKNOWN`.")]
        pub mod $module {
            use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

            #[allow(unused_imports)]
            use super::*;

            /// Writes the name.
            pub fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(name(*value))
            }

            /// Reads the name.
            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
                let name = String::deserialize(deserializer)?;
                <$type>::from_str_name(&format!("{}{name}", $prefix))
                    .map(|value| value as i32)
                    .ok_or_else(|| D::Error::custom(format!("unknown {}: {name}", stringify!($module))))
            }

            /// The name of a value as JSON shows it.
            pub fn name(value: i32) -> &'static str {
                <$type>::try_from(value).map_or("UNKNOWN", |value| {
                    let name = value.as_str_name();
                    name.strip_prefix($prefix).unwrap_or(name)
                })
            }
        }
    };
}

by_name!(mode, proto::Mode, "MODE_");
by_name!(cause, proto::Cause, "CAUSE_");
by_name!(published_to, proto::PublishedTo, "PUBLISHED_TO_");
by_name!(code, proto::Code, "");
by_name!(when_empty, proto::WhenEmpty, "");
by_name!(at_end, proto::AtEnd, "AT_END_");
by_name!(history_action, proto::HistoryAction, "HISTORY_ACTION_");
