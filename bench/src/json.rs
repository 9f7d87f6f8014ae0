//! Request bodies: the JSON of generated events, with as little work as possible.
//!
//! The load generator shares the machine with the program that it measures. So a [`JsonBuffer`] is written once, and
//! each new event overwrites only the parts that differ. This works because all events have the same length.

use std::ops::Range;
use std::sync::LazyLock;

use chrono::{DateTime, Datelike, Timelike};
use uuid::Uuid;

use crate::events::{EventGenerator, GeneratedEvent, category_text, data_text, name_text, now_us};

/// Length of the JSON of one event, in bytes.
pub(crate) const JSON_BYTES: usize = 338;

/// The JSON of an event, and the offsets of the parts that differ between events.
struct JsonTemplate {
    text: String,
    id: usize,
    session_id: usize,
    category: usize,
    name: usize,
    timestamp: usize,
    article: usize,
}

static TEMPLATE: LazyLock<JsonTemplate> = LazyLock::new(|| {
    let (id, category, name, data) = (Uuid::nil(), category_text(0), name_text(0), data_text(0));
    let text = format!(
        r#"{{"id":"{id}","session_id":"{id}","category":"{category}","name":"{name}","timestamp":"2026-01-01T00:00:00.000000Z","data":{data}}}"#
    );
    let after = |key: &str| text.find(key).expect("the template has every key") + key.len();
    JsonTemplate {
        id: after(r#""id":""#),
        session_id: after(r#""session_id":""#),
        category: after(r#""category":"page interaction "#),
        name: after(r#""name":"cta click "#),
        timestamp: after(r#""timestamp":""#),
        article: after("/articles/"),
        text,
    }
});

/// A request body with one or more events.
pub(crate) struct JsonBuffer {
    bytes: Vec<u8>,
    /// Offset of each event.
    starts: Vec<usize>,
}

impl JsonBuffer {
    /// Creates a body with a single object for one event, else with an array.
    pub(crate) fn new(events: usize) -> Self {
        let text = TEMPLATE.text.as_str();
        let (open, close) = if events == 1 { ("", "") } else { ("[", "]") };
        let bytes = format!("{open}{}{close}", vec![text; events].join(",")).into_bytes();
        let starts = (0..events).map(|index| open.len() + index * (text.len() + 1)).collect();
        Self { bytes, starts }
    }

    /// Overwrites the body with the generator's next events. Returns their numbers.
    pub(crate) fn fill(&mut self, generator: &mut EventGenerator) -> Range<u64> {
        let first = generator.next_number();
        let now = now_us();
        for &start in &self.starts {
            write_event(&mut self.bytes[start..], &generator.next_event(now));
        }
        first..generator.next_number()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn write_event(text: &mut [u8], event: &GeneratedEvent) {
    let template = &*TEMPLATE;
    for (offset, uuid) in [(template.id, event.id), (template.session_id, event.session_id)] {
        uuid.as_hyphenated().encode_lower(&mut text[offset..][..36]);
    }
    write_digits(&mut text[template.category..][..2], event.category.into());
    write_digits(&mut text[template.name..][..3], event.name.into());
    write_digits(&mut text[template.article..][..6], event.article);
    write_timestamp(&mut text[template.timestamp..][..27], event.timestamp_us);
}

/// Overwrites the digits of a text such as `2026-01-01T00:00:00.000000Z`.
fn write_timestamp(text: &mut [u8], timestamp_us: i64) {
    let time = DateTime::from_timestamp_micros(timestamp_us).expect("a timestamp of this age");
    write_digits(&mut text[0..4], time.year() as u32);
    write_digits(&mut text[5..7], time.month());
    write_digits(&mut text[8..10], time.day());
    write_digits(&mut text[11..13], time.hour());
    write_digits(&mut text[14..16], time.minute());
    write_digits(&mut text[17..19], time.second());
    write_digits(&mut text[20..26], time.timestamp_subsec_micros());
}

/// Fills the text with the last decimal digits of the number.
fn write_digits(text: &mut [u8], mut number: u32) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::events::SessionPattern;

    fn generator() -> EventGenerator {
        EventGenerator::new(7, 0, 1, SessionPattern::ComeAndGo)
    }

    #[test]
    fn body_has_the_same_events_as_the_generator() {
        let (mut for_body, mut expected) = (generator(), generator());
        let mut body = JsonBuffer::new(3);
        for _ in 0..2 {
            assert_eq!(body.fill(&mut for_body).count(), 3);
        }
        let sent: Vec<Value> = serde_json::from_slice(body.bytes()).unwrap();
        assert_eq!(sent.len(), 3);
        for (sent, expected) in sent.iter().zip((0..6).map(|_| expected.next_event(0)).skip(3)) {
            let data: Value = serde_json::from_str(&expected.data()).unwrap();
            let (id, session) = (expected.id.to_string(), expected.session_id.to_string());
            assert_eq!((&sent["id"], &sent["session_id"]), (&json!(id), &json!(session)));
            assert_eq!((&sent["category"], &sent["name"]), (&json!(expected.category()), &json!(expected.name())));
            assert_eq!(sent["data"], data);
            let timestamp = DateTime::parse_from_rfc3339(sent["timestamp"].as_str().unwrap()).unwrap();
            assert!((now_us() - timestamp.timestamp_micros()).abs() < 60_000_000);
        }
    }

    #[test]
    fn event_has_the_documented_length() {
        assert_eq!(JsonBuffer::new(1).bytes().len(), JSON_BYTES);
    }

    #[test]
    fn timestamp_is_written_to_the_microsecond() {
        let mut text = *b"2026-01-01T00:00:00.000000Z";
        for (us, expected) in
            [(0, "1970-01-01T00:00:00.000000Z"), (1_609_492_527_243_860, "2021-01-01T09:15:27.243860Z")]
        {
            write_timestamp(&mut text, us);
            assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
        }
    }
}
