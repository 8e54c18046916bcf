//! The name of a viewer, in the form in which it is compared.

use std::fmt;

use wide::{i16x8, u8x16};

use super::{Invalid, MAX_ID_BYTES};

/// The name of a viewer: 1 to 128 bytes of UTF-8 without control characters.
///
/// A UUID in its canonical form, the usual case, is read into its 16 bytes at once: that it is one is all that there is
/// to check, and every table compares those bytes. Anything else, also a UUID in capitals, stays a text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientId<'a>(pub(super) Form<'a>);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Form<'a> {
    /// The bytes, the first one lowest.
    Uuid(u128),
    Text(&'a str),
}

impl<'a> ClientId<'a> {
    /// Checks a client id.
    ///
    /// # Errors
    /// Names the field, the limit and what broke it.
    #[inline]
    pub fn parse(id: &'a str) -> Result<Self, Invalid> {
        Self::parse_uuid(id.as_bytes()).map_or_else(|| Self::parse_text(id), Ok)
    }

    /// Reads a UUID in its canonical form: 36 bytes, in lower case, with hyphens. None if it is anything else.
    #[inline]
    #[must_use]
    pub fn parse_uuid(id: &[u8]) -> Option<Self> {
        parse_uuid(id).map(|uuid| Self(Form::Uuid(uuid)))
    }

    fn parse_text(id: &'a str) -> Result<Self, Invalid> {
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return Err(Invalid::new(format!(
                "client_id must have 1 to {MAX_ID_BYTES} bytes, this one has {}",
                id.len()
            )));
        }
        // Most are plain ASCII, of which the compiler looks at many at a time.
        let plain = id.bytes().fold(true, |plain, byte| plain & (b' '..0x7f).contains(&byte));
        if !plain && id.chars().any(char::is_control) {
            return Err(Invalid::new("client_id may not hold control characters"));
        }
        Ok(Self(Form::Text(id)))
    }
}

/// The id as it was given.
impl fmt::Display for ClientId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Form::Uuid(uuid) => uuid::Uuid::from_bytes(uuid.to_le_bytes()).hyphenated().fmt(formatter),
            Form::Text(text) => formatter.write_str(text),
        }
    }
}

/// All 32 digits at a time and without branches, in vectors that every processor has: each look-up by name begins here.
#[inline]
fn parse_uuid(text: &[u8]) -> Option<u128> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let hyphens = (text[8] ^ b'-') | (text[13] ^ b'-') | (text[18] ^ b'-') | (text[23] ^ b'-');
    let four = |from| u32::from_le_bytes(std::array::from_fn(|place| text[from + place]));
    let sixteen = |from: [usize; 4]| bytemuck::cast(from.map(four));
    let (low, low_fine) = parse_hex(sixteen([0, 4, 9, 14]));
    let (high, high_fine) = parse_hex(sixteen([19, 24, 28, 32]));
    let uuid = u8x16::narrow_i16x8(low, high);
    (hyphens == 0 && (low_fine & high_fine).all()).then(|| u128::from_le_bytes(uuid.to_array()))
}

const _: () = assert!(
    cfg!(target_endian = "little"),
    "not for big-endian processors: the bytes of a UUID are read as those of a number"
);

/// The values of pairs of lower-case hexadecimal digits, and of each of these whether it is one.
#[inline]
fn parse_hex(text: u8x16) -> (i16x8, u8x16) {
    let all = u8x16::splat;
    let up_to = |most, value: u8x16| value.min(all(most)).simd_eq(value);
    // What lies before the first one of its kind wraps around, and is too large.
    let (digit, letter) = (text - all(b'0'), text - all(b'a'));
    let (is_digit, is_letter) = (up_to(9, digit), up_to(5, letter));
    let value = (digit & is_digit) | ((letter + all(10)) & is_letter);
    // The first digit of a pair is its lower byte.
    let pairs: i16x8 = bytemuck::cast(value);
    (((pairs << 4) | (pairs >> 8)) & i16x8::splat(0xff), is_digit | is_letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_any_short_text_without_control_characters() {
        let uuid = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
        for good in ["a", "Zoë", "a.b*>", &"x".repeat(128), uuid, &uuid.to_uppercase()] {
            let id = ClientId::parse(good).expect("a client id");
            assert_eq!(id.to_string(), good);
            assert_eq!(matches!(id.0, Form::Uuid(_)), good == uuid, "{good}");
        }
        for bad in ["", "a\0", "\u{85}", &"ü".repeat(65)] {
            let error = ClientId::parse(bad).expect_err(bad);
            assert!(error.0.contains("client_id"), "{error}");
        }
    }

    #[test]
    fn only_a_canonical_uuid_is_kept_as_one() {
        let uuid = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
        let value = u128::from_le_bytes(*uuid::Uuid::parse_str(uuid).unwrap().as_bytes());
        assert_eq!(parse_uuid(uuid.as_bytes()), Some(value));
        for text in [&uuid.to_uppercase(), "6f9619ff08b86-d011-b42d-00cf4fc964ff", &uuid[1..], &format!("{uuid}0")] {
            assert_eq!(parse_uuid(text.as_bytes()), None, "{text}");
        }
        // Every byte in every place.
        for place in 0..36 {
            for byte in 0..=u8::MAX {
                let mut text: [u8; 36] = uuid.as_bytes().try_into().unwrap();
                text[place] = byte;
                let fits = match place {
                    8 | 13 | 18 | 23 => byte == b'-',
                    _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                };
                // What is read agrees with the library's reading, which takes more.
                let value = str::from_utf8(&text).ok().and_then(|text| uuid::Uuid::parse_str(text).ok());
                let value = value.filter(|_| fits).map(|uuid| u128::from_le_bytes(*uuid.as_bytes()));
                assert_eq!((parse_uuid(&text), value.is_some()), (value, fits), "{byte:#x} at {place}");
            }
        }
    }
}
