//! `SubscriptionCommand`: where it belongs, what it says, and the input that it makes.
//!
//! Heartbeats are most of what the service reads, and prost would allocate each of their texts. So they are read as
//! they lie in the message: texts are borrowed, nothing is copied. This reader takes the same bytes for the same message
//! as prost does, in any order and with anything unknown between. A batch takes less than half of prost's time.

use bytes::Bytes;
use prost::{
    DecodeError, Message as _,
    encoding::{WireType, encode_key, encode_varint},
};

use super::{
    Refusal, WireLimits, decode, filters,
    proto::{self, subscription_command::Command},
    reader::{block, each_field, fixed64s, number, skip, text, utf8},
};
use crate::engine::{
    Batch, ClientId, Filter, FilterDraft, Handle, Input, Invalid, Newcomer, StreamId, Subscriber, parse_source_addr,
};

/// Names the commands once, with their numbers in the oneof.
macro_rules! kinds {
    ($($number:literal $name:ident),+) => {
        /// Which command it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name,)+
        }

        impl Kind {
            /// By its number in the oneof.
            const fn numbered(tag: u32) -> Option<Self> {
                match tag {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its number in the oneof.
            const fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)+
                }
            }
        }

        /// A command of the contract that is not among them does not compile.
        const _: fn(&Command) -> Kind = |command| match command {
            $(Command::$name(_) => Kind::$name,)+
        };
    };
}

kinds! { 1 Register, 2 Unregister, 3 Heartbeat, 4 HeartbeatBatch, 5 RegisterBatch, 6 UnregisterBatch, 7 Follow }

impl Kind {
    /// Whether its subscribers are client ids and handles.
    const fn is_batch_of_ids(self) -> bool {
        match self {
            Self::HeartbeatBatch | Self::UnregisterBatch => true,
            Self::Register | Self::Unregister | Self::Heartbeat | Self::RegisterBatch | Self::Follow => false,
        }
    }
}

/// One subscriber, as its fields are; not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named<'a> {
    /// `client_id`.
    pub client_id: &'a str,
    /// `source_addr`.
    pub source_addr: &'a str,
    /// `session`.
    pub session: u64,
}

/// Where a message belongs, as far as that can be told without looking at those whom it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionRoute<'a> {
    /// `stream_id`.
    pub stream_id: &'a str,
    /// `handle` of a batch.
    pub handles: Vec<Handle>,
    /// How many subscribers it names.
    pub entries: usize,
    /// How many handles its answer gives out, in a batch.
    pub registers: usize,
}

impl SubscriptionRoute<'_> {
    /// How much work it is, see [`weight`].
    #[must_use]
    pub fn weight(&self) -> usize {
        weight(self.entries, self.handles.len())
    }
}

/// A command with the fields that it has; the others are empty. Not checked, but for the clients of a batch: a UUID, as
/// most are, is checked by being read.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription<'a> {
    /// Which command.
    pub kind: Kind,
    /// `stream_id`.
    pub stream_id: &'a str,
    /// Of a command for one subscriber.
    pub named: Named<'a>,
    /// `filter`. Boxed, since few have one.
    pub filter: Option<Box<FilterDraft<'a>>>,
    /// `client_id` of a batch, up to the first one that is refused.
    pub clients: Vec<ClientId<'a>>,
    /// That one, and all behind it.
    pub refused: Option<Refused>,
    /// `handle` of a batch.
    pub handles: Vec<Handle>,
    /// `subscriber` of a batch.
    pub subscribers: Vec<Named<'a>>,
}

/// What a batch is refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong with the first client that is.
    pub why: Invalid,
    /// How many clients there are from that one on. They are not looked at.
    pub count: usize,
}

impl<'a> Subscription<'a> {
    /// One that names nobody.
    #[must_use]
    pub fn empty(kind: Kind) -> Self {
        let (clients, handles, subscribers) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            kind,
            stream_id: "",
            named: Named::default(),
            filter: None,
            clients,
            refused: None,
            handles,
            subscribers,
        }
    }

    /// Reads a `SubscriptionCommand`; none if it names no command.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn read(bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let mut read: Option<Self> = None;
        each_field(bytes, |tag, wire_type, rest| {
            let Some(kind) = Kind::numbered(tag) else { return skip(wire_type, tag, rest) };
            // Of several commands the last one counts; what is said twice of the same is merged.
            let command = match &mut read {
                Some(command) if command.kind == kind => command,
                other => other.insert(Self::empty(kind)),
            };
            command.merge(block(wire_type, rest)?)
        })?;
        Ok(read)
    }

    fn merge(&mut self, bytes: &'a [u8]) -> Result<(), DecodeError> {
        /// What a UUID takes with key and length.
        const USUAL: usize = 38;
        each_field(bytes, |tag, wire_type, rest| {
            match (self.kind, tag) {
                (_, 1) => self.stream_id = text(wire_type, rest)?,
                (Kind::HeartbeatBatch | Kind::UnregisterBatch, 2) => {
                    let id = block(wire_type, rest)?;
                    if self.clients.is_empty() {
                        self.clients.reserve(1 + rest.len() / USUAL);
                    }
                    self.merge_client(id)?;
                }
                (Kind::HeartbeatBatch | Kind::UnregisterBatch, 3) => {
                    fixed64s(wire_type, rest, &mut self.handles, Handle)?;
                }
                (Kind::RegisterBatch, 2) => {
                    let mut named = Named::default();
                    each_field(block(wire_type, rest)?, |tag, wire_type, rest| {
                        named.merge([1, 2, 3], tag, wire_type, rest)
                    })?;
                    if self.subscribers.is_empty() {
                        self.subscribers.reserve(1 + rest.len() / USUAL);
                    }
                    self.subscribers.push(named);
                }
                (Kind::Register, 5) | (Kind::Follow, 2) => {
                    filters::merge(self.filter.get_or_insert_default(), block(wire_type, rest)?)?;
                }
                (Kind::Register, tag) => self.named.merge([2, 3, 4], tag, wire_type, rest)?,
                (Kind::Unregister | Kind::Heartbeat, tag) => self.named.merge([2, 0, 3], tag, wire_type, rest)?,
                (_, tag) => skip(wire_type, tag, rest)?,
            }
            Ok(())
        })
    }

    #[inline]
    fn merge_client(&mut self, id: &'a [u8]) -> Result<(), DecodeError> {
        if let Some(refused) = &mut self.refused {
            refused.count += 1;
            return utf8(id).map(drop);
        }
        let read = match ClientId::parse_uuid(id) {
            Some(uuid) => Ok(uuid),
            None => ClientId::parse(utf8(id)?),
        };
        match read {
            Ok(id) => self.clients.push(id),
            Err(Invalid(why)) => {
                let why = Invalid(format!("entry {}: {why}", self.clients.len()));
                self.refused = Some(Refused { why, count: 1 });
            }
        }
        Ok(())
    }

    /// The same batch in messages of at most so many entries, in order; in one if it has none. Nothing of it was
    /// refused, which [`check_batch`] says.
    #[must_use]
    pub fn pieces(&self, most: usize) -> Vec<Bytes> {
        debug_assert_eq!(self.refused, None, "what is refused is not passed on");
        let bare = || Self { stream_id: self.stream_id, named: self.named, ..Self::empty(self.kind) };
        // Handles first, as the engine does it with a whole one.
        let handles = self.handles.chunks(most).map(|handles| self.piece_of(handles));
        let clients = self.clients.chunks(most).map(|clients| Self { clients: clients.to_vec(), ..bare() });
        let subscribers =
            (self.subscribers.chunks(most)).map(|subscribers| Self { subscribers: subscribers.to_vec(), ..bare() });
        let encoded = |piece: Self| piece.to_proto().encode_to_vec().into();
        let mut pieces: Vec<Bytes> = handles.chain(clients.chain(subscribers).map(encoded)).collect();
        if pieces.is_empty() {
            pieces.push(encoded(bare()));
        }
        pieces
    }

    /// The batch with these handles alone. What [`Subscription::to_proto`] would be encoded as, written at once: batches
    /// of handles are the most of what comes in.
    fn piece_of(&self, handles: &[Handle]) -> Bytes {
        let words = size_of::<u64>() * handles.len();
        let mut batch = Vec::with_capacity(words + self.stream_id.len() + 16);
        if !self.stream_id.is_empty() {
            encode_key(1, WireType::LengthDelimited, &mut batch);
            encode_varint(self.stream_id.len() as u64, &mut batch);
            batch.extend_from_slice(self.stream_id.as_bytes());
        }
        encode_key(3, WireType::LengthDelimited, &mut batch);
        encode_varint(words as u64, &mut batch);
        let begin = batch.len();
        batch.resize(begin + words, 0);
        for (word, handle) in batch[begin..].chunks_exact_mut(size_of::<u64>()).zip(handles) {
            word.copy_from_slice(&handle.0.to_le_bytes());
        }
        let mut message = Vec::with_capacity(batch.len() + 8);
        encode_key(self.kind.number(), WireType::LengthDelimited, &mut message);
        encode_varint(batch.len() as u64, &mut message);
        message.append(&mut batch);
        message.into()
    }

    /// What [`Subscription::read`] would read this from, but for what was refused.
    fn to_proto(&self) -> proto::SubscriptionCommand {
        let Named { client_id, source_addr, session } = self.named;
        let (stream_id, client_id, source_addr) = (self.stream_id.into(), client_id.into(), source_addr.into());
        let clients = || self.clients.iter().map(ClientId::to_string).collect();
        let handle = self.handles.iter().map(|handle| handle.0).collect();
        let filter = self.filter.as_deref().map(filters::to_proto);
        let command = match self.kind {
            Kind::Register => Command::Register(proto::Register { stream_id, client_id, source_addr, session, filter }),
            Kind::Unregister => Command::Unregister(proto::Unregister { stream_id, client_id, session }),
            Kind::Heartbeat => Command::Heartbeat(proto::Heartbeat { stream_id, client_id, session }),
            Kind::HeartbeatBatch => {
                Command::HeartbeatBatch(proto::HeartbeatBatch { stream_id, client_id: clients(), handle })
            }
            Kind::UnregisterBatch => {
                Command::UnregisterBatch(proto::UnregisterBatch { stream_id, client_id: clients(), handle })
            }
            Kind::Follow => Command::Follow(proto::Follow { stream_id, filter }),
            Kind::RegisterBatch => {
                let subscriber = self.subscribers.iter().map(|named| proto::Subscriber {
                    client_id: named.client_id.into(),
                    source_addr: named.source_addr.into(),
                    session: named.session,
                });
                Command::RegisterBatch(proto::RegisterBatch { stream_id, subscriber: subscriber.collect() })
            }
        };
        proto::SubscriptionCommand { command: Some(command) }
    }

    /// Whether it is a batch that needs no stream: neither does it name one, nor anybody on one.
    #[must_use]
    pub fn names_nobody(&self) -> bool {
        self.kind.is_batch_of_ids() && self.stream_id.is_empty() && self.clients.is_empty() && self.refused.is_none()
    }

    /// How much work it is, see [`weight`].
    #[must_use]
    pub fn weight(&self) -> usize {
        weight(self.entries(), self.handles.len())
    }

    /// How many subscribers it names.
    #[must_use]
    pub fn entries(&self) -> usize {
        match self.kind {
            Kind::Register | Kind::Unregister | Kind::Heartbeat | Kind::Follow => 1,
            Kind::HeartbeatBatch | Kind::UnregisterBatch => {
                let refused = self.refused.as_ref().map_or(0, |refused| refused.count);
                self.clients.len() + refused + self.handles.len()
            }
            Kind::RegisterBatch => self.subscribers.len(),
        }
    }
}

impl<'a> SubscriptionRoute<'a> {
    /// Reads where a `SubscriptionCommand` belongs; none if it names no command. Agrees with [`Subscription::read`]
    /// where that reads the message, and may read one that it does not.
    ///
    /// # Errors
    /// When the bytes are no such message, as far as that shows.
    pub fn read(bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let mut read: Option<(Kind, Self)> = None;
        each_field(bytes, |tag, wire_type, rest| {
            let Some(kind) = Kind::numbered(tag) else { return skip(wire_type, tag, rest) };
            let (_, route) = match &mut read {
                Some(route) if route.0 == kind => route,
                other => other.insert((kind, Self::default())),
            };
            route.merge(kind, block(wire_type, rest)?)
        })?;
        Ok(read.map(|(_, route)| route))
    }

    fn merge(&mut self, kind: Kind, bytes: &'a [u8]) -> Result<(), DecodeError> {
        let mut named = 0;
        each_field(bytes, |tag, wire_type, rest| {
            match tag {
                1 => self.stream_id = text(wire_type, rest)?,
                3 if kind.is_batch_of_ids() => {
                    let before = self.handles.len();
                    fixed64s(wire_type, rest, &mut self.handles, Handle)?;
                    named += self.handles.len() - before;
                }
                tag => {
                    named += usize::from(tag == 2);
                    skip(wire_type, tag, rest)?;
                }
            }
            Ok(())
        })?;
        self.entries = match kind {
            Kind::HeartbeatBatch | Kind::RegisterBatch | Kind::UnregisterBatch => self.entries + named,
            Kind::Register | Kind::Unregister | Kind::Heartbeat | Kind::Follow => 1,
        };
        self.registers = if kind == Kind::RegisterBatch { self.entries } else { 0 };
        Ok(())
    }
}

/// How much work a message is that names so many subscribers, of which so many by handle: a register is 1, and so is
/// each name at the most; four handles are found in the time of one.
#[must_use]
pub const fn weight(entries: usize, handles: usize) -> usize {
    entries - handles + handles.div_ceil(4)
}

impl<'a> Named<'a> {
    /// Reads one field, given the numbers of client, source and session.
    fn merge(
        &mut self,
        [client, source, session]: [u32; 3],
        tag: u32,
        wire_type: WireType,
        bytes: &mut &'a [u8],
    ) -> Result<(), DecodeError> {
        match tag {
            tag if tag == client => self.client_id = text(wire_type, bytes)?,
            tag if tag == source => self.source_addr = text(wire_type, bytes)?,
            tag if tag == session => self.session = number(wire_type, bytes)?,
            tag => skip(wire_type, tag, bytes)?,
        }
        Ok(())
    }
}

/// Reads a message on `orchestrator.subscription`, in place.
///
/// # Errors
/// As [`decode::message`]; `INVALID_ARGUMENT` for one without a command.
pub fn read<'a>(bytes: &'a [u8], limits: &WireLimits) -> Result<Subscription<'a>, Refusal> {
    decode::check_size(bytes, limits)?;
    let read = Subscription::read(bytes).map_err(|error| Refusal::Undecodable(error.to_string()))?;
    read.ok_or_else(|| decode::missing("command", "Register to Follow").into())
}

/// The input that a message makes. `answered` says whether it came with a reply subject.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field and the limit.
pub fn input<'a>(message: Subscription<'a>, answered: bool) -> Result<Input<'a>, Invalid> {
    check_entry_count(message.entries())?;
    let names_nobody = message.names_nobody();
    let Subscription { kind, stream_id, named, filter, clients, refused, handles, subscribers } = message;
    let filter = filter.map(|draft| Filter::new(&draft)).transpose()?;
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
            let (stream_id, subscriber) = (StreamId::parse(stream_id)?, newcomer(&named)?);
            match filter {
                None => Input::Register { stream_id, subscriber, answered },
                Some(filter) => Input::RegisterFollowing { stream_id, subscriber, answered, filter: Box::new(filter) },
            }
        }
        Kind::Follow => Input::Follow { stream_id: StreamId::parse(stream_id)?, filter: filter.unwrap_or_default() },
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

/// Checks a batch for what [`input`] would refuse all of it for, and makes nothing of it.
///
/// # Errors
/// As [`input`].
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

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
