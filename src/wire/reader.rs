//! The pieces of a protobuf message as they lie in it: keys, numbers, blocks of bytes and what is skipped.
//!
//! Messages that are read for each viewer, or only for where they belong, are read with these instead of prost: texts
//! are borrowed and nothing is allocated. Each agrees with prost on every input, which the property tests of those who
//! use them and a fuzzer hold them to. (Of groups nested a hundred deep in an unknown field one level more is skipped.)

use bytes::Buf as _;
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Reads a message field by field: `field` gets the number, the type and the rest of the message, of which it takes
/// the field.
///
/// # Errors
/// When a key is none, or as `field` does.
#[inline]
pub(super) fn each_field<'a>(
    mut bytes: &'a [u8],
    mut field: impl FnMut(u32, WireType, &mut &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let (tag, wire_type) = key(&mut bytes)?;
        field(tag, wire_type, &mut bytes)?;
    }
    Ok(())
}

/// A field's number and type. Those that we know of are mostly one byte, which is read here without a call.
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

/// A field that is a `uint64`.
#[inline]
pub(super) fn number(wire_type: WireType, bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    if wire_type != WireType::Varint {
        return Err(other_type());
    }
    varint(bytes)
}

/// A field that is a `double`.
#[inline]
pub(super) fn double(wire_type: WireType, bytes: &mut &[u8]) -> Result<f64, DecodeError> {
    if wire_type != WireType::SixtyFourBit {
        return Err(other_type());
    }
    bytes.try_get_f64_le().map_err(|_| cut_off())
}

/// A field that is a `repeated fixed64`, packed or one by one as older writers have them: adds each to `list`.
#[inline]
pub(super) fn fixed64s<T>(
    wire_type: WireType,
    bytes: &mut &[u8],
    list: &mut Vec<T>,
    make: impl Fn(u64) -> T,
) -> Result<(), DecodeError> {
    if wire_type == WireType::SixtyFourBit {
        list.push(make(bytes.try_get_u64_le().map_err(|_| cut_off())?));
        return Ok(());
    }
    let (packed, rest) = block(wire_type, bytes)?.as_chunks();
    if !rest.is_empty() {
        return Err(cut_off());
    }
    list.extend(packed.iter().map(|number| make(u64::from_le_bytes(*number))));
    Ok(())
}

/// A field of a length and so many bytes.
#[inline]
pub(super) fn block<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
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
pub(super) fn skip(wire_type: WireType, tag: u32, bytes: &mut &[u8]) -> Result<(), DecodeError> {
    if wire_type == WireType::LengthDelimited {
        return block(wire_type, bytes).map(drop);
    }
    skip_field(wire_type, tag, bytes, DecodeContext::default())
}

/// Whether the bytes are fields from end to end, and none of them a group: no message of ours has one, while most texts
/// that begin with a bracket or a sign do.
#[must_use]
pub fn is_fields_without_groups(bytes: &[u8]) -> bool {
    each_field(bytes, |tag, wire_type, rest| match wire_type {
        WireType::StartGroup | WireType::EndGroup => Err(other_type()),
        _ => skip(wire_type, tag, rest),
    })
    .is_ok()
}

/// A field that is a text.
#[inline]
pub(super) fn text<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    utf8(block(wire_type, bytes)?)
}

pub(super) fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
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
