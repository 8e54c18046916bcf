//! Messages to inputs: everything that a stranger can send is checked here.

use super::{
    Refusal, WireLimits,
    proto::{self, orchestrator_command::Command as ProtoCommand, query::Query as ProtoQuery},
    subscription::{Kind, Named, Subscription},
};
use crate::engine::{
    Batch, ClientId, Command, Config, Draft, Input, Invalid, Newcomer, Request, Scene, StreamId, Subscriber, WhenEmpty,
    parse_source_addr,
};

/// Decodes the bytes of one message.
///
/// # Errors
/// `INVALID_ARGUMENT` for one over the size limit, `UNDECODABLE` for what is no such message.
pub fn message<M: prost::Message + Default>(bytes: &[u8], limits: &WireLimits) -> Result<M, Refusal> {
    check_size(bytes, limits)?;
    M::decode(bytes).map_err(|error| Refusal::Undecodable(error.to_string()))
}

/// Checks a message's size, before anybody looks into it.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the limit.
pub fn check_size(bytes: &[u8], limits: &WireLimits) -> Result<(), Refusal> {
    if bytes.len() <= limits.max_message_bytes {
        return Ok(());
    }
    let (most, bytes) = (limits.max_message_bytes, bytes.len());
    Err(Invalid::new(format!("a message must have at most {most} bytes, this one has {bytes}")).into())
}

/// A message on `orchestrator.command`.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn command<'a>(message: &'a proto::OrchestratorCommand, limits: &WireLimits) -> Result<Input<'a>, Invalid> {
    let command = message.command.as_ref().ok_or_else(|| missing("command", "Start to AdjustScene"))?;
    Ok(Input::Command(Request {
        stream_id: StreamId::parse(command_stream_id(command))?,
        request_id: request_id(&message.request_id, limits)?,
        expected_revision: message.expected_revision,
        command: match command {
            ProtoCommand::Start(start) => Command::Start(start.config.as_ref().map(|c| config(c, limits)).transpose()?),
            ProtoCommand::Stop(_) => Command::Stop,
            ProtoCommand::Pause(_) => Command::Pause,
            ProtoCommand::Resume(_) => Command::Resume,
            ProtoCommand::ForceScene(force) => Command::ForceScene(scene_name(&force.scene_name, limits)?),
            ProtoCommand::SkipScene(_) => Command::SkipScene,
            ProtoCommand::UpdateStreamStatus(status) => Command::UpdateStreamStatus {
                is_streaming: status.is_streaming,
                stream_time_ms: status.stream_time,
                timecode: short("timecode", &status.timecode, limits.max_timecode_bytes)?,
            },
            ProtoCommand::Reconfigure(change) => {
                let draft = change.config.as_ref().ok_or_else(|| missing("config", "the new configuration"))?;
                Command::Reconfigure(config(draft, limits)?)
            }
            ProtoCommand::Reset(_) => Command::Reset,
            ProtoCommand::Remove(_) => Command::Remove,
            ProtoCommand::Seek(seek) => Command::Seek(seek.position_ms),
            ProtoCommand::PreviousScene(_) => Command::PreviousScene,
            ProtoCommand::AdjustScene(adjust) => Command::AdjustScene(adjust.delta_ms),
        },
    }))
}

/// The stream that a command names, unchecked.
#[must_use]
pub fn command_stream_id(command: &ProtoCommand) -> &str {
    match command {
        ProtoCommand::Start(m) => &m.stream_id,
        ProtoCommand::Stop(m) => &m.stream_id,
        ProtoCommand::Pause(m) => &m.stream_id,
        ProtoCommand::Resume(m) => &m.stream_id,
        ProtoCommand::ForceScene(m) => &m.stream_id,
        ProtoCommand::SkipScene(m) => &m.stream_id,
        ProtoCommand::UpdateStreamStatus(m) => &m.stream_id,
        ProtoCommand::Reconfigure(m) => &m.stream_id,
        ProtoCommand::Reset(m) => &m.stream_id,
        ProtoCommand::Remove(m) => &m.stream_id,
        ProtoCommand::Seek(m) => &m.stream_id,
        ProtoCommand::PreviousScene(m) => &m.stream_id,
        ProtoCommand::AdjustScene(m) => &m.stream_id,
    }
}

/// Reads a message on `orchestrator.subscription`, in place.
///
/// # Errors
/// As [`message`]; `INVALID_ARGUMENT` for one without a command.
pub fn subscription_message<'a>(bytes: &'a [u8], limits: &WireLimits) -> Result<Subscription<'a>, Refusal> {
    check_size(bytes, limits)?;
    let read = Subscription::read(bytes).map_err(|error| Refusal::Undecodable(error.to_string()))?;
    read.ok_or_else(|| missing("command", "Register to UnregisterBatch").into())
}

/// A message on `orchestrator.subscription`. `answered` says whether it came with a reply subject.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn subscription<'a>(message: Subscription<'a>, answered: bool) -> Result<Input<'a>, Invalid> {
    check_entry_count(message.entries())?;
    let names_nobody = message.names_nobody();
    let Subscription { kind, stream_id, named, clients, refused, handles, subscribers, .. } = message;
    let one = || {
        let stream_id = StreamId::parse(stream_id)?;
        Ok(Subscriber { stream_id, client_id: ClientId::parse(named.client_id)?, session: named.session })
    };
    // It may leave the stream out when it names nobody.
    let batch = || {
        let stream_id = if names_nobody { None } else { Some(StreamId::parse(stream_id)?) };
        refused.map_or(Ok(Batch { stream_id, clients, handles }), |refused| Err(refused.why))
    };
    Ok(match kind {
        Kind::Register => {
            Input::Register { stream_id: StreamId::parse(stream_id)?, subscriber: newcomer(&named)?, answered }
        }
        Kind::Unregister => Input::Unregister(one()?),
        Kind::Heartbeat => Input::Heartbeat(one()?),
        Kind::HeartbeatBatch => Input::HeartbeatBatch(batch()?),
        Kind::UnregisterBatch => Input::UnregisterBatch(batch()?),
        Kind::RegisterBatch => Input::RegisterBatch {
            stream_id: StreamId::parse(stream_id)?,
            subscribers: subscribers.iter().map(newcomer).collect(),
            answered,
        },
    })
}

/// Checks a batch for what [`subscription`] would refuse all of it for, and makes nothing of it.
///
/// # Errors
/// As [`subscription`].
pub fn check_batch(message: &Subscription<'_>) -> Result<(), Invalid> {
    check_entry_count(message.entries())?;
    if !message.names_nobody() {
        StreamId::parse(message.stream_id)?;
    }
    message.refused.as_ref().map_or(Ok(()), |refused| Err(refused.why.clone()))
}

/// The most entries of a batch: the answer to all of them, 8 bytes each, fits into the megabyte that a broker takes.
pub const MAX_BATCH_ENTRIES: usize = 100_000;

/// Checks how many a batch names, before anybody looks at them.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the limit.
pub fn check_entry_count(entries: usize) -> Result<(), Invalid> {
    if entries <= MAX_BATCH_ENTRIES {
        return Ok(());
    }
    Err(Invalid::new(format!(
        "a batch must have at most {MAX_BATCH_ENTRIES} entries (subscriber, or client_id and handle), not {entries}"
    )))
}

fn newcomer<'a>(named: &Named<'a>) -> Result<Newcomer<'a>, Invalid> {
    let client_id = ClientId::parse(named.client_id)?;
    Ok(Newcomer { client_id, session: named.session, source: parse_source_addr(named.source_addr)? })
}

/// The most streams in one page, and how many there are if nobody says: 1,000 states of the greatest size stay below
/// the megabyte that a broker takes.
pub const MAX_PAGE: u32 = 1_000;
/// See [`MAX_PAGE`].
pub const DEFAULT_PAGE: u32 = 100;

/// A message on `orchestrator.query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// The state of one stream.
    State(StreamId<'a>),
    /// How many there are: of one stream, or of all.
    Stats(Option<StreamId<'a>>),
    /// A page of streams.
    List {
        /// Most states in the page.
        limit: usize,
        /// Where it begins.
        from: Cursor,
    },
}

/// Where a page of streams begins: opaque for its holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Which shard.
    pub shard: u32,
    /// Which slot of its engine.
    pub slot: u32,
}

impl Cursor {
    fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parts = text.split_once('-').and_then(|(shard, slot)| Some((shard.parse().ok()?, slot.parse().ok()?)));
        parts
            .map(|(shard, slot)| Self { shard, slot })
            .ok_or_else(|| Invalid::new("cursor must be empty or as the page before gave it"))
    }

    /// As it goes into an answer.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}-{}", self.shard, self.slot)
    }
}

/// Checks a query.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn question(message: &proto::Query) -> Result<Question<'_>, Invalid> {
    let query = message.query.as_ref().ok_or_else(|| missing("query", "GetState, ListStreams or GetStats"))?;
    Ok(match query {
        ProtoQuery::GetState(m) => Question::State(StreamId::parse(&m.stream_id)?),
        ProtoQuery::GetStats(m) if m.stream_id.is_empty() => Question::Stats(None),
        ProtoQuery::GetStats(m) => Question::Stats(Some(StreamId::parse(&m.stream_id)?)),
        ProtoQuery::ListStreams(m) => {
            let limit = if m.limit == 0 { DEFAULT_PAGE } else { m.limit };
            if limit > MAX_PAGE {
                return Err(Invalid::new(format!("limit must be 0 (for {DEFAULT_PAGE}) to {MAX_PAGE}, not {limit}")));
            }
            Question::List { limit: limit as usize, from: Cursor::parse(&m.cursor)? }
        }
    })
}

fn config(message: &proto::OrchestratorConfig, limits: &WireLimits) -> Result<Config, Invalid> {
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
        scenes: message.scenes.iter().map(|s| Scene { name: &s.name, duration_ms: s.duration_ms }).collect(),
        tick_interval_ms: message.tick_interval_ms,
        loop_scenes: message.loop_scenes,
        when_empty,
        empty_grace_ms: message.empty_grace_ms,
        idle_timeout_ms: message.idle_timeout_ms,
    };
    Config::new(&draft, &limits.engine)
}

fn scene_name<'a>(name: &'a str, limits: &WireLimits) -> Result<&'a str, Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("scene_name must not be empty"));
    }
    short("scene_name", name, limits.engine.max_scene_name_bytes)
}

fn request_id<'a>(id: &'a str, limits: &WireLimits) -> Result<Option<&'a str>, Invalid> {
    Ok(Some(short("request_id", id, limits.max_request_id_bytes)?).filter(|id| !id.is_empty()))
}

fn short<'a>(field: &str, text: &'a str, most: usize) -> Result<&'a str, Invalid> {
    if text.len() <= most {
        return Ok(text);
    }
    Err(Invalid::new(format!("{field} must have at most {most} bytes, this has {}", text.len())))
}

fn missing(field: &str, what: &str) -> Invalid {
    Invalid::new(format!("{field} is missing: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_looked_into() {
        let limits = WireLimits::default();
        let error = message::<proto::Query>(&vec![0; (1 << 20) + 1], &limits).unwrap_err();
        assert_eq!(error.code(), proto::Code::InvalidArgument);
        assert!(error.to_string().contains("at most 1048576 bytes, this one has 1048577"), "{error}");
    }

    #[test]
    fn what_does_not_decode_is_said_to_be_so() {
        let error = message::<proto::OrchestratorCommand>(&[0xff, 0xff], &WireLimits::default()).unwrap_err();
        assert_eq!(error.code(), proto::Code::Undecodable);
    }

    #[test]
    fn a_message_without_a_command_names_the_field() {
        let error = command(&proto::OrchestratorCommand::default(), &WireLimits::default()).unwrap_err();
        assert!(error.0.contains("command"), "{error}");
        let error = subscription_message(&[], &WireLimits::default()).unwrap_err();
        assert_eq!(error.code(), proto::Code::InvalidArgument);
        assert!(error.to_string().contains("command"), "{error}");
        assert!(question(&proto::Query::default()).is_err());
    }

    #[test]
    fn a_batch_without_a_stream_is_refused_for_that_whatever_else_is_wrong_and_one_of_handles_needs_none() {
        let refused = |stream_id: &str, ids: &[&str]| {
            let client_id = ids.iter().map(|id| (*id).to_owned()).collect();
            let batch = proto::HeartbeatBatch { stream_id: stream_id.to_owned(), client_id, handle: vec![1] };
            let command = proto::subscription_command::Command::HeartbeatBatch(batch);
            let bytes = prost::Message::encode_to_vec(&proto::SubscriptionCommand { command: Some(command) });
            let message = Subscription::read(&bytes).unwrap().unwrap();
            let checked = check_batch(&message);
            assert_eq!(checked, subscription(message, true).map(drop), "both refuse the same");
            checked.err().map(|error| error.0).unwrap_or_default()
        };
        assert_eq!(refused("", &[]), "");
        assert_eq!(refused("s", &["a"]), "");
        for ids in [&["a"][..], &["\0"], &["a", "\0"]] {
            assert!(refused("", ids).starts_with("stream_id must have"), "{ids:?}");
        }
        assert!(refused("s", &["a", "\0", ""]).starts_with("entry 1: client_id"));
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor { shard: 3, slot: u32::MAX };
        assert_eq!(Cursor::parse(&cursor.to_text()), Ok(cursor));
        assert!(Cursor::parse("7").is_err());
        assert!(Cursor::parse("1-99999999999").is_err());
    }

    #[test]
    fn when_empty_may_not_be_a_number_without_a_name() {
        let message = proto::OrchestratorConfig { when_empty: 3, ..Default::default() };
        assert!(config(&message, &WireLimits::default()).unwrap_err().0.contains("when_empty"));
    }
}
