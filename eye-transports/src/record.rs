//! How transports store events: records, each the events of one commit, with a checksum over all of it.
//!
//! ```text
//! magic and version  4 bytes
//! CRC-32 of the rest 4
//! payload length     4
//! number of events   4
//! first event number 8
//! payload: for each event  id 16, timestamp 8, received_at 8, lengths of its texts 4 × 4, texts
//! ```
//!
//! All numbers are little-endian.

use std::sync::Arc;

use eye_core::event::{Event, EventFields, Origin};
use eye_core::timestamp::Timestamp;
use uuid::Uuid;

/// What a record starts with. UTF-8 has no such byte as the first, so no text looks like it. The last is the version.
pub(crate) const MAGIC: [u8; 4] = [0xFE, b'E', b'y', 1];

/// Bytes of a record before its payload.
pub(crate) const HEADER_BYTES: usize = 24;

const EVENT_HEADER_BYTES: usize = 48;

/// A record that is whole: its checksum is right.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    /// The number of its first event.
    pub(crate) first: u64,
    pub(crate) count: u32,
    payload: &'a [u8],
}

/// What some bytes begin with.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    Whole(Record<'a>),
    /// So many bytes would be needed to tell.
    Short(usize),
    /// Not a record.
    Damaged,
}

/// The payload for some events.
pub(crate) fn encode(events: &[Event]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(events.iter().map(encoded_bytes).sum());
    for event in events {
        encode_event(event, &mut payload);
    }
    payload
}

/// Bytes of a payload that an event takes.
pub(crate) fn encoded_bytes(event: &Event) -> usize {
    EVENT_HEADER_BYTES + event.size_bytes()
}

/// Adds an event to a payload.
pub(crate) fn encode_event(event: &Event, payload: &mut Vec<u8>) {
    payload.extend_from_slice(event.id().as_bytes());
    payload.extend_from_slice(&event.timestamp().as_micros().to_le_bytes());
    payload.extend_from_slice(&event.received_at().as_micros().to_le_bytes());
    let texts = [event.session_id(), event.category(), event.name(), event.data()];
    for text in texts {
        payload.extend_from_slice(&(text.len() as u32).to_le_bytes());
    }
    for text in texts {
        payload.extend_from_slice(text.as_bytes());
    }
}

/// Completes a record whose payload lies in `record` behind [`HEADER_BYTES`] bytes for the header.
pub(crate) fn seal(record: &mut [u8], first: u64, count: u32) {
    let payload_len = u32::try_from(record.len() - HEADER_BYTES).expect("a commit is bounded far below 4 GiB");
    record[..4].copy_from_slice(&MAGIC);
    record[8..12].copy_from_slice(&payload_len.to_le_bytes());
    record[12..16].copy_from_slice(&count.to_le_bytes());
    record[16..24].copy_from_slice(&first.to_le_bytes());
    let checksum = crc32fast::hash(&record[8..]);
    record[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The record that `bytes` begin with.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Parsed::Short(HEADER_BYTES) };
    if header[..4] != MAGIC {
        return Parsed::Damaged;
    }
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let (checksum, payload_len, count) = (number(4), number(8) as usize, number(12));
    let Some(payload) = rest.get(..payload_len) else { return Parsed::Short(HEADER_BYTES + payload_len) };
    if crc32fast::hash(&bytes[8..HEADER_BYTES + payload_len]) != checksum {
        return Parsed::Damaged;
    }
    let first = u64::from_le_bytes(header[16..].try_into().expect("eight bytes"));
    if count == 0 || first.checked_add(count.into()).is_none() {
        return Parsed::Damaged;
    }
    Parsed::Whole(Record { first, count, payload })
}

impl Record<'_> {
    /// Bytes of the whole record.
    pub(crate) fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// The number of the event after its last.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Its events; `None` when the payload is not what it should be, which a right checksum all but excludes.
    pub(crate) fn events(&self) -> Option<Vec<Event>> {
        let mut rest = self.payload;
        let mut events = Vec::new();
        let origin = Arc::new(Origin::new("", None));
        while !rest.is_empty() {
            events.push(decode_event(&mut rest, &origin)?);
        }
        (events.len() == self.count as usize).then_some(events)
    }
}

fn decode_event(rest: &mut &[u8], origin: &Arc<Origin>) -> Option<Event> {
    let header = rest.split_off(..EVENT_HEADER_BYTES)?;
    let micros = |at: usize| Timestamp::from_micros(i64::from_le_bytes(header[at..at + 8].try_into().ok()?));
    let mut lengths =
        header[32..].chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let mut text = || std::str::from_utf8(rest.split_off(..lengths.next()? as usize)?).ok();
    Some(Event::from(EventFields {
        id: Uuid::from_slice(&header[..16]).ok()?,
        timestamp: micros(16)?,
        received_at: micros(24)?,
        session_id: text()?,
        category: text()?,
        name: text()?,
        data: text()?,
        origin,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::testkit::events;
    use proptest::prelude::*;

    use super::*;

    fn record(events: &[Event], first: u64) -> Vec<u8> {
        let mut record = vec![0; HEADER_BYTES];
        record.extend(encode(events));
        seal(&mut record, first, events.len() as u32);
        record
    }

    prop_compose! {
        fn any_event()(
            id: [u8; 16],
            timestamp in 0..=Timestamp::MAX.as_micros(),
            received_at in 0..=Timestamp::MAX.as_micros(),
            texts in any::<[String; 4]>(),
        ) -> Event {
            Event::from(EventFields {
                id: Uuid::from_bytes(id),
                timestamp: Timestamp::from_micros(timestamp).unwrap(),
                received_at: Timestamp::from_micros(received_at).unwrap(),
                session_id: &texts[0],
                category: &texts[1],
                name: &texts[2],
                data: &texts[3],
            })
        }
    }

    fn whole(bytes: &[u8]) -> Record<'_> {
        match parse(bytes) {
            Parsed::Whole(record) => record,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            events in prop::collection::vec(any_event(), 1..10),
            first in 0..u64::MAX / 2,
            behind in any::<Vec<u8>>(),
        ) {
            let mut bytes = record(&events, first);
            let size = bytes.len();
            bytes.extend(behind);
            let record = whole(&bytes);
            prop_assert_eq!((record.first, record.end(), record.size_bytes()), (first, first + events.len() as u64, size));
            prop_assert_eq!(record.events().unwrap(), events);
        }

        #[test]
        fn any_damage_is_seen(place in any::<prop::sample::Index>(), damage in 1..=u8::MAX) {
            let mut bytes = record(&events(0, 5), 7);
            let place = place.index(bytes.len());
            bytes[place] ^= damage;
            prop_assert!(!matches!(parse(&bytes), Parsed::Whole(_)));
        }

        #[test]
        fn hostile_bytes_with_a_right_checksum_do_no_harm(payload in any::<Vec<u8>>(), count in 0_u32..4, first: u64) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend(payload);
            seal(&mut bytes, first, count);
            if let Parsed::Whole(record) = parse(&bytes) {
                let _ = record.events();
            }
        }

        #[test]
        fn hostile_lengths_do_no_harm(events in 1_u32..4, place in 0_usize..40, value: u32) {
            let mut bytes = record(&eye_core::testkit::events(0, events), 7);
            let at = HEADER_BYTES + place * 4;
            prop_assume!(at + 4 <= bytes.len());
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes, 7, events);
            let _ = whole(&bytes).events();
        }
    }

    #[test]
    fn a_part_of_a_record_is_short() {
        let bytes = record(&events(0, 2), 7);
        assert!(matches!(parse(&bytes[..bytes.len() - 1]), Parsed::Short(needed) if needed == bytes.len()));
        assert!(matches!(parse(&bytes[..HEADER_BYTES - 1]), Parsed::Short(HEADER_BYTES)));
    }
}
