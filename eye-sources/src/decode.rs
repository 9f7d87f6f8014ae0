//! The decoder from a message body to events: the same grammar for every source.
//!
//! [`decode`] reads a whole body and returns the events that are valid and the errors of those that are not, each with
//! its index in the body.

use std::ops::Range;

use eye_core::event::{Event, EventErrors, EventId, ParseContext};
use eye_core::json::{JsonText, Scanner, SyntaxError};
use uuid::Uuid;

/// The separation of events within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One object, an array of objects, or several of these one after the other.
    Json,
    /// One object a line.
    Ndjson,
}

impl Framing {
    /// Returns the framing for the media type of a `Content-Type`, whose parameters are ignored. `None` for an unknown one.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let is = |name| media_type.eq_ignore_ascii_case(name);
        if is("application/json") || is("text/plain") {
            Some(Self::Json)
        } else if is("application/x-ndjson") {
            Some(Self::Ndjson)
        } else {
            None
        }
    }
}

/// The most refused events that are listed with their errors. Without a bound, two bytes of a body (`1,`) would take
/// hundreds of bytes of the report.
pub const MAX_LISTED: usize = 10_000;

/// The largest body that is parsed on the task that read it: parsing takes less time than handing it to another thread.
pub const INLINE_MAX_BYTES: usize = 128 * 1024;

/// The contents of a body.
#[derive(Debug)]
pub struct Decoded {
    /// The valid events, in the order of the body.
    pub events: Vec<Event>,
    /// The index in the body of each of them, from 0.
    pub indices: Vec<usize>,
    /// The invalid events, in the order of the body; the first [`MAX_LISTED`] of them.
    pub invalid: Vec<InvalidEvent>,
    /// The number of further invalid events.
    pub unlisted: usize,
    /// False only for a body that is one single value and no array.
    pub many: bool,
}

/// An invalid event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidEvent {
    /// Its index in the body, from 0.
    pub index: usize,
    /// Its faults.
    pub errors: EventErrors,
    /// Its text's range in the body, not counting a byte order mark.
    pub text: Range<usize>,
}

/// The source of the `id` of an event that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewIds {
    /// A UUIDv7 for each event: the same body sent again holds other events.
    Random,
    /// Derived from the id of the message, which may be delivered again: the id itself for the first event of the body,
    /// and the UUIDv5 of it and the index for the others.
    From(EventId),
}

impl NewIds {
    /// Returns the id of the event at this index.
    pub fn of(self, index: usize) -> EventId {
        match self {
            Self::Random => Uuid::now_v7(),
            Self::From(first) if index == 0 => first,
            Self::From(first) => Uuid::new_v5(&first, &(index as u64).to_be_bytes()),
        }
    }
}

/// Decodes a body. An invalid event does not affect the others.
///
/// # Errors
/// [`SyntaxError`] when a JSON body is not JSON: no event of it is taken. In NDJSON this refuses just the line.
pub fn decode(body: &[u8], framing: Framing, context: &ParseContext, new_ids: NewIds) -> Result<Decoded, SyntaxError> {
    let text = JsonText::new(body);
    let mut decoder = Decoder {
        scanner: Scanner::new(&text),
        context,
        new_ids,
        decoded: Decoded { events: Vec::new(), indices: Vec::new(), invalid: Vec::new(), unlisted: 0, many: false },
    };
    match framing {
        Framing::Json => decoder.json()?,
        Framing::Ndjson => decoder.ndjson(&text),
    }
    Ok(decoder.decoded)
}

struct Decoder<'a> {
    scanner: Scanner<'a>,
    context: &'a ParseContext,
    new_ids: NewIds,
    decoded: Decoded,
}

impl<'a> Decoder<'a> {
    fn json(&mut self) -> Result<(), SyntaxError> {
        self.scanner.skip_white_space();
        if self.scanner.peek().is_none() {
            return Err(SyntaxError::empty_body("an event"));
        }
        while let Some(byte) = self.scanner.peek() {
            if byte == b'[' {
                self.array()?;
            } else {
                self.decoded.many |= self.next_index() > 0;
                self.event()?;
            }
            self.scanner.skip_white_space();
        }
        Ok(())
    }

    fn array(&mut self) -> Result<(), SyntaxError> {
        self.decoded.many = true;
        self.scanner.eat(b'[');
        self.scanner.skip_white_space();
        if self.scanner.eat(b']') {
            return Ok(());
        }
        loop {
            self.event()?;
            self.scanner.skip_white_space();
            if self.scanner.eat(b']') {
                return Ok(());
            }
            if !self.scanner.eat(b',') {
                return Err(self.scanner.unexpected("`,` or `]`"));
            }
            self.scanner.skip_white_space();
        }
    }

    fn event(&mut self) -> Result<(), SyntaxError> {
        let start = self.scanner.position();
        let event = self.scan()?;
        self.push(event, start..self.scanner.position());
        Ok(())
    }

    fn scan(&mut self) -> Result<Result<Event, EventErrors>, SyntaxError> {
        let (new_ids, index) = (self.new_ids, self.next_index());
        Event::scan(&mut self.scanner, self.context, || new_ids.of(index))
    }

    fn ndjson(&mut self, text: &'a JsonText<'_>) {
        self.decoded.many = true;
        let mut start = 0;
        for (number, line) in (1..).zip(text.as_str().split('\n')) {
            let end = start + line.len();
            self.scanner.enter_line(text, start..end, number);
            self.scanner.skip_white_space();
            if self.scanner.peek().is_some() {
                let event = self.line().unwrap_or_else(|error| Err(EventErrors::syntax(error)));
                self.push(event, start..end);
            }
            start = end + 1;
        }
    }

    /// Reads the event of a line, which holds nothing else.
    fn line(&mut self) -> Result<Result<Event, EventErrors>, SyntaxError> {
        let event = self.scan()?;
        self.scanner.skip_white_space();
        if self.scanner.peek().is_some() { Err(self.scanner.unexpected("the end of the line")) } else { Ok(event) }
    }

    fn push(&mut self, event: Result<Event, EventErrors>, text: Range<usize>) {
        let index = self.next_index();
        match event {
            Ok(event) => {
                self.decoded.events.push(event);
                self.decoded.indices.push(index);
            }
            Err(errors) if self.decoded.invalid.len() < MAX_LISTED => {
                self.decoded.invalid.push(InvalidEvent { index, errors, text });
            }
            Err(_) => self.decoded.unlisted += 1,
        }
    }

    fn next_index(&self) -> usize {
        self.decoded.events.len() + self.decoded.invalid.len() + self.decoded.unlisted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn decode(body: impl AsRef<[u8]>, framing: Framing) -> Result<Decoded, SyntaxError> {
        super::decode(body.as_ref(), framing, &crate::fake::parse_context(), NewIds::Random)
    }

    fn decode_json(body: impl AsRef<[u8]>) -> Decoded {
        decode(body, Framing::Json).unwrap()
    }

    fn decode_ndjson(body: impl AsRef<[u8]>) -> Decoded {
        decode(body, Framing::Ndjson).unwrap()
    }

    fn syntax_error(body: impl AsRef<[u8]>) -> String {
        decode(body, Framing::Json).unwrap_err().to_string()
    }

    /// An event that tells itself apart by its name.
    fn event(name: &str) -> String {
        format!(r#"{{"session_id":"s","category":"c","name":"{name}","data":[1],"timestamp":"2021-01-01"}}"#)
    }

    /// The names and indices of the events, the indices of those refused, and `many`.
    fn outline(decoded: &Decoded) -> (Vec<(&str, usize)>, Vec<usize>, bool) {
        let names = decoded.events.iter().map(Event::name).zip(decoded.indices.iter().copied()).collect();
        (names, decoded.invalid.iter().map(|rejected| rejected.index).collect(), decoded.many)
    }

    #[test]
    fn json_body_is_an_object_an_array_or_several() {
        let [a, b, c] = ["a", "b", "c"].map(event);
        let table = [
            (a.clone(), vec![("a", 0)], false),
            (format!(" \r\n\t{a} "), vec![("a", 0)], false),
            (format!("\u{feff}{a}"), vec![("a", 0)], false),
            ("[]".to_owned(), vec![], true),
            (" [ ] ".to_owned(), vec![], true),
            (format!("[{a}]"), vec![("a", 0)], true),
            (format!("[{a} , {b},{c}]"), vec![("a", 0), ("b", 1), ("c", 2)], true),
            (format!("{a}{b}{c}"), vec![("a", 0), ("b", 1), ("c", 2)], true),
            (format!("{a}\n{b} {c}"), vec![("a", 0), ("b", 1), ("c", 2)], true),
            (format!("[{a}][{b}]{c}"), vec![("a", 0), ("b", 1), ("c", 2)], true),
            (format!("[]{a}"), vec![("a", 0)], true),
            (format!("{a}[]"), vec![("a", 0)], true),
        ];
        for (body, events, many) in table {
            assert_eq!(outline(&decode_json(&body)), (events, vec![], many), "{body}");
        }
    }

    #[test]
    fn invalid_events_beyond_the_bound_are_only_counted() {
        for (refused, unlisted) in [(MAX_LISTED, 0), (MAX_LISTED + 2, 2)] {
            let decoded = decode_json(format!("[{}{}]", "1,".repeat(refused), event("a")));
            assert_eq!((decoded.invalid.len(), decoded.unlisted), (MAX_LISTED, unlisted));
            assert_eq!(decoded.indices, [refused]);
        }
    }

    #[test]
    fn invalid_event_does_not_affect_others() {
        let deep = event("a").replace("[1]", &format!("{}{}", "[".repeat(33), "]".repeat(33)));
        let large = event("a").replace("[1]", &format!("\"{}\"", "x".repeat(1024 * 1024)));
        let refused = [
            "{}",
            "[[]]",
            "1",
            "\"a\"",
            "null",
            &event("\\u0000"),
            &event("\\ud800"),
            &event("a").replace("[1]", "[1e400]"),
            &deep,
            &large,
            &event(" "),
        ];
        let not_utf8 =
            event("\u{7f}").into_bytes().iter().map(|&byte| if byte == 0x7f { 0xff } else { byte }).collect();
        for bad in refused.map(|text| text.as_bytes().to_vec()).into_iter().chain([not_utf8]) {
            let body = [b"[", event("a").as_bytes(), b",", &bad, b",", event("b").as_bytes(), b"]"].concat();
            let decoded = decode_json(&body);
            assert_eq!(
                outline(&decoded),
                (vec![("a", 0), ("b", 2)], vec![1], true),
                "{}",
                String::from_utf8_lossy(&bad)
            );

            let body = [event("a").as_bytes(), b"\n", &bad, b"\r\n", event("b").as_bytes(), b"\n"].concat();
            let decoded = decode_ndjson(&body);
            assert_eq!(
                outline(&decoded),
                (vec![("a", 0), ("b", 2)], vec![1], true),
                "{}",
                String::from_utf8_lossy(&bad)
            );
        }
    }

    #[test]
    fn scalars_are_refused_as_events_not_as_syntax() {
        let decoded = decode_json("\"a\"");
        assert_eq!(outline(&decoded), (vec![], vec![0], false));
        assert_eq!(decoded.invalid[0].errors.to_string(), "event: Invalid data. Expected an object, but got a string.");
        assert_eq!(outline(&decode_json("1 2")), (vec![], vec![0, 1], true));
    }

    #[test]
    fn a_syntax_error_takes_the_whole_json_body() {
        let a = event("a");
        let table = [
            (String::new(), "1 column 1: expected an event, but the body is empty"),
            (" \n ".to_owned(), "1 column 1: expected an event, but the body is empty"),
            ("\u{feff}".to_owned(), "1 column 1: expected an event, but the body is empty"),
            ("nonsense".to_owned(), "1 column 1: expected a JSON value, but found `n`"),
            ("{".to_owned(), "1 column 2: expected a key in double quotes, but the text ends here"),
            ("{\"a\":".to_owned(), "1 column 6: expected a JSON value, but the text ends here"),
            ("{\"é\":x".to_owned(), "1 column 6: expected a JSON value, but found `x`"),
            ("{\"a\":1,}".to_owned(), "1 column 8: expected a key in double quotes, but found `}`"),
            ("{\"a\":1]".to_owned(), "1 column 7: expected `,` or `}`, but found `]`"),
            ("{'a':1}".to_owned(), "1 column 2: expected a key in double quotes, but found `'`"),
            ("[".to_owned(), "1 column 2: expected a JSON value, but the text ends here"),
            ("[1,]".to_owned(), "1 column 4: expected a JSON value, but found `]`"),
            ("[1 2]".to_owned(), "1 column 4: expected `,` or `]`, but found `2`"),
            (format!("{a},{a}"), "1 column 81: expected a JSON value, but found `,`"),
            (format!("[{a}]\n]"), "2 column 1: expected a JSON value, but found `]`"),
            (format!("{a}\n\n  x"), "3 column 3: expected a JSON value, but found `x`"),
            (format!("{a}\r\nx"), "2 column 1: expected a JSON value, but found `x`"),
        ];
        for (body, expected) in table {
            assert_eq!(syntax_error(&body), format!("JSON parse error at line {expected}"), "{body}");
        }
        assert_eq!(
            syntax_error(b"{\"a\":\xff}"),
            "JSON parse error at line 1 column 6: expected a JSON value, but found a byte that is not UTF-8"
        );
    }

    #[test]
    fn ndjson_has_one_object_per_line() {
        let [a, b, c] = ["a", "b", "c"].map(event);
        let table = [
            (String::new(), vec![]),
            ("\n \r\n\n".to_owned(), vec![]),
            (a.clone(), vec![("a", 0)]),
            (format!("\u{feff}{a}\n"), vec![("a", 0)]),
            (format!("{a}\n{b}\n{c}\n"), vec![("a", 0), ("b", 1), ("c", 2)]),
            (format!("{a}\r\n\r\n \t{b} \r\n{c}"), vec![("a", 0), ("b", 1), ("c", 2)]),
        ];
        for (body, events) in table {
            assert_eq!(outline(&decode_ndjson(&body)), (events, vec![], true), "{body:?}");
        }
    }

    #[test]
    fn invalid_line_does_not_affect_others() {
        let a = event("a");
        let table = [
            ("  é".to_owned(), "JSON parse error at line 4 column 3: expected a JSON value, but found `é`"),
            (
                "{\"a\":".to_owned(),
                "JSON parse error at line 4 column 6: expected a JSON value, but the text ends here",
            ),
            (format!("{a}{a}"), "JSON parse error at line 4 column 81: expected the end of the line, but found `{`"),
            (format!("[{a}]"), "Invalid data. Expected an object, but got an array."),
            ("{}}".to_owned(), "JSON parse error at line 4 column 3: expected the end of the line, but found `}`"),
        ];
        for (line, error) in table {
            let decoded = decode_ndjson(format!("\n{a}\n\n{line}\n{a}"));
            assert_eq!(outline(&decoded), (vec![("a", 0), ("a", 2)], vec![1], true));
            assert_eq!(decoded.invalid[0].errors.to_string(), format!("event: {error}"));
        }
    }

    #[test]
    fn object_over_several_lines_is_no_ndjson() {
        assert_eq!(outline(&decode_ndjson("{\n}")), (vec![], vec![0, 1], true));
    }

    #[test]
    fn event_over_its_limit_is_skipped() {
        let mut context = crate::fake::parse_context();
        context.limits.max_event_bytes = event("a").len();
        let body = format!("[ {} ,{}, {}]", event("a"), event("ab"), event("b"));
        let decoded = super::decode(body.as_bytes(), Framing::Json, &context, NewIds::Random).unwrap();
        assert_eq!(outline(&decoded), (vec![("a", 0), ("b", 2)], vec![1], true));
        assert!(decoded.invalid[0].errors.is_too_large());
    }

    #[test]
    fn nesting_of_any_depth_is_scanned() {
        let depth = 1_000_000;
        assert!(syntax_error("[".repeat(depth)).contains("column 1000001:"));
        assert!(syntax_error("{\"\":".repeat(depth)).contains("column 4000001:"));
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let body = format!("[{},{}]", event("a").replace("[1]", &nested), event("b"));
        assert_eq!(outline(&decode_json(&body)), (vec![("b", 1)], vec![0], true));
    }

    #[test]
    fn events_without_an_id_get_one_from_their_message() {
        let own = event("own").replace('{', r#"{"id":"00000000-0000-0000-0000-000000000009","#);
        let body = format!("[{},{own},{},1]", event("a"), event("b"));
        let ids = |new_ids| {
            let context = crate::fake::parse_context();
            let decoded = super::decode(body.as_bytes(), Framing::Json, &context, new_ids).unwrap();
            decoded.events.iter().map(Event::id).collect::<Vec<_>>()
        };
        let [first, second] = [Uuid::from_u128(7), Uuid::from_u128(8)];
        let of_first = ids(NewIds::From(first));
        assert_eq!(of_first[..2], [first, Uuid::from_u128(9)]);
        assert_eq!(of_first, ids(NewIds::From(first)));
        assert!(ids(NewIds::From(second)).iter().all(|id| !of_first.contains(id) || id.as_u128() == 9));
        assert_ne!(ids(NewIds::Random), ids(NewIds::Random));
    }

    #[test]
    fn many_wrong_lines_are_located_in_linear_time() {
        let decoded = decode_ndjson("x\n".repeat(500_000));
        let last = decoded.invalid.last().unwrap().errors.to_string();
        assert!(last.contains("line 10000 column 1:"), "{last}");
        assert_eq!(decoded.invalid.len() + decoded.unlisted, 500_000);
    }

    proptest! {
        #[test]
        fn no_body_panics(
            bytes in any::<Vec<u8>>(),
            near in "([\\[\\]{},:\"\\\\u0de8-9ntfalsr. \n]|name|data|\"id\":){0,60}",
        ) {
            for body in [&bytes[..], near.as_bytes()] {
                for framing in [Framing::Json, Framing::Ndjson] {
                    if let Ok(decoded) = decode(body, framing) {
                        prop_assert_eq!(decoded.events.len(), decoded.indices.len());
                        prop_assert!(decoded.many || decoded.events.len() + decoded.invalid.len() == 1);
                    }
                }
            }
        }

        #[test]
        fn cut_body_is_a_syntax_error(at in 0..event("a").len()) {
            prop_assert!(decode(&event("a")[..at], Framing::Json).is_err());
        }
    }
}
