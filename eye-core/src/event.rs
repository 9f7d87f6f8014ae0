//! The event, and the one gate that bad input does not pass.

mod errors;
mod parse;

use std::sync::Arc;

use serde::ser::{Error as _, SerializeStruct};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::timestamp::Timestamp;

pub use errors::EventErrors;

/// The producer's idempotency key, or one that the server minted (UUIDv7).
pub type EventId = Uuid;

/// The most characters (Unicode scalar values) that `session_id`, `category` and `name` may have.
pub const MAX_TEXT_CHARS: usize = 150;

/// How deep `data` may be nested: where MariaDB's JSON functions stop.
pub const MAX_DATA_LEVELS: usize = 32;

/// The bounds that operators set for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    /// The most bytes of one event as it was sent, from its first to its last.
    pub max_event_bytes: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { max_event_bytes: 1024 * 1024 }
    }
}

/// Something that happened in an application.
///
/// Cheap to clone: the texts of an event lie in one shared allocation. An event that exists has passed the gate, so
/// every sink can store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    id: EventId,
    timestamp: Timestamp,
    received_at: Timestamp,
    /// `session_id`, `category`, `name` and `data`, one behind the other.
    text: Arc<str>,
    /// Where in `text` the first three end.
    ends: [u32; 3],
}

impl Event {
    /// The idempotency key.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// When it happened, as its producer says.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// When this server took it.
    pub fn received_at(&self) -> Timestamp {
        self.received_at
    }

    /// The session it belongs to: 1 to 150 characters.
    pub fn session_id(&self) -> &str {
        &self.text[..self.end(0)]
    }

    /// Its category: 1 to 150 characters.
    pub fn category(&self) -> &str {
        &self.text[self.end(0)..self.end(1)]
    }

    /// Its name: 1 to 150 characters.
    pub fn name(&self) -> &str {
        &self.text[self.end(1)..self.end(2)]
    }

    /// Its data: JSON text as the producer sent it, less the white space between tokens.
    pub fn data(&self) -> &str {
        &self.text[self.end(2)..]
    }

    /// Bytes of the event's texts, for bounds on queues and batches.
    pub fn size_bytes(&self) -> usize {
        self.text.len()
    }

    fn end(&self, part: usize) -> usize {
        self.ends[part] as usize
    }

    /// Where the first three of four texts end that lie one behind the other.
    fn ends([session_id, category, name, data]: [usize; 4]) -> [u32; 3] {
        let [first, second, third] = [session_id, session_id + category, session_id + category + name];
        assert!(u32::try_from(third + data).is_ok(), "an event is far smaller than 4 GiB");
        [first, second, third].map(|end| end as u32)
    }
}

/// As JSON with all fields; `data` is the raw text.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data: &RawValue = serde_json::from_str(self.data()).map_err(S::Error::custom)?;
        let mut event = serializer.serialize_struct("Event", 7)?;
        event.serialize_field("id", self.id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))?;
        event.serialize_field("session_id", self.session_id())?;
        event.serialize_field("category", self.category())?;
        event.serialize_field("name", self.name())?;
        event.serialize_field("data", data)?;
        event.serialize_field("timestamp", &self.timestamp)?;
        event.serialize_field("received_at", &self.received_at)?;
        event.end()
    }
}

/// The plain fields of an event, for code that brings one back from where it was stored. Not a way around the gate:
/// what comes from a producer is parsed.
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
}

impl From<EventFields<'_>> for Event {
    fn from(fields: EventFields<'_>) -> Self {
        let EventFields { id, timestamp, received_at, session_id, category, name, data } = fields;
        let parts = [session_id, category, name, data];
        Self { id, timestamp, received_at, text: parts.concat().into(), ends: Self::ends(parts.map(str::len)) }
    }
}

#[cfg(test)]
#[path = "testkit/strategy.rs"]
pub mod strategy;
#[cfg(test)]
mod tests;
