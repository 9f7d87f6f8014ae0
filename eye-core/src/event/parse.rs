//! The parser from a producer's JSON to an [`Event`]: the rules for every field.

use std::ops::Range;
use std::sync::Arc;

use uuid::{Uuid, Variant, Version};

use crate::json::{JsonKind, JsonText, ScannedValue, Scanner, SyntaxError};
use crate::timestamp::{InvalidTimestamp, Timestamp};

use super::errors::{Field, FieldError};
use super::{Event, EventErrors, EventId, EventLimits, MAX_DATA_LEVELS, MAX_TEXT_CHARS, Origin};

/// The facts that events get from their request and from the configuration, not from their JSON.
#[derive(Clone, Debug)]
pub struct ParseContext {
    /// The time of receipt.
    pub received_at: Timestamp,
    /// The time of events without `timestamp`, unless their `id` is a UUIDv7: that tells the time.
    pub default_timestamp: DefaultTimestamp,
    /// The sender.
    pub origin: Arc<Origin>,
    /// The limits that operators set.
    pub limits: EventLimits,
}

impl ParseContext {
    /// Creates the context of events that are received now.
    pub fn now(origin: Arc<Origin>, limits: EventLimits) -> Self {
        let received_at = Timestamp::now();
        let default_timestamp = DefaultTimestamp::ForEventsWithoutId(received_at);
        Self { received_at, default_timestamp, origin, limits }
    }
}

/// The time of events without `timestamp`. `id` and `timestamp` identify an event, so an event that is sent again must
/// have the same time again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultTimestamp {
    /// The time of this attempt. An event with an `id` needs a `timestamp`, or sending it again would store it twice.
    ForEventsWithoutId(Timestamp),
    /// A time that is the same at each delivery.
    ForEveryEvent(Timestamp),
    /// No time: each event needs a `timestamp`, as its message has an id.
    None,
}

/// Returns the time that a UUIDv7 tells. `None` for another id, and after the year 9999.
pub fn time_of(id: EventId) -> Option<Timestamp> {
    let millis = i64::try_from(id.as_u128() >> 80).ok().filter(|_| is_uuid_v7(id))?;
    Timestamp::from_micros(millis * 1000)
}

impl Event {
    /// Parses `json`, which holds one event and nothing else. An event without `id` gets a UUIDv7.
    ///
    /// # Errors
    /// [`EventErrors`] with every fault of the event.
    pub fn parse(json: &[u8], context: &ParseContext) -> Result<Self, EventErrors> {
        let text = JsonText::new(json);
        let mut scanner = Scanner::new(&text);
        scanner.skip_white_space();
        let event = Self::scan(&mut scanner, context, Uuid::now_v7).map_err(EventErrors::syntax)?;
        scanner.skip_white_space();
        if scanner.peek().is_some() {
            return Err(EventErrors::syntax(scanner.unexpected("the end of the text")));
        }
        event
    }

    /// Parses the event at the scanner's position, for messages that hold several. The scanner ends behind the event,
    /// also when the event is refused. `new_id` makes the `id` of an event that has none.
    ///
    /// # Errors
    /// The outer error when the text is not JSON: the scan cannot go on. The inner error when the event is refused.
    pub fn scan(
        scanner: &mut Scanner<'_>,
        context: &ParseContext,
        new_id: impl FnOnce() -> EventId,
    ) -> Result<Result<Self, EventErrors>, SyntaxError> {
        scanner.clear();
        let start = scanner.position();
        let parsed = if scanner.peek() == Some(b'{') {
            let mut draft = Draft::new();
            draft.scan(scanner)?;
            draft.finish(context.default_timestamp)
        } else {
            Err(EventErrors::not_an_object(scanner.value()?.kind))
        };
        if scanner.position() - start > context.limits.max_event_bytes {
            return Ok(Err(EventErrors::too_large(context.limits.max_event_bytes)));
        }
        Ok(parsed.map(|fields| fields.into_event(scanner, context, new_id)))
    }
}

/// An event whose members are still being read. A repeated member replaces the earlier one, but not its `problems`.
struct Draft {
    session_id: Result<Range<usize>, FieldError>,
    category: Result<Range<usize>, FieldError>,
    name: Result<Range<usize>, FieldError>,
    /// Empty if absent.
    data: Result<Range<usize>, FieldError>,
    timestamp: Result<Option<Timestamp>, FieldError>,
    id: Result<Option<EventId>, FieldError>,
    problems: EventErrors,
}

/// A draft without errors. The ranges lie within the scanner's copies.
struct Fields {
    session_id: Range<usize>,
    category: Range<usize>,
    name: Range<usize>,
    data: Range<usize>,
    timestamp: Timestamp,
    id: Option<EventId>,
}

impl Draft {
    fn new() -> Self {
        let required = || Err(FieldError::Required);
        Self {
            session_id: required(),
            category: required(),
            name: required(),
            data: Ok(0..0),
            timestamp: Ok(None),
            id: Ok(None),
            problems: EventErrors::none(),
        }
    }

    /// Reads the object at the scanner's position.
    fn scan(&mut self, scanner: &mut Scanner<'_>) -> Result<(), SyntaxError> {
        scanner.eat(b'{');
        scanner.skip_white_space();
        if scanner.eat(b'}') {
            return Ok(());
        }
        loop {
            self.member(scanner)?;
            scanner.skip_white_space();
            if scanner.eat(b'}') {
                return Ok(());
            }
            if !scanner.eat(b',') {
                return Err(scanner.unexpected("`,` or `}`"));
            }
            scanner.skip_white_space();
        }
    }

    fn member(&mut self, scanner: &mut Scanner<'_>) -> Result<(), SyntaxError> {
        let (key, problem) = scanner.key()?;
        if let Some(problem) = problem {
            self.problems.add(Field::Event, problem.into());
        }
        let field = Field::of_key(&key);
        let value = scanner.value()?;
        if let Some(problem) = value.problem {
            self.problems.add(field, problem.into());
            return Ok(());
        }
        match field {
            Field::SessionId => self.session_id = text(scanner, &value),
            Field::Category => self.category = text(scanner, &value),
            Field::Name => self.name = text(scanner, &value),
            Field::Timestamp => self.timestamp = timestamp(scanner, &value).map(Some),
            Field::Id => self.id = id(scanner, &value),
            Field::Data if value.levels > MAX_DATA_LEVELS => self.data = Err(FieldError::TooDeep),
            Field::Data if value.kind == JsonKind::Null => self.data = Err(FieldError::Null),
            Field::Data => self.data = Ok(value.tokens),
            Field::Event => {}
        }
        Ok(())
    }

    fn finish(self, default: DefaultTimestamp) -> Result<Fields, EventErrors> {
        let mut errors = self.problems;
        let mut check = |field, error| errors.add(field, error);
        let session_id = self.session_id.map_err(|error| check(Field::SessionId, error));
        let category = self.category.map_err(|error| check(Field::Category, error));
        let name = self.name.map_err(|error| check(Field::Name, error));
        let data = self.data.map_err(|error| check(Field::Data, error));
        let timestamp = match (self.timestamp, &self.id) {
            (Ok(None), Ok(id)) => default_timestamp(*id, default),
            // The error of the `id` is enough.
            (Ok(None), Err(_)) => Ok(Timestamp::MIN),
            (Ok(Some(timestamp)), _) => Ok(timestamp),
            (Err(error), _) => Err(error),
        };
        let timestamp = timestamp.map_err(|error| check(Field::Timestamp, error));
        let id = self.id.map_err(|error| check(Field::Id, error));
        match (session_id, category, name, data, timestamp, id) {
            (Ok(session_id), Ok(category), Ok(name), Ok(data), Ok(timestamp), Ok(id)) if errors.is_empty() => {
                Ok(Fields { session_id, category, name, data, timestamp, id })
            }
            _ => Err(errors),
        }
    }
}

impl Fields {
    fn into_event(self, scanner: &mut Scanner<'_>, context: &ParseContext, new_id: impl FnOnce() -> EventId) -> Event {
        let data = if self.data.is_empty() { scanner.copy("{}") } else { self.data };
        let parts = [self.session_id, self.category, self.name, data];
        let ends = Event::ends(parts.each_ref().map(ExactSizeIterator::len));
        let text = scanner.join(parts).into();
        let id = self.id.unwrap_or_else(new_id);
        let (received_at, origin) = (context.received_at, context.origin.clone());
        Event { id, timestamp: self.timestamp, received_at, text, ends, origin }
    }
}

/// Checks `session_id`, `category` and `name`: 1 to 150 characters, of which one is not white space.
fn text(scanner: &mut Scanner<'_>, value: &ScannedValue) -> Result<Range<usize>, FieldError> {
    match value.kind {
        JsonKind::String | JsonKind::Number => {}
        JsonKind::Null => return Err(FieldError::Null),
        JsonKind::Boolean | JsonKind::Array | JsonKind::Object => return Err(FieldError::NotAString),
    }
    let content = scanner.content(value);
    let text = &scanner.copied()[content.clone()];
    if text.trim_start().is_empty() {
        return Err(FieldError::Blank);
    }
    // A character has at least one byte, so short texts need no counting.
    if text.len() > MAX_TEXT_CHARS && text.chars().count() > MAX_TEXT_CHARS {
        return Err(FieldError::TooLong);
    }
    Ok(content)
}

fn timestamp(scanner: &mut Scanner<'_>, value: &ScannedValue) -> Result<Timestamp, FieldError> {
    let content = scanner.content(value);
    match value.kind {
        JsonKind::String => Ok(Timestamp::parse(&scanner.copied()[content])?),
        JsonKind::Number => Ok(Timestamp::parse_number(&scanner.copied()[content])?),
        JsonKind::Null => Err(FieldError::Null),
        kind => Err(FieldError::TimestampOfKind(kind)),
    }
}

fn id(scanner: &mut Scanner<'_>, value: &ScannedValue) -> Result<Option<EventId>, FieldError> {
    match value.kind {
        JsonKind::String => {
            let content = scanner.content(value);
            let id = Uuid::try_parse(&scanner.copied()[content]).map_err(|_| FieldError::InvalidId)?;
            if id.is_nil() || id.is_max() { Err(FieldError::UnsetId) } else { Ok(Some(id)) }
        }
        JsonKind::Null => Ok(None),
        _ => Err(FieldError::InvalidId),
    }
}

fn default_timestamp(id: Option<EventId>, default: DefaultTimestamp) -> Result<Timestamp, FieldError> {
    match (id, default) {
        (Some(id), _) if is_uuid_v7(id) => time_of(id).ok_or(FieldError::InvalidTimestamp(InvalidTimestamp::Year)),
        (None, DefaultTimestamp::ForEventsWithoutId(time)) | (_, DefaultTimestamp::ForEveryEvent(time)) => Ok(time),
        _ => Err(FieldError::TimestampForId),
    }
}

fn is_uuid_v7(id: EventId) -> bool {
    id.get_version() == Some(Version::SortRand) && id.get_variant() == Variant::RFC4122
}
