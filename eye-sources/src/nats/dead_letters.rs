//! What of a message was refused for good, as it is kept: such that sending it again to `POST /api/event/`, however often,
//! stores what it holds once.

use bytes::Bytes;
use eye_core::ack::Rejection;
use eye_core::event::{EventId, ParseContext};
use serde::de::IgnoredAny;

use crate::decode::{Framing, NewIds, decode};

/// A message that was taken, and of which something was refused.
pub(super) struct Sifted {
    pub(super) payload: Bytes,
    /// `None` where its content type is not one of events.
    pub(super) framing: Option<Framing>,
    pub(super) max_body_bytes: u32,
    pub(super) context: ParseContext,
    pub(super) new_ids: NewIds,
    /// What the store refused of the events that passed the gate.
    pub(super) refused: Vec<Rejection>,
    /// What the server lets through.
    pub(super) max_payload: usize,
}

/// Who refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Gate,
    Store,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) by: By,
    pub(super) reason: String,
    pub(super) payload: Vec<u8>,
}

impl Sifted {
    /// One for each refused event, or one for a message in which none could be read. Reads the message again, since next
    /// to none is refused.
    ///
    /// A message with more refused events than a report lists is kept whole: as thousands of letters it would crowd out
    /// all others.
    pub(super) fn letters(self) -> Vec<Letter> {
        let whole = |reason: String| vec![Letter { by: By::Gate, reason, payload: self.payload.to_vec() }];
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
        let by_gate = decoded.invalid.iter().map(|event| {
            let text = text[event.text.clone()].trim_ascii();
            let with_id = with_id(text, self.new_ids.of(event.index));
            let payload = with_id.filter(|text| text.len() <= self.max_payload).unwrap_or_else(|| text.to_vec());
            Letter { by: By::Gate, reason: event.errors.to_string(), payload }
        });
        let by_store = self.refused.iter().map(|Rejection { index, reason }| {
            let mut payload = serde_json::to_vec(&decoded.events[*index]).expect("an event can be written as JSON");
            // With what it had not when it came (its id, when it was received) there may be no room for it.
            if payload.len() > self.max_payload && decoded.indices.len() + decoded.invalid.len() == 1 {
                payload = self.payload.to_vec();
            }
            Letter { by: By::Store, reason: reason.to_string(), payload }
        });
        by_gate.chain(by_store).collect()
    }
}

/// An object with this `id` in front. Of two equal keys the last one wins, so an id of its own stays what it is. `None`
/// for what is no object.
fn with_id(text: &[u8], id: EventId) -> Option<Vec<u8>> {
    let members = text.strip_prefix(b"{").filter(|_| serde_json::from_slice::<IgnoredAny>(text).is_ok())?;
    let comma = if members.trim_ascii_start() == b"}" { "" } else { "," };
    let mut object = format!("{{\"id\":\"{id}\"{comma}").into_bytes();
    object.extend_from_slice(members);
    Some(object)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::event::Event;

    use super::*;
    use crate::decode::MAX_LISTED;

    const GOOD: &str = r#"{"session_id":"s","category":"c","name":"n","data":[1],"timestamp":"2021-01-01"}"#;
    const ID: EventId = EventId::from_u128(7);

    fn sifted(payload: impl Into<Vec<u8>>, framing: Framing) -> Sifted {
        Sifted {
            payload: payload.into().into(),
            framing: Some(framing),
            max_body_bytes: 1 << 20,
            context: crate::fake::parse_context(),
            new_ids: NewIds::From(ID),
            refused: Vec::new(),
            max_payload: 1 << 20,
        }
    }

    fn payloads(letters: &[Letter]) -> Vec<String> {
        letters.iter().map(|letter| String::from_utf8_lossy(&letter.payload).into_owned()).collect()
    }

    #[test]
    fn only_the_refused_events_of_a_message_are_kept_each_with_its_id() {
        let second = NewIds::From(ID).of(2);
        for (body, framing) in [
            (format!("\u{feff}[ {{ }} ,{GOOD},{{\"name\" : 1}},3]"), Framing::Json),
            (format!("{{ }}\n{GOOD}\r\n{{\"name\" : 1}}\r\n 3\n"), Framing::Ndjson),
        ] {
            let letters = sifted(body, framing).letters();
            let expected =
                [format!(r#"{{"id":"{ID}" }}"#), format!(r#"{{"id":"{second}","name" : 1}}"#), "3".to_owned()];
            assert_eq!(payloads(&letters), expected);
            assert!(letters.iter().all(|letter| letter.by == By::Gate));
            assert!(letters[0].reason.starts_with("session_id: This field is required."), "{letters:?}");
        }
    }

    #[test]
    fn an_id_of_its_own_stays() {
        let own = EventId::from_u128(9);
        let bad = GOOD.replace("\"n\"", "\" \"").replacen('{', &format!("{{\"id\":\"{own}\","), 1);
        let letters = sifted(bad, Framing::Json).letters();
        // What the operator corrects.
        let corrected = payloads(&letters)[0].replace("\" \"", "\"n\"");
        let event = Event::parse(corrected.as_bytes(), Timestamp::MIN, &EventLimits::default()).unwrap();
        assert_eq!(event.id(), own);
    }

    #[test]
    fn a_line_that_is_not_json_is_kept_as_it_is() {
        let letters = sifted("{\"a\":\n{\"b\"\n\n{}}\n", Framing::Ndjson).letters();
        assert_eq!(payloads(&letters), ["{\"a\":", "{\"b\"", "{}}"]);
    }

    #[test]
    fn what_cannot_be_read_is_kept_whole() {
        let table = [
            (sifted("{", Framing::Json), "JSON parse error at line 1"),
            (sifted(b"\xff".to_vec(), Framing::Json), "JSON parse error at line 1"),
            (Sifted { framing: None, ..sifted(GOOD, Framing::Json) }, "content type"),
            (Sifted { max_body_bytes: 5, ..sifted(GOOD, Framing::Json) }, "more than 5 bytes"),
            (sifted("1 ".repeat(MAX_LISTED + 1), Framing::Json), "10001 events of the message are refused"),
        ];
        for (sifted, reason) in table {
            let payload = sifted.payload.to_vec();
            let letters = sifted.letters();
            assert!(letters.len() == 1 && letters[0].payload == payload, "{letters:?}");
            assert!(letters[0].reason.contains(reason), "{}", letters[0].reason);
        }
    }

    #[test]
    fn what_the_store_refused_is_kept_as_the_event_that_it_is() {
        let refused = vec![Rejection { index: 1, reason: "no".into() }];
        let letters = Sifted { refused, ..sifted(format!("[{GOOD},1,{GOOD}]"), Framing::Json) }.letters();
        assert_eq!(letters.iter().map(|letter| letter.by).collect::<Vec<_>>(), [By::Gate, By::Store]);
        let event = Event::parse(&letters[1].payload, Timestamp::MIN, &EventLimits::default()).unwrap();
        assert_eq!((event.id(), letters[1].reason.as_str()), (NewIds::From(ID).of(2), "no"));
    }

    #[test]
    fn an_event_that_is_too_large_with_its_id_is_kept_as_it_came() {
        let refused = vec![Rejection { index: 0, reason: "no".into() }];
        let letters = Sifted { refused, max_payload: GOOD.len(), ..sifted(GOOD, Framing::Json) }.letters();
        assert_eq!(payloads(&letters), [GOOD]);
    }
}
