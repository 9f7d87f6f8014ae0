//! The dead letters of a message of which something was refused. Sending a letter to `POST /api/event/`, however often, stores its
//! event once.

use bytes::Bytes;
use eye_core::ack::Rejection;
use eye_core::event::{DefaultTimestamp, Event, EventId, ParseContext};
use eye_core::timestamp::Timestamp;
use serde::de::IgnoredAny;

use crate::decode::{Framing, NewIds, decode};

/// A message of which something was refused.
pub(super) struct RefusedMessage {
    pub(super) payload: Bytes,
    /// `None` when its content type is not one of events.
    pub(super) framing: Option<Framing>,
    pub(super) max_body_bytes: u32,
    pub(super) context: ParseContext,
    pub(super) new_ids: NewIds,
    /// Refused by the store among the events that passed validation.
    pub(super) refused_by_store: Vec<Rejection>,
    /// The server's limit of a message.
    pub(super) max_payload: usize,
}

/// The part of the pipeline that refused an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedBy {
    Validation,
    Store,
}

/// The content of one dead letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RefusedPart {
    pub(super) refused_by: RefusedBy,
    pub(super) reason: String,
    pub(super) payload: Vec<u8>,
}

impl RefusedMessage {
    /// Returns a part for each refused event, or one for a message in which no event could be read. Parses the message again:
    /// refusals are rare.
    ///
    /// A message with more refused events than a report lists is one part: as thousands of letters it would crowd out all
    /// others.
    pub(super) fn into_parts(self) -> Vec<RefusedPart> {
        let whole = |reason: String| {
            vec![RefusedPart { refused_by: RefusedBy::Validation, reason, payload: self.payload.to_vec() }]
        };
        let Some(framing) = self.framing else { return whole("The content type is not one of events.".to_owned()) };
        if self.payload.len() > self.max_body_bytes as usize {
            return whole(format!("The message has more than {} bytes (`max_body_bytes`).", self.max_body_bytes));
        }
        let decoded = match decode(&self.payload, framing, &self.context, self.new_ids) {
            Ok(decoded) => decoded,
            Err(error) => return whole(error.to_string()),
        };
        if decoded.unlisted > 0 {
            let refused = decoded.invalid.len() + decoded.unlisted;
            return whole(format!(
                "{refused} events of the message are refused, the first: {}",
                decoded.invalid[0].errors
            ));
        }
        let text = self.payload.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&self.payload);
        let by_validation = decoded.invalid.iter().map(|event| {
            let text = text[event.text.clone()].trim_ascii();
            let completed = complete(text, self.new_ids.of(event.index), self.time_to_add(text));
            let payload = completed.filter(|text| text.len() <= self.max_payload).unwrap_or_else(|| text.to_vec());
            RefusedPart { refused_by: RefusedBy::Validation, reason: event.errors.to_string(), payload }
        });
        let by_store = self.refused_by_store.iter().map(|Rejection { index, reason }| {
            let mut payload = serde_json::to_vec(&decoded.events[*index]).expect("an event can be written as JSON");
            // The added fields (id, time of receipt) may not fit.
            if payload.len() > self.max_payload && decoded.indices.len() + decoded.invalid.len() == 1 {
                payload = self.payload.to_vec();
            }
            RefusedPart { refused_by: RefusedBy::Store, reason: reason.to_string(), payload }
        });
        by_validation.chain(by_store).collect()
    }

    /// Returns the time of an event that tells none itself. Over HTTP an event with an `id` needs one.
    fn time_to_add(&self, text: &[u8]) -> Option<Timestamp> {
        let DefaultTimestamp::ForEveryEvent(time) = self.context.default_timestamp else { return None };
        let context = ParseContext { default_timestamp: DefaultTimestamp::None, ..self.context.clone() };
        let errors = Event::parse(text, &context).err()?;
        errors.fields().any(|(field, _)| field == "timestamp").then_some(time)
    }
}

/// Puts `id` and `timestamp` in front of an object's members. Of two equal keys the last one wins, so own members stay. `None`
/// when the text is no object.
fn complete(text: &[u8], id: EventId, timestamp: Option<Timestamp>) -> Option<Vec<u8>> {
    let members = text.strip_prefix(b"{").filter(|_| serde_json::from_slice::<IgnoredAny>(text).is_ok())?;
    let timestamp = timestamp.map_or_else(String::new, |time| format!(",\"timestamp\":\"{time}\""));
    let comma = if members.trim_ascii_start() == b"}" { "" } else { "," };
    let mut object = format!("{{\"id\":\"{id}\"{timestamp}{comma}").into_bytes();
    object.extend_from_slice(members);
    Some(object)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::decode::MAX_LISTED;
    use crate::fake::parse_context;

    const GOOD: &str = r#"{"session_id":"s","category":"c","name":"n","data":[1],"timestamp":"2021-01-01"}"#;
    const ID: EventId = EventId::from_u128(7);

    fn refused(payload: impl Into<Vec<u8>>, framing: Framing) -> RefusedMessage {
        RefusedMessage {
            payload: payload.into().into(),
            framing: Some(framing),
            max_body_bytes: 1 << 20,
            context: parse_context(),
            new_ids: NewIds::From(ID),
            refused_by_store: Vec::new(),
            max_payload: 1 << 20,
        }
    }

    fn payloads(parts: &[RefusedPart]) -> Vec<String> {
        parts.iter().map(|part| String::from_utf8_lossy(&part.payload).into_owned()).collect()
    }

    #[test]
    fn only_refused_events_become_parts_with_ids() {
        let second = NewIds::From(ID).of(2);
        for (body, framing) in [
            (format!("\u{feff}[ {{ }} ,{GOOD},{{\"name\" : 1}},3]"), Framing::Json),
            (format!("{{ }}\n{GOOD}\r\n{{\"name\" : 1}}\r\n 3\n"), Framing::Ndjson),
        ] {
            let parts = refused(body, framing).into_parts();
            let expected =
                [format!(r#"{{"id":"{ID}" }}"#), format!(r#"{{"id":"{second}","name" : 1}}"#), "3".to_owned()];
            assert_eq!(payloads(&parts), expected);
            assert!(parts.iter().all(|part| part.refused_by == RefusedBy::Validation));
            assert!(parts[0].reason.starts_with("session_id: This field is required."), "{parts:?}");
        }
    }

    #[test]
    fn own_id_stays() {
        let own = EventId::from_u128(9);
        let bad = GOOD.replace("\"n\"", "\" \"").replacen('{', &format!("{{\"id\":\"{own}\","), 1);
        let parts = refused(bad, Framing::Json).into_parts();
        // The operator corrects the payload.
        let corrected = payloads(&parts)[0].replace("\" \"", "\"n\"");
        let event = Event::parse(corrected.as_bytes(), &parse_context()).unwrap();
        assert_eq!(event.id(), own);
    }

    /// Over HTTP the corrected event has the time that it would have had from the stream.
    #[test]
    fn event_without_timestamp_gets_the_time_of_its_message() {
        let time = Timestamp::parse("2020-02-03").unwrap();
        let default_timestamp = DefaultTimestamp::ForEveryEvent(time);
        let table = [
            ("", time),
            (r#","id":"0176bd3a-f79b-4000-8000-000000000001""#, time),
            (r#","id":"0176bd3a-f79b-7000-8000-000000000001""#, Timestamp::parse("2021-01-01T09:15:27.003Z").unwrap()),
            (r#","timestamp":1"#, Timestamp::from_micros(1_000_000).unwrap()),
        ];
        for (members, expected) in table {
            let bad = format!(r#"{{"session_id":"s","category":"c","name":" "{members}}}"#);
            let message = refused(bad, Framing::Json);
            let context = ParseContext { default_timestamp, ..message.context.clone() };
            let parts = RefusedMessage { context, ..message }.into_parts();
            let corrected = payloads(&parts)[0].replace("\" \"", "\"n\"");
            let event = Event::parse(corrected.as_bytes(), &parse_context());
            assert_eq!(event.map(|event| event.timestamp()), Ok(expected), "{corrected}");
        }
    }

    #[test]
    fn line_that_is_not_json_stays_unchanged() {
        let parts = refused("{\"a\":\n{\"b\"\n\n{}}\n", Framing::Ndjson).into_parts();
        assert_eq!(payloads(&parts), ["{\"a\":", "{\"b\"", "{}}"]);
    }

    #[test]
    fn unreadable_message_is_one_part() {
        let table = [
            (refused("{", Framing::Json), "JSON parse error at line 1"),
            (refused(b"\xff".to_vec(), Framing::Json), "JSON parse error at line 1"),
            (RefusedMessage { framing: None, ..refused(GOOD, Framing::Json) }, "content type"),
            (RefusedMessage { max_body_bytes: 5, ..refused(GOOD, Framing::Json) }, "more than 5 bytes"),
            (refused("1 ".repeat(MAX_LISTED + 1), Framing::Json), "10001 events of the message are refused"),
        ];
        for (message, reason) in table {
            let payload = message.payload.to_vec();
            let parts = message.into_parts();
            assert!(parts.len() == 1 && parts[0].payload == payload, "{parts:?}");
            assert!(parts[0].reason.contains(reason), "{}", parts[0].reason);
        }
    }

    #[test]
    fn event_refused_by_store_keeps_its_id() {
        let refused_by_store = vec![Rejection { index: 1, reason: "no".into() }];
        let parts =
            RefusedMessage { refused_by_store, ..refused(format!("[{GOOD},1,{GOOD}]"), Framing::Json) }.into_parts();
        assert_eq!(
            parts.iter().map(|part| part.refused_by).collect::<Vec<_>>(),
            [RefusedBy::Validation, RefusedBy::Store]
        );
        let event = Event::parse(&parts[1].payload, &parse_context()).unwrap();
        assert_eq!((event.id(), parts[1].reason.as_str()), (NewIds::From(ID).of(2), "no"));
    }

    #[test]
    fn event_too_large_with_id_stays_unchanged() {
        let refused_by_store = vec![Rejection { index: 0, reason: "no".into() }];
        let parts =
            RefusedMessage { refused_by_store, max_payload: GOOD.len(), ..refused(GOOD, Framing::Json) }.into_parts();
        assert_eq!(payloads(&parts), [GOOD]);
    }
}
