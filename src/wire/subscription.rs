//! `SubscriptionCommand` as it lies in the message: texts are borrowed, nothing is copied.
//!
//! Heartbeats are most of what the service reads, and prost would allocate each of their texts. This reader takes the
//! same bytes for the same message as prost does, in any order and with anything unknown between, which a property
//! test and a fuzzer hold it to. (Of groups nested a hundred deep in an unknown field it skips one level more.) A batch
//! takes less than half of prost's time.

use bytes::{Buf as _, Bytes};
use prost::{
    DecodeError, Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use super::proto::{self, subscription_command::Command};
use crate::engine::{ClientId, Handle, Invalid};

/// Which command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Register`.
    Register,
    /// `Unregister`.
    Unregister,
    /// `Heartbeat`.
    Heartbeat,
    /// `HeartbeatBatch`.
    HeartbeatBatch,
    /// `RegisterBatch`.
    RegisterBatch,
    /// `UnregisterBatch`.
    UnregisterBatch,
}

impl Kind {
    /// By its number in the oneof.
    const fn numbered(tag: u32) -> Option<Self> {
        Some(match tag {
            1 => Self::Register,
            2 => Self::Unregister,
            3 => Self::Heartbeat,
            4 => Self::HeartbeatBatch,
            5 => Self::RegisterBatch,
            6 => Self::UnregisterBatch,
            _ => return None,
        })
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

/// Whom a message is for, as far as that can be told without looking at those whom it names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address<'a> {
    /// `stream_id`.
    pub stream_id: &'a str,
    /// `handle` of a batch.
    pub handles: Vec<Handle>,
    /// How many subscribers it names.
    pub entries: usize,
}

/// A command with the fields that it has; the others are empty. Not checked, but for the clients of a batch: a UUID, as
/// most are, is checked by being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription<'a> {
    /// Which command.
    pub kind: Kind,
    /// `stream_id`.
    pub stream_id: &'a str,
    /// Of a command for one subscriber.
    pub named: Named<'a>,
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
        Self { kind, stream_id: "", named: Named::default(), clients, refused: None, handles, subscribers }
    }

    /// Reads a `SubscriptionCommand`; none if it names no command.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn read(mut bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let mut read: Option<Self> = None;
        while bytes.has_remaining() {
            let (tag, wire_type) = key(&mut bytes)?;
            let Some(kind) = Kind::numbered(tag) else {
                skip(wire_type, tag, &mut bytes)?;
                continue;
            };
            // Of several commands the last one counts; what is said twice of the same is merged.
            let command = match &mut read {
                Some(command) if command.kind == kind => command,
                other => other.insert(Self::empty(kind)),
            };
            command.merge(block(wire_type, &mut bytes)?)?;
        }
        Ok(read)
    }

    fn merge(&mut self, mut bytes: &'a [u8]) -> Result<(), DecodeError> {
        /// What a UUID takes with key and length.
        const USUAL: usize = 38;
        while bytes.has_remaining() {
            let (tag, wire_type) = key(&mut bytes)?;
            match (self.kind, tag) {
                (_, 1) => self.stream_id = text(wire_type, &mut bytes)?,
                (Kind::HeartbeatBatch | Kind::UnregisterBatch, 2) => {
                    let id = block(wire_type, &mut bytes)?;
                    if self.clients.is_empty() {
                        self.clients.reserve(1 + bytes.len() / USUAL);
                    }
                    self.merge_client(id)?
                }
                (Kind::HeartbeatBatch | Kind::UnregisterBatch, 3) => {
                    read_handles(wire_type, &mut bytes, &mut self.handles)?
                }
                (Kind::RegisterBatch, 2) => {
                    let mut named = Named::default();
                    let mut entry = block(wire_type, &mut bytes)?;
                    while entry.has_remaining() {
                        let (tag, wire_type) = key(&mut entry)?;
                        named.merge([1, 2, 3], tag, wire_type, &mut entry)?;
                    }
                    if self.subscribers.is_empty() {
                        self.subscribers.reserve(1 + bytes.len() / USUAL);
                    }
                    self.subscribers.push(named);
                }
                (Kind::Register, tag) => self.named.merge([2, 3, 4], tag, wire_type, &mut bytes)?,
                (Kind::Unregister | Kind::Heartbeat, tag) => self.named.merge([2, 0, 3], tag, wire_type, &mut bytes)?,
                (_, tag) => skip(wire_type, tag, &mut bytes)?,
            }
        }
        Ok(())
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
    /// refused, which `decode::check_batch` says.
    #[must_use]
    pub(crate) fn pieces(&self, most: usize) -> Vec<Bytes> {
        debug_assert_eq!(self.refused, None, "what is refused is not passed on");
        let bare = || Self { stream_id: self.stream_id, named: self.named, ..Self::empty(self.kind) };
        // Handles first, as the engine does it with a whole one.
        let handles = self.handles.chunks(most).map(|handles| Self { handles: handles.to_vec(), ..bare() });
        let clients = self.clients.chunks(most).map(|clients| Self { clients: clients.to_vec(), ..bare() });
        let subscribers =
            (self.subscribers.chunks(most)).map(|subscribers| Self { subscribers: subscribers.to_vec(), ..bare() });
        let mut pieces: Vec<Self> = handles.chain(clients).chain(subscribers).collect();
        if pieces.is_empty() {
            pieces.push(bare());
        }
        pieces.iter().map(|piece| piece.to_proto().encode_to_vec().into()).collect()
    }

    /// What [`Subscription::read`] would read this from, but for what was refused.
    fn to_proto(&self) -> proto::SubscriptionCommand {
        let Named { client_id, source_addr, session } = self.named;
        let (stream_id, client_id, source_addr) = (self.stream_id.into(), client_id.into(), source_addr.into());
        let clients = || self.clients.iter().map(ClientId::to_string).collect();
        let handle = self.handles.iter().map(|handle| handle.0).collect();
        let command = match self.kind {
            Kind::Register => Command::Register(proto::Register { stream_id, client_id, source_addr, session }),
            Kind::Unregister => Command::Unregister(proto::Unregister { stream_id, client_id, session }),
            Kind::Heartbeat => Command::Heartbeat(proto::Heartbeat { stream_id, client_id, session }),
            Kind::HeartbeatBatch => {
                Command::HeartbeatBatch(proto::HeartbeatBatch { stream_id, client_id: clients(), handle })
            }
            Kind::UnregisterBatch => {
                Command::UnregisterBatch(proto::UnregisterBatch { stream_id, client_id: clients(), handle })
            }
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
        let of_handles = matches!(self.kind, Kind::HeartbeatBatch | Kind::UnregisterBatch);
        of_handles && self.stream_id.is_empty() && self.clients.is_empty() && self.refused.is_none()
    }

    /// How many subscribers it names.
    #[must_use]
    pub fn entries(&self) -> usize {
        match self.kind {
            Kind::Register | Kind::Unregister | Kind::Heartbeat => 1,
            Kind::HeartbeatBatch | Kind::UnregisterBatch => {
                let refused = self.refused.as_ref().map_or(0, |refused| refused.count);
                self.clients.len() + refused + self.handles.len()
            }
            Kind::RegisterBatch => self.subscribers.len(),
        }
    }
}

impl<'a> Address<'a> {
    /// Reads the address of a `SubscriptionCommand`; none if it names no command. Agrees with [`Subscription::read`]
    /// where that reads the message, and may read one that it does not.
    ///
    /// # Errors
    /// When the bytes are no such message, as far as that shows.
    pub fn read(mut bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let mut read: Option<(Kind, Self)> = None;
        while bytes.has_remaining() {
            let (tag, wire_type) = key(&mut bytes)?;
            let Some(kind) = Kind::numbered(tag) else {
                skip(wire_type, tag, &mut bytes)?;
                continue;
            };
            let (_, address) = match &mut read {
                Some(address) if address.0 == kind => address,
                other => other.insert((kind, Self::default())),
            };
            address.merge(kind, block(wire_type, &mut bytes)?)?;
        }
        Ok(read.map(|(_, address)| address))
    }

    fn merge(&mut self, kind: Kind, mut bytes: &'a [u8]) -> Result<(), DecodeError> {
        let is_batch = matches!(kind, Kind::HeartbeatBatch | Kind::UnregisterBatch);
        let mut named = 0;
        while bytes.has_remaining() {
            let (tag, wire_type) = key(&mut bytes)?;
            match tag {
                1 => self.stream_id = text(wire_type, &mut bytes)?,
                3 if is_batch => {
                    let before = self.handles.len();
                    read_handles(wire_type, &mut bytes, &mut self.handles)?;
                    named += self.handles.len() - before;
                }
                tag => {
                    named += usize::from(tag == 2);
                    skip(wire_type, tag, &mut bytes)?;
                }
            }
        }
        self.entries = if is_batch || kind == Kind::RegisterBatch { self.entries + named } else { 1 };
        Ok(())
    }
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
            tag if tag == session && wire_type == WireType::Varint => self.session = varint(bytes)?,
            tag if tag == session => return Err(other_type()),
            tag => skip(wire_type, tag, bytes)?,
        }
        Ok(())
    }
}

/// Packed, or one by one as older writers do.
fn read_handles(wire_type: WireType, bytes: &mut &[u8], handles: &mut Vec<Handle>) -> Result<(), DecodeError> {
    if wire_type == WireType::SixtyFourBit {
        handles.push(Handle(bytes.try_get_u64_le().map_err(|_| cut_off())?));
        return Ok(());
    }
    let (packed, rest) = block(wire_type, bytes)?.as_chunks();
    if !rest.is_empty() {
        return Err(cut_off());
    }
    handles.extend(packed.iter().map(|handle| Handle(u64::from_le_bytes(*handle))));
    Ok(())
}

/// A field's number and type. Those that we know of are one byte, which is read here without a call.
#[inline]
fn key(bytes: &mut &[u8]) -> Result<(u32, WireType), DecodeError> {
    if let [first @ 8..0x80, rest @ ..] = bytes
        && let Ok(wire_type) = WireType::try_from(u64::from(first & 7))
    {
        let tag = u32::from(first >> 3);
        *bytes = rest;
        return Ok((tag, wire_type));
    }
    decode_key(bytes)
}

/// A number; likewise.
#[inline]
fn varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    if let [first @ ..0x80, rest @ ..] = bytes {
        let number = u64::from(*first);
        *bytes = rest;
        return Ok(number);
    }
    decode_varint(bytes)
}

/// A field of a length and so many bytes.
#[inline]
fn block<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    if wire_type != WireType::LengthDelimited {
        return Err(other_type());
    }
    let length = usize::try_from(varint(bytes)?).map_err(|_| cut_off())?;
    let (block, rest) = bytes.split_at_checked(length).ok_or_else(cut_off)?;
    *bytes = rest;
    Ok(block)
}

/// A field that is not looked at.
#[inline]
fn skip(wire_type: WireType, tag: u32, bytes: &mut &[u8]) -> Result<(), DecodeError> {
    if wire_type == WireType::LengthDelimited {
        return block(wire_type, bytes).map(drop);
    }
    skip_field(wire_type, tag, bytes, DecodeContext::default())
}

fn text<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    utf8(block(wire_type, bytes)?)
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    str::from_utf8(bytes).map_err(|_| error("a text is no UTF-8"))
}

fn cut_off() -> DecodeError {
    error("it is cut off")
}

fn other_type() -> DecodeError {
    error("a field has another type")
}

#[allow(deprecated, reason = "prost gives no other way to make one")]
fn error(why: &'static str) -> DecodeError {
    DecodeError::new(why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::{
        decode,
        proto::{self, subscription_command::Command},
    };

    /// What prost reads, in the form of this reader.
    fn of(command: &Command) -> Subscription<'_> {
        let named = |client_id, source_addr, session| Named { client_id, source_addr, session };
        let handles = |handles: &[u64]| handles.iter().copied().map(Handle).collect();
        match command {
            Command::Register(m) => Subscription {
                stream_id: &m.stream_id,
                named: named(&m.client_id, &m.source_addr, m.session),
                ..Subscription::empty(Kind::Register)
            },
            Command::Unregister(m) => Subscription {
                stream_id: &m.stream_id,
                named: named(&m.client_id, "", m.session),
                ..Subscription::empty(Kind::Unregister)
            },
            Command::Heartbeat(m) => Subscription {
                stream_id: &m.stream_id,
                named: named(&m.client_id, "", m.session),
                ..Subscription::empty(Kind::Heartbeat)
            },
            Command::HeartbeatBatch(m) => Subscription {
                handles: handles(&m.handle),
                ..named_batch(Kind::HeartbeatBatch, &m.stream_id, &m.client_id)
            },
            Command::UnregisterBatch(m) => Subscription {
                handles: handles(&m.handle),
                ..named_batch(Kind::UnregisterBatch, &m.stream_id, &m.client_id)
            },
            Command::RegisterBatch(m) => Subscription {
                stream_id: &m.stream_id,
                subscribers: m.subscriber.iter().map(|s| named(&s.client_id, &s.source_addr, s.session)).collect(),
                ..Subscription::empty(Kind::RegisterBatch)
            },
        }
    }

    fn named_batch<'a>(kind: Kind, stream_id: &'a str, ids: &'a [String]) -> Subscription<'a> {
        let clients: Vec<_> = ids.iter().map_while(|id| ClientId::parse(id).ok()).collect();
        let place = clients.len();
        let refused = ids.get(place).map(|id| Invalid(format!("entry {place}: {}", ClientId::parse(id).unwrap_err())));
        let refused = refused.map(|why| Refused { why, count: ids.len() - place });
        Subscription { stream_id, clients, refused, ..Subscription::empty(kind) }
    }

    fn compare(bytes: &[u8]) -> Result<(), TestCaseError> {
        let by_prost = proto::SubscriptionCommand::decode(bytes);
        match (Subscription::read(bytes), &by_prost) {
            (Ok(read), Ok(message)) => {
                prop_assert_eq!(&read, &message.command.as_ref().map(of));
                if read.as_ref().is_none_or(|read| read.refused.is_none()) {
                    prop_assert_eq!(&read.map(|read| read.to_proto()).unwrap_or_default(), message);
                }
            }
            (Err(_), Err(_)) => {}
            (read, _) => prop_assert!(false, "read {:?}, by prost {:?}", read, by_prost),
        }
        if let Ok(Some(batch)) = Subscription::read(bytes)
            && !matches!(batch.kind, Kind::Register | Kind::Unregister | Kind::Heartbeat)
        {
            let checked = decode::check_batch(&batch);
            prop_assert_eq!(checked, decode::subscription(batch, true).map(drop));
        }
        if let Ok(whole) = Subscription::read(bytes) {
            let of = |whole: Subscription<'_>| (whole.stream_id.to_owned(), whole.handles.clone(), whole.entries());
            let address = Address::read(bytes).expect("what is read whole is read in part");
            let address = address.map(|address| (address.stream_id.to_owned(), address.handles, address.entries));
            prop_assert_eq!(address, whole.map(of));
        }
        Ok(())
    }

    fn command() -> impl Strategy<Value = Command> {
        let text = || prop_oneof![Just("6f9619ff-8b86-d011-b42d-00cf4fc964ff".to_owned()), "[a-z0-9é]{0,5}"];
        let texts = || prop::collection::vec(text(), 0..4);
        let one = || (text(), text(), text(), any::<u64>());
        let batch = || (text(), texts(), prop::collection::vec(any::<u64>(), 0..4));
        let subscribers = prop::collection::vec((text(), text(), 0..3u64), 0..4);
        prop_oneof![
            one().prop_map(|(stream_id, client_id, source_addr, session)| Command::Register(proto::Register {
                stream_id,
                client_id,
                source_addr,
                session
            })),
            one().prop_map(|(stream_id, client_id, _, session)| Command::Unregister(proto::Unregister {
                stream_id,
                client_id,
                session
            })),
            one().prop_map(|(stream_id, client_id, _, session)| Command::Heartbeat(proto::Heartbeat {
                stream_id,
                client_id,
                session
            })),
            batch().prop_map(|(stream_id, client_id, handle)| Command::HeartbeatBatch(proto::HeartbeatBatch {
                stream_id,
                client_id,
                handle
            })),
            batch().prop_map(|(stream_id, client_id, handle)| Command::UnregisterBatch(proto::UnregisterBatch {
                stream_id,
                client_id,
                handle
            })),
            (text(), subscribers).prop_map(|(stream_id, subscribers)| {
                let subscriber = subscribers.into_iter().map(|(client_id, source_addr, session)| proto::Subscriber {
                    client_id,
                    source_addr,
                    session,
                });
                Command::RegisterBatch(proto::RegisterBatch { stream_id, subscriber: subscriber.collect() })
            }),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_what_prost_reads(
            commands in prop::collection::vec(command(), 0..3),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut bytes: Vec<u8> = commands
                .into_iter()
                .flat_map(|command| proto::SubscriptionCommand { command: Some(command) }.encode_to_vec())
                .collect();
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
    fn a_batch_in_pieces_says_the_same_in_the_same_order() {
        let client_id: Vec<String> = (0..5).map(|n| format!("c{n}")).collect();
        let batch = proto::UnregisterBatch { stream_id: "s".into(), client_id, handle: vec![1, 2, 3] };
        let message = proto::SubscriptionCommand { command: Some(Command::UnregisterBatch(batch)) }.encode_to_vec();
        let whole = Subscription::read(&message).unwrap().unwrap();
        let pieces = whole.pieces(2);
        let read: Vec<_> = pieces.iter().map(|piece| Subscription::read(piece).unwrap().unwrap()).collect();
        assert_eq!(read.iter().map(Subscription::entries).collect::<Vec<_>>(), [2, 1, 2, 2, 1]);
        assert!(read.iter().all(|piece| (piece.kind, piece.stream_id) == (Kind::UnregisterBatch, "s")));
        assert_eq!(read.iter().flat_map(|piece| piece.clients.clone()).collect::<Vec<_>>(), whole.clients);
        assert_eq!(read.iter().flat_map(|piece| piece.handles.clone()).collect::<Vec<_>>(), whole.handles);

        let nobody = Subscription { stream_id: "s", ..Subscription::empty(Kind::HeartbeatBatch) };
        let pieces = nobody.pieces(2);
        assert_eq!(pieces.iter().map(|piece| Subscription::read(piece).unwrap()).collect::<Vec<_>>(), [Some(nobody)]);
    }

    #[test]
    fn handles_are_read_packed_and_one_by_one() {
        let mut batch = vec![0x1a, 16];
        batch.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        batch.extend([0x19, 3, 0, 0, 0, 0, 0, 0, 0]);
        let bytes = [&[0x22, batch.len() as u8][..], &batch].concat();
        let read = Subscription::read(&bytes).unwrap().unwrap();
        assert_eq!(read.handles, [Handle(1), Handle(2), Handle(3)]);
        compare(&bytes).unwrap();
    }
}
