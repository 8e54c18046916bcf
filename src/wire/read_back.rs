//! Answers to what is asked about one stream besides its state: what it was asked to be, who watches it, and what happened
//! to it. Each is cut to what the connection takes, or refused where nothing of it would fit.

use bytes::Bytes;
use prost::{Message, encoding::encoded_len_varint};

use super::{
    Refusal,
    encode::{self, Now},
    proto,
};
use crate::engine::{Action, Config, HistoryEntry, StateUpdate, SubscriberInfo, Timeline};

/// The most that the cursor of a page of subscribers takes in an answer: key, length and a number of 32 bits, bytes.
const MAX_CURSOR_BYTES: usize = 2 + 10;
/// All fields of an answer here have numbers whose keys are one byte.
const KEY_BYTES: usize = 1;

/// What time it is, ms since 1970.
#[must_use]
pub fn time(wall_ms: u64) -> Bytes {
    dated(wall_ms).encode_to_vec().into()
}

fn dated(wall_ms: u64) -> proto::QueryReply {
    proto::QueryReply { server_time_ms: wall_ms, ..Default::default() }
}

// --- configuration -----------------------------------------------------------------------------------------------

/// What a stream was asked to be, and its state.
///
/// # Errors
/// When that is more than `max_bytes`.
pub fn configured(config: &Config, state: &StateUpdate, now: Now, max_bytes: usize) -> Result<Bytes, Refusal> {
    let reply = proto::QueryReply {
        config: Some(encode::config(config)),
        scene_duration_ms: adjusted(&config.timeline, &state.timeline),
        state: vec![encode::state(state, now)],
        ..Default::default()
    };
    let bytes = reply.encoded_len();
    if bytes > max_bytes {
        return Err(Refusal::TooLarge { bytes, limit: max_bytes });
    }
    Ok(reply.encode_to_vec().into())
}

/// The lengths of a pass, if one of them is not as configured.
fn adjusted(configured: &Timeline, pass: &Timeline) -> Vec<u64> {
    let durations = |timeline: &Timeline| {
        (0..timeline.scene_count()).map(|scene| timeline.duration_ms(scene)).collect::<Vec<u64>>()
    };
    let own = durations(pass);
    if own == durations(configured) { Vec::new() } else { own }
}

// --- subscribers -------------------------------------------------------------------------------------------------

/// A page of subscribers, and the cursor behind it: as many as fit.
///
/// # Errors
/// When not even one fits into `max_bytes`.
pub fn subscribers(
    page: &[SubscriberInfo],
    next_slot: Option<u32>,
    now: Now,
    max_bytes: usize,
) -> Result<Bytes, Refusal> {
    let mut reply = dated(now.wall_ms);
    let besides = reply.encoded_len() + MAX_CURSOR_BYTES;
    reply.subscriber = fitting(page.iter().map(|one| subscriber(one, now)), besides, max_bytes)?;
    let left_out = page.get(reply.subscriber.len()).map(|first| first.slot);
    reply.cursor = left_out.or(next_slot).map(|slot| slot.to_string()).unwrap_or_default();
    Ok(reply.encode_to_vec().into())
}

fn subscriber(info: &SubscriberInfo, now: Now) -> proto::SubscriberInfo {
    proto::SubscriberInfo {
        client_id: info.client_id.to_string(),
        source_addr: info.source.map(|source| source.to_string()).unwrap_or_default(),
        session: info.session,
        last_heard_ms: now.wall_at(info.heard),
        stale: info.is_stale,
    }
}

// --- history -----------------------------------------------------------------------------------------------------

/// What happened to a stream: as much as fits, the newest first.
///
/// # Errors
/// When not even one fits into `max_bytes`.
pub fn history(entries: &[HistoryEntry], now: Now, max_bytes: usize) -> Result<Bytes, Refusal> {
    let mut reply = dated(now.wall_ms);
    let besides = reply.encoded_len();
    reply.history = fitting(entries.iter().map(entry), besides, max_bytes)?;
    Ok(reply.encode_to_vec().into())
}

fn entry(entry: &HistoryEntry) -> proto::HistoryEntry {
    proto::HistoryEntry {
        at_ms: entry.at_ms,
        action: proto::HistoryAction::from(entry.action).into(),
        issued_by: entry.issued_by.to_string(),
        revision: entry.revision,
        mode: proto::Mode::from(entry.mode).into(),
        position_ms: entry.position_ms,
        position_before_ms: entry.position_before_ms,
        planned_position_ms: entry.planned_position_ms,
        loop_count: entry.loop_count,
        scene_index: entry.scene,
    }
}

impl From<Action> for proto::HistoryAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Start => Self::Start,
            Action::Stop => Self::Stop,
            Action::Pause => Self::Pause,
            Action::Resume => Self::Resume,
            Action::ForceScene => Self::ForceScene,
            Action::SkipScene => Self::SkipScene,
            Action::UpdateStreamStatus => Self::UpdateStreamStatus,
            Action::Reconfigure => Self::Reconfigure,
            Action::Reset => Self::Reset,
            Action::Remove => Self::Remove,
            Action::Seek => Self::Seek,
            Action::PreviousScene => Self::PreviousScene,
            Action::AdjustScene => Self::AdjustScene,
            Action::Lifecycle => Self::Lifecycle,
        }
    }
}

/// The first of these that fit together beside so many bytes.
fn fitting<M: Message>(messages: impl Iterator<Item = M>, besides: usize, max_bytes: usize) -> Result<Vec<M>, Refusal> {
    let (mut bytes, mut fitting) = (besides, Vec::new());
    for message in messages {
        let own = message.encoded_len();
        bytes += KEY_BYTES + encoded_len_varint(own as u64) + own;
        if bytes > max_bytes {
            if fitting.is_empty() {
                return Err(Refusal::TooLarge { bytes, limit: max_bytes });
            }
            break;
        }
        fitting.push(message);
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        engine::{Mode, Tick},
        wire::{WireLimits, commands},
    };

    const NOW: Now = Now { tick: Tick(10_000), wall_ms: 1_700_000_010_000 };

    /// A configuration that has everything.
    fn everything() -> proto::OrchestratorConfig {
        let scene = |name: &str, duration_ms| proto::SceneConfig {
            name: name.into(),
            duration_ms,
            ..proto::SceneConfig::default()
        };
        proto::OrchestratorConfig {
            scenes: vec![
                proto::SceneConfig {
                    scene_id: "opening".into(),
                    data: "{\"colour\": \"#f80\"}".into(),
                    warn_ms: Some(1_000),
                    danger_ms: Some(0),
                    ..scene("Intro", 3_000)
                },
                proto::SceneConfig { at_end: proto::AtEnd::Hold.into(), ..scene("Break", 5_000) },
                proto::SceneConfig {
                    at_end: proto::AtEnd::Hold.into(),
                    max_hold_ms: Some(60_000),
                    fallback_scene: "Outro".into(),
                    ..scene("Break", 6_000)
                },
                scene("Main", 10_000),
                scene("Outro", 2_000),
            ],
            tick_interval_ms: Some(250),
            loop_scenes: true,
            when_empty: proto::WhenEmpty::Freeze.into(),
            empty_grace_ms: Some(0),
            idle_timeout_ms: Some(7_000),
            starts_at_ms: Some(1_700_000_000_000),
            no_ticks: true,
            title: "The morning show ☀".into(),
        }
    }

    #[test]
    fn lengths_are_told_where_a_pass_has_others() {
        let config = commands::config(&everything(), &WireLimits::default()).unwrap();
        assert_eq!(adjusted(&config.timeline, &Arc::clone(&config.timeline)), [0; 0]);
        assert_eq!(adjusted(&config.timeline, &config.timeline.with_duration(0, 3_000)), [0; 0]);
        let pass = config.timeline.with_duration(1, 0);
        assert_eq!(adjusted(&config.timeline, &pass), [3_000, 0, 6_000, 10_000, 2_000]);
    }

    fn info(slot: u32, client_id: String) -> SubscriberInfo {
        let source = Some("192.0.2.7:51000".parse().unwrap());
        SubscriberInfo { slot, client_id: client_id.into(), source, session: 7, heard: Tick(9_000), is_stale: false }
    }

    #[test]
    fn a_page_of_subscribers_is_cut_to_what_fits_and_goes_on_behind() {
        let page: Vec<SubscriberInfo> = (0..200).map(|slot| info(slot * 3, "x".repeat(slot as usize % 129))).collect();
        for max_bytes in [400, 1_024, 5_000, 1 << 20] {
            let bytes = subscribers(&page, Some(9_999), NOW, max_bytes).unwrap();
            assert!(bytes.len() <= max_bytes, "{} of {max_bytes}", bytes.len());
            let reply = proto::QueryReply::decode(bytes).unwrap();
            let here = reply.subscriber.len();
            assert!(here > 0 && reply.server_time_ms == NOW.wall_ms);
            let next = page.get(here).map_or(9_999, |next| next.slot);
            assert_eq!(reply.cursor, next.to_string(), "{here} fit into {max_bytes}");
        }
        let last = subscribers(&page, None, NOW, 1 << 20).unwrap();
        let proto::QueryReply { subscriber, cursor, .. } = proto::QueryReply::decode(last).unwrap();
        let expected = proto::SubscriberInfo {
            client_id: String::new(),
            source_addr: "192.0.2.7:51000".into(),
            session: 7,
            last_heard_ms: 1_700_000_009_000,
            stale: false,
        };
        assert_eq!((&subscriber[0], &*cursor), (&expected, ""));
        let refusal = subscribers(&page[128..129], None, NOW, 100).unwrap_err();
        assert_eq!(refusal.code(), proto::Code::ResourceExhausted);
    }

    #[test]
    fn a_history_is_cut_to_what_fits() {
        let entry = |revision: u64| HistoryEntry {
            at_ms: 1_700_000_000_000,
            action: Action::Seek,
            issued_by: "x".repeat(revision as usize % 129).into(),
            revision,
            mode: Mode::Running,
            position_ms: 1,
            position_before_ms: 2,
            planned_position_ms: 3,
            loop_count: 4,
            scene: Some(0),
        };
        let entries: Vec<HistoryEntry> = (1..=256).rev().map(entry).collect();
        for max_bytes in [400, 1_024, 5_000, 1 << 20] {
            let bytes = history(&entries, NOW, max_bytes).unwrap();
            assert!(bytes.len() <= max_bytes, "{} of {max_bytes}", bytes.len());
            let told = proto::QueryReply::decode(bytes).unwrap().history;
            assert_eq!(told.first().map(|entry| (entry.revision, entry.scene_index)), Some((256, Some(0))));
            assert_eq!(told.len() == 256, max_bytes == 1 << 20, "{} fit into {max_bytes}", told.len());
        }
        assert_eq!(history(&entries, NOW, 20).unwrap_err().code(), proto::Code::ResourceExhausted);
        assert!(!history(&[], NOW, 20).unwrap().is_empty(), "an answer is never empty");
    }

    #[test]
    fn commands_have_the_same_numbers_in_a_history() {
        let contract = include_str!("../../proto/orchestrator.proto");
        let commands =
            contract.split_once("message OrchestratorCommand {").and_then(|(_, rest)| rest.split_once("  }"));
        let mut compared = 0;
        for line in commands.expect("its oneof").0.lines().filter(|line| line.contains(" = ")) {
            let mut words = line.split_whitespace().skip(1);
            let (Some(field), Some("="), Some(number)) = (words.next(), words.next(), words.next()) else { continue };
            let name = format!("HISTORY_ACTION_{}", field.to_uppercase());
            let action = proto::HistoryAction::from_str_name(&name).unwrap_or_else(|| panic!("{name} is there"));
            assert_eq!(number.trim_end_matches(';').parse(), Ok(action as i32), "{name}");
            compared += 1;
        }
        assert_eq!(compared, 13, "every command was compared");
    }
}
