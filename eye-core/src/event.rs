//! The event, and the one parser that turns a producer's JSON into events.
//!
//! An [`Event`] exists only in valid form: [`Event::parse`] and [`Event::scan`] check every rule and report every fault
//! of an event at once. All of its texts lie in one allocation, so that cloning it for a second sink is cheap.

mod errors;
mod origin;
mod parse;

use std::sync::Arc;

use serde::ser::{Error as _, SerializeStruct};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::timestamp::Timestamp;

pub use errors::{EVENT_FIELD, EventErrors};
pub use origin::{MAX_ORIGIN_BYTES, Origin};
pub use parse::{DefaultTimestamp, ParseContext, time_of};

/// The producer's idempotency key, or one that the server minted (UUIDv7).
pub type EventId = Uuid;

/// The longest `session_id`, `category` and `name`, in characters (Unicode scalar values).
pub const MAX_TEXT_CHARS: usize = 150;

/// The deepest nesting of `data`: where MariaDB's JSON functions stop.
pub const MAX_DATA_LEVELS: usize = 32;

/// The limits that operators set for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    /// The largest event as it was sent, in bytes.
    pub max_event_bytes: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { max_event_bytes: 1024 * 1024 }
    }
}

/// Something that happened in an application.
///
/// Cheap to clone: the texts of an event share one allocation. Every sink can store every event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    id: EventId,
    timestamp: Timestamp,
    received_at: Timestamp,
    /// `session_id`, `category`, `name` and `data`, one behind the other.
    text: Arc<str>,
    /// The ends of the first three within `text`.
    ends: [u32; 3],
    origin: Arc<Origin>,
}

impl Event {
    /// Returns the idempotency key.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// Returns the time of the event, as its producer states it.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// Returns the time of receipt.
    pub fn received_at(&self) -> Timestamp {
        self.received_at
    }

    /// Returns the session's id: 1 to 150 characters.
    pub fn session_id(&self) -> &str {
        &self.text[..self.end(0)]
    }

    /// Returns the category: 1 to 150 characters.
    pub fn category(&self) -> &str {
        &self.text[self.end(0)..self.end(1)]
    }

    /// Returns the name: 1 to 150 characters.
    pub fn name(&self) -> &str {
        &self.text[self.end(1)..self.end(2)]
    }

    /// Returns the data: JSON text as the producer sent it, less the white space between tokens.
    pub fn data(&self) -> &str {
        &self.text[self.end(2)..]
    }

    /// Returns the bytes of the event's texts, for bounds on queues and batches.
    pub fn size_bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns the sender, whose name is stored with the event.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Returns the event's key in the order of all events.
    pub fn key(&self) -> EventKey {
        EventKey { timestamp: self.timestamp, id: self.id }
    }

    fn end(&self, part: usize) -> usize {
        self.ends[part] as usize
    }

    /// Returns the ends of the first three of four consecutive texts.
    fn ends([session_id, category, name, data]: [usize; 4]) -> [u32; 3] {
        let [first, second, third] = [session_id, session_id + category, session_id + category + name];
        assert!(u32::try_from(third + data).is_ok(), "an event is far smaller than 4 GiB");
        [first, second, third].map(|end| end as u32)
    }
}

/// Serialises as JSON with all fields; `data` is the raw text.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data: &RawValue = serde_json::from_str(self.data()).map_err(S::Error::custom)?;
        let mut event = serializer.serialize_struct("Event", 8)?;
        event.serialize_field("id", self.id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))?;
        event.serialize_field("session_id", self.session_id())?;
        event.serialize_field("category", self.category())?;
        event.serialize_field("name", self.name())?;
        event.serialize_field("data", data)?;
        event.serialize_field("timestamp", &self.timestamp)?;
        event.serialize_field("received_at", &self.received_at)?;
        event.serialize_field("origin", self.origin.name())?;
        event.end()
    }
}

/// The plain fields of an event, for code that reads a stored event back. Input from producers is parsed instead.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are those of `Event`")]
pub struct EventFields<'a> {
    pub id: EventId,
    pub timestamp: Timestamp,
    pub received_at: Timestamp,
    pub session_id: &'a str,
    pub category: &'a str,
    pub name: &'a str,
    pub data: &'a str,
    pub origin: &'a Arc<Origin>,
}

impl From<EventFields<'_>> for Event {
    fn from(fields: EventFields<'_>) -> Self {
        let EventFields { id, timestamp, received_at, session_id, category, name, data, origin } = fields;
        let parts = [session_id, category, name, data];
        let (text, ends) = (parts.concat().into(), Self::ends(parts.map(str::len)));
        Self { id, timestamp, received_at, text, ends, origin: origin.clone() }
    }
}

/// The key of an event in the order of all events: by time, ties by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    /// The time of the event.
    pub timestamp: Timestamp,
    /// Breaks ties.
    pub id: EventId,
}

#[cfg(test)]
mod tests;
