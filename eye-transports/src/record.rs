//! The binary record of the durable transports: the events of one commit, with a CRC-32 over all of them.
//!
//! [`parse`] returns a [`Record`] only if its checksum is right, and decoding never panics, whatever the bytes are.
//! [`encode`] and [`seal`] write a record. All numbers are little-endian.
//!
//! ```text
//! magic and version  4 bytes
//! CRC-32 of the rest 4
//! payload length     4
//! number of events   4
//! first event number 8
//! payload: for each event
//!     id 16, timestamp 8, received_at 8, lengths of its texts 4 × 4, length of its origin's name 1, texts, name
//! ```
//!
//! An origin with the length 255 has no name here: it is the origin of the event before.

use std::sync::Arc;

use eye_core::event::{Event, EventFields, MAX_ORIGIN_BYTES, Origin};
use eye_core::timestamp::Timestamp;
use uuid::Uuid;

/// The first bytes of a record. UTF-8 never begins with 0xFE, so no text looks like a record. The last byte is the
/// version.
pub(crate) const MAGIC: [u8; 4] = [0xFE, b'E', b'y', 1];

/// Bytes of a record before its payload.
pub(crate) const HEADER_BYTES: usize = 24;

const EVENT_HEADER_BYTES: usize = 49;

/// The length of an origin's name that stands for the origin of the event before.
const SAME_ORIGIN: u8 = u8::MAX;

const _: () = assert!(MAX_ORIGIN_BYTES < SAME_ORIGIN as usize);

/// A whole record: its checksum is right.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    /// The number of its first event.
    pub(crate) first: u64,
    pub(crate) count: u32,
    payload: &'a [u8],
}

/// The result of [`parse`].
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    Whole(Record<'a>),
    /// The record is cut off: it takes this many bytes at least.
    Short(usize),
    /// The bytes are no record, or a damaged one.
    Damaged,
}

/// Encodes events as the payload of a record. Payloads may be concatenated.
pub(crate) fn encode(events: &[Event]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(events.iter().map(encoded_bytes).sum());
    let mut previous = None;
    for event in events {
        encode_after(previous, event, &mut payload);
        previous = Some(event);
    }
    payload
}

/// Returns the most bytes that an event takes in a payload.
pub(crate) fn encoded_bytes(event: &Event) -> usize {
    EVENT_HEADER_BYTES + event.size_bytes() + event.origin().name().len()
}

/// Appends an event, with its origin, to a payload.
pub(crate) fn encode_event(event: &Event, payload: &mut Vec<u8>) {
    encode_after(None, event, payload);
}

/// Appends an event to a payload that ends with the event `previous`.
fn encode_after(previous: Option<&Event>, event: &Event, payload: &mut Vec<u8>) {
    let texts = [event.session_id(), event.category(), event.name(), event.data()];
    let origin = event.origin().name();
    let is_same = previous.is_some_and(|previous| previous.origin().name() == origin);
    payload.extend_from_slice(event.id().as_bytes());
    payload.extend_from_slice(&event.timestamp().as_micros().to_le_bytes());
    payload.extend_from_slice(&event.received_at().as_micros().to_le_bytes());
    for text in texts {
        payload.extend_from_slice(&(text.len() as u32).to_le_bytes());
    }
    payload.push(if is_same { SAME_ORIGIN } else { origin.len() as u8 });
    for text in texts {
        payload.extend_from_slice(text.as_bytes());
    }
    if !is_same {
        payload.extend_from_slice(origin.as_bytes());
    }
}

/// Completes a record: its payload lies behind [`HEADER_BYTES`] bytes that this function fills.
pub(crate) fn seal(record: &mut [u8], first: u64, count: u32) {
    let payload_len = u32::try_from(record.len() - HEADER_BYTES).expect("a commit is bounded far below 4 GiB");
    record[..4].copy_from_slice(&MAGIC);
    record[8..12].copy_from_slice(&payload_len.to_le_bytes());
    record[12..16].copy_from_slice(&count.to_le_bytes());
    record[16..24].copy_from_slice(&first.to_le_bytes());
    let checksum = crc32fast::hash(&record[8..]);
    record[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Parses the record at the start of `bytes`, and verifies its checksum.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Parsed::Short(HEADER_BYTES) };
    if header[..4] != MAGIC {
        return Parsed::Damaged;
    }
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let (checksum, payload_len, count) = (number(4), number(8) as usize, number(12));
    let Some(payload) = rest.get(..payload_len) else { return Parsed::Short(HEADER_BYTES + payload_len) };
    if crc32fast::hash(&bytes[8..HEADER_BYTES + payload_len]) != checksum {
        return Parsed::Damaged;
    }
    let first = u64::from_le_bytes(header[16..].try_into().expect("8 bytes"));
    if count == 0 || first.checked_add(count.into()).is_none() {
        return Parsed::Damaged;
    }
    Parsed::Whole(Record { first, count, payload })
}

impl Record<'_> {
    /// Returns the bytes of the whole record.
    pub(crate) fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Returns the number of the event after the record's last.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Decodes the events. `None` if the payload is malformed, which a right checksum all but excludes.
    pub(crate) fn events(&self) -> Option<Vec<Event>> {
        let (mut rest, mut origin) = (self.payload, None);
        let mut events = Vec::new();
        while !rest.is_empty() {
            events.push(decode_event(&mut rest, &mut origin)?);
        }
        (events.len() == self.count as usize).then_some(events)
    }
}

/// Decodes the first event of `rest` and removes it. `origin` is that of the event before, and then that of this one.
fn decode_event(rest: &mut &[u8], origin: &mut Option<Arc<Origin>>) -> Option<Event> {
    let header = rest.split_off(..EVENT_HEADER_BYTES)?;
    let micros = |at: usize| Timestamp::from_micros(i64::from_le_bytes(header[at..at + 8].try_into().ok()?));
    let mut text = |length: usize| std::str::from_utf8(rest.split_off(..length)?).ok();
    let mut texts = [""; 4];
    for (slot, length) in texts.iter_mut().zip(header[32..48].chunks_exact(4)) {
        *slot = text(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    }
    if header[48] != SAME_ORIGIN {
        let name = text(header[48].into())?;
        if origin.as_ref().is_none_or(|origin| origin.name() != name) {
            *origin = Some(Arc::new(Origin::new(name, None)));
        }
    }
    let [session_id, category, name, data] = texts;
    Some(Event::from(EventFields {
        id: Uuid::from_slice(&header[..16]).ok()?,
        timestamp: micros(16)?,
        received_at: micros(24)?,
        session_id,
        category,
        name,
        data,
        origin: origin.as_ref()?,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::testkit::{event, events};
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
            origin in "[ab]{0,1}|[a-zé]{0,80}",
        ) -> Event {
            Event::from(EventFields {
                id: Uuid::from_bytes(id),
                timestamp: Timestamp::from_micros(timestamp).unwrap(),
                received_at: Timestamp::from_micros(received_at).unwrap(),
                session_id: &texts[0],
                category: &texts[1],
                name: &texts[2],
                data: &texts[3],
                origin: &Arc::new(Origin::new(&origin, None)),
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
        fn written_events_are_decoded_unchanged(
            events in prop::collection::vec(any_event(), 1..10),
            first in 0..u64::MAX / 2,
            trailing in any::<Vec<u8>>(),
        ) {
            let mut bytes = record(&events, first);
            let size = bytes.len();
            bytes.extend(trailing);
            let record = whole(&bytes);
            prop_assert_eq!((record.first, record.size_bytes()), (first, size));
            prop_assert_eq!(record.end(), first + events.len() as u64);
            prop_assert_eq!(record.events().unwrap(), events);
        }

        #[test]
        fn any_damaged_byte_is_detected(position in any::<prop::sample::Index>(), damage in 1..=u8::MAX) {
            let mut bytes = record(&events(0, 5), 7);
            let position = position.index(bytes.len());
            bytes[position] ^= damage;
            prop_assert!(!matches!(parse(&bytes), Parsed::Whole(_)));
        }

        #[test]
        fn hostile_payload_with_right_checksum_is_harmless(payload in any::<Vec<u8>>(), count in 0_u32..4, first: u64) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend(payload);
            seal(&mut bytes, first, count);
            if let Parsed::Whole(record) = parse(&bytes) {
                let _ = record.events();
            }
        }

        #[test]
        fn hostile_lengths_are_harmless(events in 1_u32..4, word in 0_usize..40, value: u32) {
            let mut bytes = record(&eye_core::testkit::events(0, events), 7);
            let at = HEADER_BYTES + word * 4;
            prop_assume!(at + 4 <= bytes.len());
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes, 7, events);
            let _ = whole(&bytes).events();
        }
    }

    fn event_from(origin: &str) -> Event {
        let event = event(0);
        Event::from(EventFields {
            id: event.id(),
            timestamp: event.timestamp(),
            received_at: event.received_at(),
            session_id: event.session_id(),
            category: event.category(),
            name: event.name(),
            data: event.data(),
            origin: &Arc::new(Origin::new(origin, None)),
        })
    }

    #[test]
    fn consecutive_events_of_one_origin_share_it() {
        let all = ["web", "web", "app", "web"].map(event_from);
        assert_eq!(encode(&all).len(), all.iter().map(encoded_bytes).sum::<usize>() - "web".len());
        let bytes = record(&all, 0);
        let decoded = whole(&bytes).events().unwrap();
        assert_eq!(decoded, all);
        assert!(Arc::ptr_eq(decoded[0].origin(), decoded[1].origin()));
    }

    #[test]
    fn first_event_without_origin_is_malformed() {
        let mut bytes = record(&[event_from("web")], 0);
        bytes[HEADER_BYTES + 48] = SAME_ORIGIN;
        seal(&mut bytes, 0, 1);
        assert!(whole(&bytes).events().is_none());
    }

    #[test]
    fn cut_off_record_is_short() {
        let bytes = record(&events(0, 2), 7);
        assert!(matches!(parse(&bytes[..bytes.len() - 1]), Parsed::Short(needed) if needed == bytes.len()));
        assert!(matches!(parse(&bytes[..HEADER_BYTES - 1]), Parsed::Short(HEADER_BYTES)));
    }
}
