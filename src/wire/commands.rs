//! `OrchestratorCommand`: where it belongs, what it says, and the input that it makes.

use prost::{DecodeError, encoding::WireType};

use super::{
    WireLimits,
    decode::{missing, short},
    proto::{self, orchestrator_command::Command},
    reader::{block, each_field, skip, text},
};
use crate::engine::{
    self, AtEnd, Config, Draft, Expected, Input, Invalid, MAX_SCENE_ID_BYTES, Request, Scene, StreamId, WhenEmpty,
};

/// The longest `issued_by`, bytes.
pub const MAX_ISSUED_BY_BYTES: usize = 128;

/// Names the commands once, with their numbers in the oneof; behind the bar those that bring a configuration.
macro_rules! commands {
    ($($number:literal $name:ident),+ | $($number_of_config:literal $with_config:ident),+) => {
        /// Whether a field of that number is a command. All of them name their stream in their own field 1.
        #[allow(clippy::manual_range_patterns, reason = "the numbers need not be in a row")]
        const fn is_command(tag: u32) -> bool {
            matches!(tag, $($number)|+ | $($number_of_config)|+)
        }

        /// Whether it has a configuration, which is its field 2.
        const fn has_config(tag: u32) -> bool {
            matches!(tag, $($number_of_config)|+)
        }

        /// The stream that a command names, unchecked. A command of the contract that is not among these does not
        /// compile.
        #[must_use]
        pub fn stream_id(command: &Command) -> &str {
            match command {
                $(Command::$name(message) => &message.stream_id,)+
                $(Command::$with_config(message) => &message.stream_id,)+
            }
        }

        /// What a command is called in the contract.
        #[must_use]
        pub const fn name(command: &Command) -> &'static str {
            match command {
                $(Command::$name(_) => stringify!($name),)+
                $(Command::$with_config(_) => stringify!($with_config),)+
            }
        }
    };
}

commands! {
    2 Stop, 3 Pause, 4 Resume, 5 ForceScene, 6 SkipScene, 7 UpdateStreamStatus, 9 Reset, 10 Remove, 11 Seek,
    12 PreviousScene, 13 AdjustScene
    | 1 Start, 8 Reconfigure
}

/// Where a message belongs, and its size as far as it shows without decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandRoute<'a> {
    /// The stream, as it is named; not checked, and empty if none is.
    pub stream_id: &'a str,
    /// How many scenes it brings.
    pub scenes: usize,
}

impl<'a> CommandRoute<'a> {
    /// Reads where an `OrchestratorCommand` belongs. Agrees with prost where that decodes the message, and may read one
    /// that it does not: also when fields are repeated, or come in another order, or are unknown.
    ///
    /// # Errors
    /// When the bytes are no such message, as far as that shows.
    pub fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut read: Option<(u32, Self)> = None;
        each_field(bytes, |tag, wire_type, rest| {
            if !is_command(tag) {
                return skip(wire_type, tag, rest);
            }
            // Of several commands the last one counts; what is said twice of the same is merged.
            let (_, route) = match &mut read {
                Some(route) if route.0 == tag => route,
                other => other.insert((tag, Self::default())),
            };
            route.merge(has_config(tag), block(wire_type, rest)?)
        })?;
        Ok(read.map(|(_, route)| route).unwrap_or_default())
    }

    fn merge(&mut self, has_config: bool, bytes: &'a [u8]) -> Result<(), DecodeError> {
        each_field(bytes, |tag, wire_type, rest| {
            match tag {
                1 => self.stream_id = text(wire_type, rest)?,
                2 if has_config => self.scenes += count_scenes(block(wire_type, rest)?)?,
                tag => skip(wire_type, tag, rest)?,
            }
            Ok(())
        })
    }
}

fn count_scenes(config: &[u8]) -> Result<usize, DecodeError> {
    let mut scenes = 0;
    each_field(config, |tag, wire_type, rest| {
        scenes += usize::from(tag == 1 && wire_type == WireType::LengthDelimited);
        skip(wire_type, tag, rest)
    })?;
    Ok(scenes)
}

/// The input that a message makes.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn input<'a>(message: &'a proto::OrchestratorCommand, limits: &WireLimits) -> Result<Input<'a>, Invalid> {
    let command = message.command.as_ref().ok_or_else(|| missing("command", "Start to AdjustScene"))?;
    let stream_id = StreamId::parse(stream_id(command))?;
    let request_id = request_id(&message.request_id, limits)?;
    let expected = Expected {
        revision: message.expected_revision,
        epoch: message.expected_epoch,
        scene: message.expected_scene.as_deref().map(|scene| expected_scene(scene, limits)).transpose()?,
    };
    let request = Request {
        stream_id,
        request_id,
        expected: None,
        issued_by: Some(short("issued_by", &message.issued_by, MAX_ISSUED_BY_BYTES)?).filter(|who| !who.is_empty()),
        command: match command {
            Command::Start(start) => {
                engine::Command::Start(start.config.as_ref().map(|c| config(c, limits)).transpose()?)
            }
            Command::Stop(_) => engine::Command::Stop,
            Command::Pause(_) => engine::Command::Pause,
            Command::Resume(_) => engine::Command::Resume,
            Command::ForceScene(force) => engine::Command::ForceScene(scene_name(&force.scene_name, limits)?),
            Command::SkipScene(_) => engine::Command::SkipScene,
            Command::UpdateStreamStatus(status) => engine::Command::UpdateStreamStatus {
                is_streaming: status.is_streaming,
                stream_time_ms: status.stream_time,
                timecode: short("timecode", &status.timecode, limits.max_timecode_bytes)?,
            },
            Command::Reconfigure(change) => {
                let draft = change.config.as_ref().ok_or_else(|| missing("config", "the new configuration"))?;
                engine::Command::Reconfigure(config(draft, limits)?)
            }
            Command::Reset(_) => engine::Command::Reset,
            Command::Remove(_) => engine::Command::Remove,
            Command::Seek(seek) => engine::Command::Seek(seek.position_ms),
            Command::PreviousScene(_) => engine::Command::PreviousScene,
            Command::AdjustScene(adjust) => engine::Command::AdjustScene(adjust.delta_ms),
        },
    };
    Ok(Input::Command(request.expecting(expected)))
}

/// The configuration that a message asks for, with every default filled in.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn config(message: &proto::OrchestratorConfig, limits: &WireLimits) -> Result<Config, Invalid> {
    let when_empty = match proto::WhenEmpty::try_from(message.when_empty) {
        Ok(proto::WhenEmpty::Restart) => WhenEmpty::Restart,
        Ok(proto::WhenEmpty::Freeze) => WhenEmpty::Freeze,
        Ok(proto::WhenEmpty::RunOn) => WhenEmpty::RunOn,
        Err(_) => {
            let value = message.when_empty;
            return Err(Invalid::new(format!("when_empty must be 0 RESTART, 1 FREEZE or 2 RUN_ON, not {value}")));
        }
    };
    let draft = Draft {
        scenes: message.scenes.iter().enumerate().map(scene).collect::<Result<_, _>>()?,
        tick_interval_ms: message.tick_interval_ms,
        loop_scenes: message.loop_scenes,
        when_empty,
        empty_grace_ms: message.empty_grace_ms,
        idle_timeout_ms: message.idle_timeout_ms,
        starts_at_ms: message.starts_at_ms,
        no_ticks: message.no_ticks,
        title: &message.title,
    };
    Config::new(&draft, &limits.engine)
}

fn scene((place, message): (usize, &proto::SceneConfig)) -> Result<Scene<'_>, Invalid> {
    let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
    let fallback = given(message.fallback_scene.as_str());
    let at_end = match proto::AtEnd::try_from(message.at_end) {
        Ok(proto::AtEnd::Hold) => AtEnd::Hold { max_hold_ms: message.max_hold_ms, fallback },
        Ok(proto::AtEnd::Next) if message.max_hold_ms.is_none() && fallback.is_none() => AtEnd::Next,
        Ok(proto::AtEnd::Next) => {
            let field = if fallback.is_some() { "fallback_scene" } else { "max_hold_ms" };
            return Err(Invalid::new(format!("scenes[{place}].{field} needs at_end to be HOLD")));
        }
        Err(_) => {
            let value = message.at_end;
            return Err(Invalid::new(format!("scenes[{place}].at_end must be 0 NEXT or 1 HOLD, not {value}")));
        }
    };
    Ok(Scene {
        name: &message.name,
        duration_ms: message.duration_ms,
        id: given(message.scene_id.as_str()),
        data: &message.data,
        at_end,
        warn_ms: message.warn_ms,
        danger_ms: message.danger_ms,
    })
}

/// Id or name of a scene, or nothing.
fn expected_scene<'a>(named: &'a str, limits: &WireLimits) -> Result<&'a str, Invalid> {
    short("expected_scene", named, limits.engine.max_scene_name_bytes.max(MAX_SCENE_ID_BYTES))
}

fn scene_name<'a>(name: &'a str, limits: &WireLimits) -> Result<&'a str, Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("scene_name must not be empty"));
    }
    short("scene_name", name, limits.engine.max_scene_name_bytes.max(MAX_SCENE_ID_BYTES))
}

fn request_id<'a>(id: &'a str, limits: &WireLimits) -> Result<Option<&'a str>, Invalid> {
    Ok(Some(short("request_id", id, limits.max_request_id_bytes)?).filter(|id| !id.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn compare(bytes: &[u8]) -> Result<(), TestCaseError> {
        let Ok(message) = proto::OrchestratorCommand::decode(bytes) else { return Ok(()) };
        let scenes = match &message.command {
            Some(
                Command::Start(proto::Start { config, .. }) | Command::Reconfigure(proto::Reconfigure { config, .. }),
            ) => config.as_ref().map_or(0, |config| config.scenes.len()),
            _ => 0,
        };
        let stream_id = message.command.as_ref().map_or("", stream_id);
        prop_assert_eq!(CommandRoute::read(bytes), Ok(CommandRoute { stream_id, scenes }));
        Ok(())
    }

    fn command() -> impl Strategy<Value = proto::OrchestratorCommand> {
        let config = prop::option::of((0..4_usize, any::<bool>())).prop_map(|config| {
            config.map(|(scenes, loop_scenes)| proto::OrchestratorConfig {
                scenes: vec![proto::SceneConfig { name: "Main".into(), duration_ms: 1, ..Default::default() }; scenes],
                loop_scenes,
                ..Default::default()
            })
        });
        let command = ("[a-z]{0,3}", "[a-z]{0,3}", any::<u64>(), config, 0..6_u32).prop_map(
            |(stream_id, scene_name, number, config, which)| match which {
                0 => Command::Start(proto::Start { stream_id, config }),
                1 => Command::Reconfigure(proto::Reconfigure { stream_id, config }),
                2 => Command::ForceScene(proto::ForceScene { stream_id, scene_name }),
                3 => Command::Seek(proto::Seek { stream_id, position_ms: number }),
                4 => Command::Stop(proto::Stop { stream_id }),
                _ => Command::AdjustScene(proto::AdjustScene { stream_id, delta_ms: number as i64 }),
            },
        );
        (prop::option::of(command), "[a-z]{0,3}", any::<Option<u64>>()).prop_map(
            |(command, request_id, expected_revision)| proto::OrchestratorCommand {
                command,
                request_id,
                expected_revision,
                ..Default::default()
            },
        )
    }

    proptest! {
        #[test]
        fn a_command_belongs_where_prost_reads_that_it_does(
            commands in prop::collection::vec(command(), 0..3),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut bytes: Vec<u8> = commands.iter().flat_map(prost::Message::encode_to_vec).collect();
            compare(&bytes)?;
            for (place, byte) in flips {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            compare(&bytes)?;
        }
    }

    #[test]
    fn what_does_not_decode_says_so() {
        assert!(CommandRoute::read(&[0xff, 0xff]).is_err());
    }

    #[test]
    fn a_message_without_a_command_names_the_field() {
        let error = input(&proto::OrchestratorCommand::default(), &WireLimits::default()).unwrap_err();
        assert!(error.0.contains("command"), "{error}");
    }

    fn scene_config() -> impl Strategy<Value = proto::SceneConfig> {
        let hold = prop::option::of((prop::option::of(1..9_u64), "(|Break|Main|x)"));
        let hints = (prop::option::of(0..9_u64), prop::option::of(0..9_u64));
        ("(Break|Main|x)", 1..99_u64, "(|||x|y-1)", ".{0,9}", hold, hints).prop_map(
            |(name, duration_ms, scene_id, data, hold, (warn_ms, danger_ms))| {
                let (max_hold_ms, fallback_scene) = hold.clone().unwrap_or_default();
                let at_end = if hold.is_some() { proto::AtEnd::Hold } else { proto::AtEnd::Next }.into();
                proto::SceneConfig {
                    name,
                    duration_ms,
                    scene_id,
                    data,
                    at_end,
                    max_hold_ms,
                    fallback_scene,
                    warn_ms,
                    danger_ms,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_configuration_is_told_as_it_was_given_with_its_defaults(
            scenes in prop::collection::vec(scene_config(), 1..5),
            numbers in any::<[Option<u16>; 4]>(),
            (loop_scenes, no_ticks, when_empty, title) in (any::<bool>(), any::<bool>(), 0..3_i32, ".{0,9}"),
        ) {
            let [tick, grace, idle, starts_at] = numbers.map(|number| number.map(|number| u64::from(number) + 10));
            let given = proto::OrchestratorConfig {
                scenes,
                tick_interval_ms: tick.map(|ms| ms.min(60_000)),
                loop_scenes,
                when_empty,
                empty_grace_ms: grace,
                idle_timeout_ms: idle,
                starts_at_ms: starts_at,
                no_ticks,
                title,
            };
            let limits = WireLimits::default();
            // Ids that are there twice and fallbacks that lead nowhere are refused.
            let Ok(checked) = config(&given, &limits) else { return Ok(()) };
            let told = crate::wire::encode::config(&checked);
            let with_defaults = proto::OrchestratorConfig {
                tick_interval_ms: Some(given.tick_interval_ms.unwrap_or(100)),
                empty_grace_ms: Some(given.empty_grace_ms.unwrap_or(2_000)),
                idle_timeout_ms: Some(given.idle_timeout_ms.unwrap_or(60_000)),
                ..given
            };
            prop_assert_eq!(&told, &with_defaults);
            prop_assert_eq!(config(&told, &limits), Ok(checked));
        }
    }

    #[test]
    fn what_a_command_may_expect_is_short() {
        let limits = WireLimits::default();
        let stop = || Some(Command::Stop(proto::Stop { stream_id: "show".into() }));
        let message = proto::OrchestratorCommand {
            command: stop(),
            expected_epoch: Some(7),
            expected_scene: Some(String::new()),
            issued_by: "x".repeat(128),
            ..Default::default()
        };
        let Ok(Input::Command(request)) = input(&message, &limits) else { panic!("it is taken") };
        let expected = Expected { epoch: Some(7), scene: Some(""), ..Expected::default() };
        assert_eq!(request.expected.as_deref(), Some(&expected));
        assert_eq!(request.issued_by.map(str::len), Some(128));
        for (message, words) in [
            (
                proto::OrchestratorCommand { issued_by: "x".repeat(129), ..Default::default() },
                "issued_by must have at most 128 bytes, this has 129",
            ),
            (
                proto::OrchestratorCommand { expected_scene: Some("x".repeat(257)), ..Default::default() },
                "expected_scene must have at most 256 bytes",
            ),
        ] {
            let error = input(&proto::OrchestratorCommand { command: stop(), ..message }, &limits).unwrap_err();
            assert!(error.0.contains(words), "{error}");
        }
    }

    #[test]
    fn what_only_a_hold_has_is_refused_without_one() {
        let scene = proto::SceneConfig { name: "Main".into(), duration_ms: 1, ..Default::default() };
        for (scene, words) in [
            (proto::SceneConfig { max_hold_ms: Some(1), ..scene.clone() }, "scenes[0].max_hold_ms needs at_end"),
            (
                proto::SceneConfig { fallback_scene: "Main".into(), ..scene.clone() },
                "scenes[0].fallback_scene needs at_end to be HOLD",
            ),
            (proto::SceneConfig { at_end: 2, ..scene }, "scenes[0].at_end must be 0 NEXT or 1 HOLD, not 2"),
        ] {
            let message = proto::OrchestratorConfig { scenes: vec![scene], ..Default::default() };
            let error = config(&message, &WireLimits::default()).unwrap_err();
            assert!(error.0.contains(words), "{error}");
        }
    }

    #[test]
    fn when_empty_may_not_be_a_number_without_a_name() {
        let message = proto::OrchestratorConfig { when_empty: 3, ..Default::default() };
        assert!(config(&message, &WireLimits::default()).unwrap_err().0.contains("when_empty"));
    }
}
