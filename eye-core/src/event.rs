//! The event, and the one gate that bad input does not pass.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::timestamp::Timestamp;

/// The producer's idempotency key, or one that the server minted (UUIDv7).
pub type EventId = Uuid;

/// Something that happened in an application.
///
/// Cheap to clone: the texts of an event lie in one shared allocation. An event that exists has passed the gate, so
/// every sink can store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    id: EventId,
    timestamp: Timestamp,
    received_at: Timestamp,
    text: Arc<str>,
    session_id: Range<u32>,
    category: Range<u32>,
    name: Range<u32>,
    data: Range<u32>,
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
        self.slice(&self.session_id)
    }

    /// Its category: 1 to 150 characters.
    pub fn category(&self) -> &str {
        self.slice(&self.category)
    }

    /// Its name: 1 to 150 characters.
    pub fn name(&self) -> &str {
        self.slice(&self.name)
    }

    /// Its data: JSON text as the producer sent it, less the white space between tokens.
    pub fn data(&self) -> &str {
        self.slice(&self.data)
    }

    /// Bytes of the event's texts, for bounds on queues and batches.
    pub fn size_bytes(&self) -> usize {
        self.text.len()
    }

    fn slice(&self, range: &Range<u32>) -> &str {
        &self.text[range.start as usize..range.end as usize]
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
        let parts = [fields.session_id, fields.category, fields.name, fields.data];
        let mut end = 0;
        let [session_id, category, name, data] = parts.map(|part| {
            let start = end;
            end += u32::try_from(part.len()).expect("an event is far smaller than 4 GiB");
            start..end
        });
        let text = Arc::from(parts.concat());
        Self {
            id: fields.id,
            timestamp: fields.timestamp,
            received_at: fields.received_at,
            text,
            session_id,
            category,
            name,
            data,
        }
    }
}
