//! Commands and queries: one [request](super::request) each.

use std::future::IntoFuture;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message as _;

use super::{Client, ClientError, answer::Expected, request::Request};
use crate::wire::{
    StreamId,
    proto::{
        self, Code, HistoryEntry, OrchestratorConfig, QueryReply, Reply, StateUpdate, Stats, SubscriberInfo,
        orchestrator_command as wire_command,
    },
    subject,
};

/// What a stream can be told.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Creates the stream with this configuration, or begins again one that stopped or finished.
    Start(Option<OrchestratorConfig>),
    /// Stops from any mode.
    Stop,
    /// Holds the position.
    Pause,
    /// Goes on from where it was paused.
    Resume,
    /// Jumps to the start of a scene.
    ForceScene {
        /// Its id or name.
        scene_name: String,
    },
    /// Jumps to the next scene, or finishes after the last.
    SkipScene,
    /// Jumps to the start of the scene before.
    PreviousScene,
    /// Jumps to a position.
    Seek {
        /// Where on the timeline, ms.
        position_ms: u64,
    },
    /// Lengthens or shortens the current scene, for this pass.
    AdjustScene {
        /// By how much, ms.
        delta_ms: i64,
    },
    /// Notes what the broadcast itself says of its state.
    UpdateStreamStatus {
        /// Whether it is on air.
        is_streaming: bool,
        /// For how long, ms.
        stream_time: u64,
        /// Its timecode.
        timecode: String,
    },
    /// Replaces the configuration without a restart.
    Reconfigure(OrchestratorConfig),
    /// Back to position 0, as if just created.
    Reset,
    /// Ends the stream for good.
    Remove,
}

impl Command {
    fn addressed(self, stream_id: String) -> wire_command::Command {
        use wire_command::Command as Wire;
        match self {
            Self::Start(config) => Wire::Start(proto::Start { stream_id, config }),
            Self::Stop => Wire::Stop(proto::Stop { stream_id }),
            Self::Pause => Wire::Pause(proto::Pause { stream_id }),
            Self::Resume => Wire::Resume(proto::Resume { stream_id }),
            Self::ForceScene { scene_name } => Wire::ForceScene(proto::ForceScene { stream_id, scene_name }),
            Self::SkipScene => Wire::SkipScene(proto::SkipScene { stream_id }),
            Self::PreviousScene => Wire::PreviousScene(proto::PreviousScene { stream_id }),
            Self::Seek { position_ms } => Wire::Seek(proto::Seek { stream_id, position_ms }),
            Self::AdjustScene { delta_ms } => Wire::AdjustScene(proto::AdjustScene { stream_id, delta_ms }),
            Self::UpdateStreamStatus { is_streaming, stream_time, timecode } => {
                Wire::UpdateStreamStatus(proto::UpdateStreamStatus { stream_id, is_streaming, stream_time, timecode })
            }
            Self::Reconfigure(config) => Wire::Reconfigure(proto::Reconfigure { stream_id, config: Some(config) }),
            Self::Reset => Wire::Reset(proto::Reset { stream_id }),
            Self::Remove => Wire::Remove(proto::Remove { stream_id }),
        }
    }
}

/// A command that was executed, or had been when it was sent before.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The stream.
    pub stream_id: String,
    /// Its revision after the command.
    pub revision: u64,
    /// Its state after the command.
    pub state: Option<StateUpdate>,
}

/// A command about to be sent: add what it should carry, then `.await` it.
///
/// Nothing happens before that. Without [`request_id`](Self::request_id) one is made up, so that the attempts of one
/// call are executed once.
#[must_use = "a command is sent when it is awaited"]
#[derive(Debug)]
pub struct Call<'a> {
    client: &'a Client,
    stream_id: String,
    command: Command,
    request_id: Option<String>,
    expected: Conditions,
    issued_by: String,
}

/// What must be so, for a command to be carried out.
#[derive(Debug, Default)]
struct Conditions {
    revision: Option<u64>,
    epoch: Option<u64>,
    scene: Option<String>,
}

impl Call<'_> {
    /// Makes a repeat of this command within two minutes get the first one's answer. An empty one is refused: it would tell
    /// no repeat from another command, the attempts of this call included.
    pub fn request_id(mut self, request_id: impl Into<String>) -> Self {
        self.request_id = Some(request_id.into());
        self
    }

    /// Refuses the command with `CONFLICT` if the stream has another revision by then.
    pub fn expected_revision(mut self, revision: u64) -> Self {
        self.expected.revision = Some(revision);
        self
    }

    /// Refuses it with `CONFLICT` if the stream is another one of that id by then, created later.
    pub fn expected_epoch(mut self, epoch: u64) -> Self {
        self.expected.epoch = Some(epoch);
        self
    }

    /// Refuses it with `CONFLICT` if another scene is current by then. It is given by its id or name, or empty for none. A
    /// scene that begins by itself leaves the revision as it is: so this is what keeps a skip that comes a moment late from
    /// skipping the next scene too.
    pub fn expected_scene(mut self, scene: impl Into<String>) -> Self {
        self.expected.scene = Some(scene.into());
        self
    }

    /// Says who does it, in at most 128 bytes: for the service's log and the stream's [history](Client::history).
    pub fn issued_by(mut self, who: impl Into<String>) -> Self {
        self.issued_by = who.into();
        self
    }

    async fn send(self) -> Result<Accepted, ClientError> {
        let stream_id = checked(&self.stream_id)?;
        let request_id = self.request_id.unwrap_or_else(|| self.client.core().random.uuid().to_string());
        if request_id.is_empty() {
            return Err(ClientError::invalid("request_id must have at least 1 byte, or not be there"));
        }
        let command = proto::OrchestratorCommand {
            command: Some(self.command.addressed(stream_id.clone())),
            request_id,
            expected_revision: self.expected.revision,
            expected_epoch: self.expected.epoch,
            expected_scene: self.expected.scene,
            issued_by: self.issued_by,
        };
        let core = self.client.core();
        let request = Request::new(subject::COMMAND, command.encode_to_vec(), Expected::Stream(&stream_id));
        let Reply { stream_id, revision, state, .. } = accepted(core.ask(&request, core.budget()).await?)?;
        Ok(Accepted { stream_id, revision, state })
    }
}

impl<'a> IntoFuture for Call<'a> {
    type Output = Result<Accepted, ClientError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// One page of [`Client::list_streams`].
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The streams' states.
    pub streams: Vec<StateUpdate>,
    /// What to ask the next page with; `None` at the end.
    pub cursor: Option<String>,
}

/// What a stream was asked to be, and its state of the same instant: the answer to [`Client::get_config`].
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// As Start or Reconfigure gave it, with every default filled in.
    pub config: OrchestratorConfig,
    /// The lengths of the scenes in this pass, ms, if AdjustScene has changed one; else none.
    pub scene_duration_ms: Vec<u64>,
    /// Its revision makes a change of what was read safe, with [`Call::expected_revision`]. When another update has another
    /// `config_revision`, the configuration is to be read again.
    pub state: StateUpdate,
}

/// One page of [`Client::list_subscribers`].
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriberPage {
    /// Who watches.
    pub subscribers: Vec<SubscriberInfo>,
    /// The service's wall clock when this was so, ms since 1970: what `last_heard_ms` is to be compared with.
    pub server_time_ms: u64,
    /// What to ask the next page with; `None` at the end.
    pub cursor: Option<String>,
}

impl Client {
    /// Sends any command. The methods below are the same for one command each.
    pub fn command(&self, stream_id: &str, command: Command) -> Call<'_> {
        let (stream_id, expected, issued_by) = (stream_id.to_owned(), Conditions::default(), String::new());
        Call { client: self, stream_id, command, request_id: None, expected, issued_by }
    }

    /// [`Command::Start`]: with a configuration if the stream may have to be created.
    pub fn start(&self, stream_id: &str, config: impl Into<Option<OrchestratorConfig>>) -> Call<'_> {
        self.command(stream_id, Command::Start(config.into()))
    }

    /// [`Command::Stop`].
    pub fn stop(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::Stop)
    }

    /// [`Command::Pause`].
    pub fn pause(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::Pause)
    }

    /// [`Command::Resume`].
    pub fn resume(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::Resume)
    }

    /// [`Command::ForceScene`].
    pub fn force_scene(&self, stream_id: &str, scene_name: impl Into<String>) -> Call<'_> {
        self.command(stream_id, Command::ForceScene { scene_name: scene_name.into() })
    }

    /// [`Command::SkipScene`].
    pub fn skip_scene(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::SkipScene)
    }

    /// [`Command::PreviousScene`].
    pub fn previous_scene(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::PreviousScene)
    }

    /// [`Command::Seek`].
    pub fn seek(&self, stream_id: &str, position_ms: u64) -> Call<'_> {
        self.command(stream_id, Command::Seek { position_ms })
    }

    /// [`Command::AdjustScene`].
    pub fn adjust_scene(&self, stream_id: &str, delta_ms: i64) -> Call<'_> {
        self.command(stream_id, Command::AdjustScene { delta_ms })
    }

    /// [`Command::UpdateStreamStatus`].
    pub fn update_stream_status(
        &self,
        stream_id: &str,
        is_streaming: bool,
        stream_time: u64,
        timecode: impl Into<String>,
    ) -> Call<'_> {
        let timecode = timecode.into();
        self.command(stream_id, Command::UpdateStreamStatus { is_streaming, stream_time, timecode })
    }

    /// [`Command::Reconfigure`].
    pub fn reconfigure(&self, stream_id: &str, config: OrchestratorConfig) -> Call<'_> {
        self.command(stream_id, Command::Reconfigure(config))
    }

    /// [`Command::Reset`].
    pub fn reset(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::Reset)
    }

    /// [`Command::Remove`].
    pub fn remove(&self, stream_id: &str) -> Call<'_> {
        self.command(stream_id, Command::Remove)
    }

    /// The state of one stream.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND` among others.
    pub async fn get_state(&self, stream_id: &str) -> Result<StateUpdate, ClientError> {
        let query = proto::query::Query::GetState(proto::GetState { stream_id: checked(stream_id)? });
        let reply = self.query(query, Expected::State(stream_id)).await?;
        reply.state.into_iter().next().ok_or_else(|| ClientError::undecodable("a state is missing"))
    }

    /// One page of all streams: at most `limit` (0: the default of 100; at most 1,000), from where `cursor` points.
    ///
    /// # Errors
    /// When nothing answers, or the service refuses the limit or the cursor.
    pub async fn list_streams(&self, limit: u32, cursor: Option<&str>) -> Result<Page, ClientError> {
        let cursor = cursor.unwrap_or_default().to_owned();
        let reply =
            self.query(proto::query::Query::ListStreams(proto::ListStreams { limit, cursor }), Expected::Page).await?;
        let cursor = Some(reply.cursor).filter(|cursor| !cursor.is_empty());
        Ok(Page { streams: reply.state, cursor })
    }

    /// Counts of subscribers and streams: of one stream, or of the whole service.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND` among others.
    pub async fn stats(&self, stream_id: Option<&str>) -> Result<Stats, ClientError> {
        let stream_id = stream_id.map(checked).transpose()?.unwrap_or_default();
        let reply = self.query(proto::query::Query::GetStats(proto::GetStats { stream_id }), Expected::Stats).await?;
        reply.stats.ok_or_else(|| ClientError::undecodable("the stats are missing"))
    }

    /// What a stream was asked to be.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND` among others, `RESOURCE_EXHAUSTED` if the configuration is larger than what the service's
    /// connection takes.
    pub async fn get_config(&self, stream_id: &str) -> Result<StreamConfig, ClientError> {
        let query = proto::query::Query::GetConfig(proto::GetConfig { stream_id: checked(stream_id)? });
        let QueryReply { config, scene_duration_ms, state, .. } =
            self.query(query, Expected::Config(stream_id)).await?;
        let state = state.into_iter().next();
        let (config, state) =
            config.zip(state).ok_or_else(|| ClientError::undecodable("the configuration is missing"))?;
        Ok(StreamConfig { config, scene_duration_ms, state })
    }

    /// The service's wall clock, ms since 1970, at some moment between this call and its answer.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn get_time(&self) -> Result<u64, ClientError> {
        let query = proto::query::Query::GetTime(proto::GetTime {});
        Ok(self.query(query, Expected::Dated).await?.server_time_ms)
    }

    /// One page of a stream's subscribers: at most `limit` (0: the default of 100; at most 1,000), from where `cursor`
    /// points. Who is there all the time is on one of the pages, once; a page may have nobody and a cursor all the same.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND` among others, and when the service refuses the limit or the cursor.
    pub async fn list_subscribers(
        &self,
        stream_id: &str,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<SubscriberPage, ClientError> {
        let cursor = cursor.unwrap_or_default().to_owned();
        let asked = proto::ListSubscribers { stream_id: checked(stream_id)?, limit, cursor };
        let reply = self.query(proto::query::Query::ListSubscribers(asked), Expected::Dated).await?;
        let QueryReply { subscriber: subscribers, server_time_ms, cursor, .. } = reply;
        Ok(SubscriberPage { subscribers, server_time_ms, cursor: Some(cursor).filter(|cursor| !cursor.is_empty()) })
    }

    /// What happened to a stream, the newest first: commands that were carried out, and changes of its mode without one. At
    /// most `limit` (0: the default of 100; at most 256, which is what is kept), of revisions below `before_revision` where
    /// that is given: the last entry's, for what was before. None are left when there are no more.
    ///
    /// # Errors
    /// `STREAM_NOT_FOUND` among others, and when the service refuses the limit.
    pub async fn history(
        &self,
        stream_id: &str,
        limit: u32,
        before_revision: Option<u64>,
    ) -> Result<Vec<HistoryEntry>, ClientError> {
        // Revisions begin at 1, so below 0 is what is below 1. On the wire, 0 is nothing said.
        let before_revision = before_revision.map_or(0, |revision| revision.max(1));
        let asked = proto::GetHistory { stream_id: checked(stream_id)?, limit, before_revision };
        Ok(self.query(proto::query::Query::GetHistory(asked), Expected::Dated).await?.history)
    }

    async fn query(&self, query: proto::query::Query, expected: Expected<'_>) -> Result<QueryReply, ClientError> {
        let core = self.core();
        let payload = proto::Query { query: Some(query) }.encode_to_vec();
        accepted_query(core.ask(&Request::new(subject::QUERY, payload, expected), core.budget()).await?)
    }
}

/// A stream id that the service would not refuse.
fn checked(stream_id: &str) -> Result<String, ClientError> {
    StreamId::parse(stream_id).map_err(|error| ClientError::invalid(error.to_string()))?;
    Ok(stream_id.to_owned())
}

/// A reply to a query whose code is `OK`.
pub(super) fn accepted_query(bytes: Bytes) -> Result<QueryReply, ClientError> {
    let reply = QueryReply::decode(bytes).map_err(ClientError::undecodable)?;
    match code(reply.code)? {
        Code::Ok => Ok(reply),
        code => {
            Err(ClientError::rejected(code, Reply { code: reply.code, message: reply.message, ..Reply::default() }))
        }
    }
}

/// A reply whose code is `OK`.
pub(super) fn accepted(bytes: Bytes) -> Result<Reply, ClientError> {
    let reply = decode_reply(bytes)?;
    match code(reply.code)? {
        Code::Ok => Ok(reply),
        code => Err(ClientError::rejected(code, reply)),
    }
}

/// Decodes a `Reply`, whatever its code.
pub(super) fn decode_reply(bytes: Bytes) -> Result<Reply, ClientError> {
    Reply::decode(bytes).map_err(ClientError::undecodable)
}

/// A code this version knows.
pub(super) fn code(number: i32) -> Result<Code, ClientError> {
    Code::try_from(number).map_err(|_| ClientError::undecodable(format_args!("unknown code {number}")))
}
