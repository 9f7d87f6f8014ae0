//! The keyset cursor: opaque text for the position at which a page starts.
//!
//! A cursor holds the key of an event, so events that are stored or removed meanwhile do not shift pages. Its checksum
//! detects a cut or mistyped cursor. It is no signature: a cursor reveals no more than the events do.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use eye_core::event::EventId;
use eye_core::event::EventKey;
use eye_core::store::PageStart;
use eye_core::timestamp::Timestamp;

/// The direction from a cursor's event to its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Older,
    Newer,
}

const VERSION: u8 = 1;

// Version, direction, timestamp, id; then a checksum of them.
const KEY_BYTES: usize = 1 + 1 + 8 + 16;
const BYTES: usize = KEY_BYTES + 4;

/// Returns the cursor of the page that starts next to `key`.
pub(super) fn encode(direction: Direction, key: EventKey) -> String {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.push(VERSION);
    bytes.push(match direction {
        Direction::Older => 0,
        Direction::Newer => 1,
    });
    bytes.extend(key.timestamp.as_micros().to_be_bytes());
    bytes.extend(key.id.as_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the start of a cursor's page, or `None` if [`encode`] did not make the cursor.
pub(super) fn decode(cursor: &str) -> Option<PageStart> {
    let mut bytes = [0; BYTES];
    // A longer cursor does not fit; a shorter one has a wrong length.
    let length = BASE64_URL_SAFE_NO_PAD.decode_slice(cursor, &mut bytes).ok()?;
    let (payload, checksum) = bytes.split_last_chunk::<4>()?;
    if length != BYTES || u32::from_be_bytes(*checksum) != crc32fast::hash(payload) {
        return None;
    }
    let ([VERSION, direction], payload) = payload.split_first_chunk::<2>()? else { return None };
    let (micros, id) = payload.split_first_chunk::<8>()?;
    let key =
        EventKey { timestamp: Timestamp::from_micros(i64::from_be_bytes(*micros))?, id: EventId::from_slice(id).ok()? };
    match direction {
        0 => Some(PageStart::OlderThan(key)),
        1 => Some(PageStart::NewerThan(key)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = EventKey> {
        (0..=Timestamp::MAX.as_micros(), any::<u128>()).prop_map(|(micros, id)| EventKey {
            timestamp: Timestamp::from_micros(micros).unwrap(),
            id: EventId::from_u128(id),
        })
    }

    proptest! {
        #[test]
        fn decode_reverses_encode(key in key()) {
            prop_assert_eq!(decode(&encode(Direction::Older, key)), Some(PageStart::OlderThan(key)));
            prop_assert_eq!(decode(&encode(Direction::Newer, key)), Some(PageStart::NewerThan(key)));
        }

        #[test]
        fn one_changed_character_is_detected(key in key(), at in 0..40usize, to in "[A-Za-z0-9_-]") {
            let good = encode(Direction::Older, key);
            let mut bad = good.clone();
            bad.replace_range(at..=at, &to);
            prop_assert_eq!(decode(&bad).is_some(), bad == good);
        }

        #[test]
        fn other_text_is_refused(text in ".{0,80}") {
            prop_assert_eq!(decode(&text), None);
        }
    }

    #[test]
    fn wrong_length_is_refused() {
        let good = encode(Direction::Older, EventKey { timestamp: Timestamp::MIN, id: EventId::nil() });
        assert!(decode(&good).is_some());
        for bad in
            ["", &good[1..], &good[..39], &good[..36], &format!("{good}A"), &format!("{good}AAAA"), &good.repeat(2000)]
        {
            assert_eq!(decode(bad), None, "{bad:.50}");
        }
    }

    #[test]
    fn cut_of_a_zero_byte_is_detected() {
        let ends_in_zero = (0..)
            .map(|id| encode(Direction::Older, EventKey { timestamp: Timestamp::MIN, id: EventId::from_u128(id) }))
            .find(|cursor| BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap().ends_with(&[0]))
            .unwrap();
        assert!(decode(&ends_in_zero).is_some());
        assert_eq!(decode(&ends_in_zero[..39]), None);
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let good = BASE64_URL_SAFE_NO_PAD
            .decode(encode(Direction::Older, EventKey { timestamp: Timestamp::MIN, id: EventId::nil() }))
            .unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good[..KEY_BYTES].to_vec();
            bytes[at] = byte;
            bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        };
        assert!(decode(&with(1, 1)).is_some());
        assert_eq!(decode(&with(0, 2)), None, "version");
        assert_eq!(decode(&with(1, 2)), None, "direction");
        assert_eq!(decode(&with(2, 0x80)), None, "before 1970");
        assert_eq!(decode(&with(2, 0x7f)), None, "after 9999");
    }
}
