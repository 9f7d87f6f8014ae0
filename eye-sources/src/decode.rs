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

/// What a body holds.
#[derive(Debug)]
pub struct Decoded {
    /// The events that passed the gate, in the order of the body.
    pub events: Vec<Event>,
    /// The place in the body of each of them, from 0.
    pub indices: Vec<usize>,
    /// The others, in the order of the body.
    pub rejected: Vec<RejectedEvent>,
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
        decoded: Decoded { events: Vec::new(), indices: Vec::new(), rejected: Vec::new(), many: false },
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
            Err(errors) => self.decoded.rejected.push(RejectedEvent { index, errors }),
        }
    }

    fn next_index(&self) -> usize {
        self.decoded.events.len() + self.decoded.rejected.len()
    }
}
