//! From a message body to events: the same grammar for every source.

use eye_core::event::{Event, EventErrors, EventLimits};
use eye_core::json::{JsonText, Scanner, SyntaxError};
use eye_core::timestamp::Timestamp;
use serde::Serialize;

/// How the events of a body are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One object, an array of objects, or several of these one behind the other.
    Json,
    /// One object a line.
    Ndjson,
}

/// The most refused events that are listed with their errors. Without a bound, two bytes of a body (`1,`) would take
/// hundreds of the report.
pub const MAX_LISTED: usize = 10_000;

/// What a body holds.
#[derive(Debug)]
pub struct Decoded {
    /// The events that passed the gate, in the order of the body.
    pub events: Vec<Event>,
    /// The place in the body of each of them, from 0.
    pub indices: Vec<usize>,
    /// The others, in the order of the body; the first [`MAX_LISTED`] of them.
    pub rejected: Vec<RejectedEvent>,
    /// How many more of the others there are.
    pub unlisted: usize,
    /// False only for a body that is one single value and no array.
    pub many: bool,
}

/// An event that did not pass the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RejectedEvent {
    /// Its place in the body, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub errors: EventErrors,
}

/// Reads a body. An event that is refused takes no other along.
///
/// # Errors
/// [`SyntaxError`] where a body of JSON is not JSON: no event of it is taken. In NDJSON this refuses just its line.
pub fn decode(
    body: &[u8],
    framing: Framing,
    received_at: Timestamp,
    limits: &EventLimits,
) -> Result<Decoded, SyntaxError> {
    let text = JsonText::new(body);
    let mut decoder = Decoder {
        scanner: Scanner::new(&text),
        received_at,
        limits,
        decoded: Decoded { events: Vec::new(), indices: Vec::new(), rejected: Vec::new(), unlisted: 0, many: false },
    };
    match framing {
        Framing::Json => decoder.json()?,
        Framing::Ndjson => decoder.ndjson(&text),
    }
    Ok(decoder.decoded)
}

struct Decoder<'a> {
    scanner: Scanner<'a>,
    received_at: Timestamp,
    limits: &'a EventLimits,
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
        let event = Event::scan(&mut self.scanner, self.received_at, self.limits)?;
        self.push(event);
        Ok(())
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
                self.push(event);
            }
            start = end + 1;
        }
    }

    /// The event of a line, which holds nothing else.
    fn line(&mut self) -> Result<Result<Event, EventErrors>, SyntaxError> {
        let event = Event::scan(&mut self.scanner, self.received_at, self.limits)?;
        self.scanner.skip_white_space();
        if self.scanner.peek().is_some() { Err(self.scanner.unexpected("the end of the line")) } else { Ok(event) }
    }

    fn push(&mut self, event: Result<Event, EventErrors>) {
        let index = self.next_index();
        match event {
            Ok(event) => {
                self.decoded.events.push(event);
                self.decoded.indices.push(index);
            }
            Err(errors) if self.decoded.rejected.len() < MAX_LISTED => {
                self.decoded.rejected.push(RejectedEvent { index, errors });
            }
            Err(_) => self.decoded.unlisted += 1,
        }
    }

    fn next_index(&self) -> usize {
        self.decoded.events.len() + self.decoded.rejected.len() + self.decoded.unlisted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decode(body: impl AsRef<[u8]>, framing: Framing) -> Result<Decoded, SyntaxError> {
        super::decode(body.as_ref(), framing, Timestamp::MIN, &EventLimits::default())
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
        (names, decoded.rejected.iter().map(|rejected| rejected.index).collect(), decoded.many)
    }

    #[test]
    fn a_json_body_is_an_object_an_array_or_several_of_them() {
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
    fn refused_events_beyond_the_bound_are_counted_and_take_no_other_along() {
        for (refused, unlisted) in [(MAX_LISTED, 0), (MAX_LISTED + 2, 2)] {
            let decoded = decode_json(format!("[{}{}]", "1,".repeat(refused), event("a")));
            assert_eq!((decoded.rejected.len(), decoded.unlisted), (MAX_LISTED, unlisted));
            assert_eq!(decoded.indices, [refused]);
        }
    }

    #[test]
    fn a_refused_event_takes_no_other_along() {
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
        assert_eq!(
            serde_json::to_value(&decoded.rejected).unwrap(),
            json!([{"index": 0, "errors": {"non_field_errors": ["Invalid data. Expected an object, but got a string."]}}])
        );
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
    fn ndjson_has_an_object_a_line() {
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
    fn a_line_that_is_not_one_object_is_refused_alone() {
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
            assert_eq!(
                serde_json::to_value(&decoded.rejected).unwrap(),
                json!([{"index": 1, "errors": {"non_field_errors": [error]}}])
            );
        }
    }

    #[test]
    fn an_object_over_several_lines_is_no_ndjson() {
        assert_eq!(outline(&decode_ndjson("{\n}")), (vec![], vec![0, 1], true));
    }

    #[test]
    fn an_event_over_its_limit_is_marked_and_passed_over() {
        let limits = EventLimits { max_event_bytes: event("a").len() };
        let body = format!("[ {} ,{}, {}]", event("a"), event("ab"), event("b"));
        let decoded = super::decode(body.as_bytes(), Framing::Json, Timestamp::MIN, &limits).unwrap();
        assert_eq!(outline(&decoded), (vec![("a", 0), ("b", 2)], vec![1], true));
        assert!(decoded.rejected[0].errors.is_too_large());
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
    fn many_wrong_lines_are_located_in_linear_time() {
        let decoded = decode_ndjson("x\n".repeat(500_000));
        let last = serde_json::to_value(decoded.rejected.last().unwrap()).unwrap();
        assert!(last["errors"]["non_field_errors"][0].as_str().unwrap().contains("line 10000 column 1:"));
        assert_eq!(decoded.rejected.len() + decoded.unlisted, 500_000);
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
                        prop_assert!(decoded.many || decoded.events.len() + decoded.rejected.len() == 1);
                    }
                }
            }
        }

        #[test]
        fn a_cut_body_gives_a_syntax_error(at in 0..event("a").len()) {
            prop_assert!(decode(&event("a")[..at], Framing::Json).is_err());
        }
    }
}
