//! The faults of an event, field by field.

use std::fmt;

use crate::json::{JsonKind, SyntaxError, ValueProblem};
use crate::refusals::Refusal;
use crate::timestamp::InvalidTimestamp;

use super::{MAX_DATA_LEVELS, MAX_TEXT_CHARS};

/// The field name under which [`EventErrors::fields`] reports faults of the event as a whole.
pub const EVENT_FIELD: &str = "event";

/// The reasons for which an event was refused: one for each wrong field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventErrors {
    /// Sorted by field, one for each.
    errors: Vec<(Field, FieldError)>,
}

impl EventErrors {
    pub(super) fn none() -> Self {
        Self { errors: Vec::new() }
    }

    fn of_event(error: FieldError) -> Self {
        Self { errors: vec![(Field::Event, error)] }
    }

    /// Creates the error of an event with more bytes than `max_event_bytes`.
    pub fn too_large(max_event_bytes: usize) -> Self {
        Self::of_event(FieldError::TooLarge(max_event_bytes))
    }

    /// Creates the error of an event that is not JSON, in a format where other events can still be read.
    pub fn syntax(error: SyntaxError) -> Self {
        Self::of_event(FieldError::Syntax(Box::new(error)))
    }

    pub(super) fn not_an_object(kind: JsonKind) -> Self {
        Self::of_event(FieldError::NotAnObject(kind))
    }

    /// Returns whether the event was refused for its size alone.
    pub fn is_too_large(&self) -> bool {
        matches!(self.errors[..], [(_, FieldError::TooLarge(_))])
    }

    /// Returns the fields with their errors, in the order of the event's fields.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = (&'static str, &dyn fmt::Display)> {
        self.errors.iter().map(|(field, error)| (field.name(), error as &dyn fmt::Display))
    }

    /// Returns the kinds of errors, for the operator.
    pub fn refusals(&self) -> impl Iterator<Item = Refusal> {
        self.errors.iter().map(|(field, error)| Refusal { part: field.name(), problem: error.kind() })
    }

    /// Adds an error, unless the field has one already.
    pub(super) fn add(&mut self, field: Field, error: FieldError) {
        if let Err(place) = self.errors.binary_search_by_key(&field, |(field, _)| *field) {
            self.errors.insert(place, (field, error));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }
}

impl fmt::Display for EventErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (field, error)) in self.errors.iter().enumerate() {
            let separator = if place == 0 { "" } else { " " };
            write!(f, "{separator}{}: {error}", field.name())?;
        }
        Ok(())
    }
}

impl std::error::Error for EventErrors {}

/// The part of an event that an error belongs to, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    SessionId,
    Category,
    Name,
    Data,
    Timestamp,
    Id,
    /// The event as a whole, or an unknown field.
    Event,
}

impl Field {
    /// Returns the field with this name; [`Field::Event`] for names that are ignored.
    pub(super) fn of_key(key: &str) -> Self {
        match key {
            "session_id" => Self::SessionId,
            "category" => Self::Category,
            "name" => Self::Name,
            "data" => Self::Data,
            "timestamp" => Self::Timestamp,
            "id" => Self::Id,
            _ => Self::Event,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SessionId => "session_id",
            Self::Category => "category",
            Self::Name => "name",
            Self::Data => "data",
            Self::Timestamp => "timestamp",
            Self::Id => "id",
            Self::Event => EVENT_FIELD,
        }
    }
}

/// The fault of a field. The messages are those of the Django REST framework where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FieldError {
    #[error("This field is required.")]
    Required,
    #[error("This field may not be null.")]
    Null,
    #[error("This field may not be blank.")]
    Blank,
    #[error("Not a valid string.")]
    NotAString,
    #[error("Ensure this field has no more than {MAX_TEXT_CHARS} characters.")]
    TooLong,
    #[error("Ensure this field is nested no more than {MAX_DATA_LEVELS} levels deep.")]
    TooDeep,
    #[error("{0}")]
    InvalidTimestamp(#[from] InvalidTimestamp),
    #[error(
        "Expected a string such as \"2021-01-01T09:15:27.243860Z\" or a number of seconds, milliseconds or microseconds since 1970, but got {0}."
    )]
    TimestampOfKind(JsonKind),
    #[error("Must be a valid UUID.")]
    InvalidId,
    #[error("The nil and the max UUID do not identify an event. Send a random UUID, or omit the field.")]
    UnsetId,
    #[error(
        "This field is required, because the id is not a UUIDv7: without a timestamp, an event that is sent again would be stored twice."
    )]
    TimestampForId,
    #[error("{0}")]
    Problem(#[from] ValueProblem),
    #[error("Invalid data. Expected an object, but got {0}.")]
    NotAnObject(JsonKind),
    #[error("{0}")]
    Syntax(Box<SyntaxError>),
    #[error("Ensure the event has no more than {0} bytes.")]
    TooLarge(usize),
}

impl FieldError {
    /// Returns a short description without anything from the producer.
    fn kind(&self) -> &'static str {
        match self {
            Self::Required => "missing",
            Self::Null => "null",
            Self::Blank => "blank",
            Self::NotAString => "not a string",
            Self::TimestampOfKind(_) => "not a timestamp",
            Self::TooLong => "too long",
            Self::TooDeep => "nested too deep",
            Self::InvalidTimestamp(_) => "not a timestamp",
            Self::InvalidId => "not a UUID",
            Self::UnsetId => "nil or max UUID",
            Self::TimestampForId => "missing beside an id",
            Self::Problem(ValueProblem::NullCharacter) => "null character",
            Self::Problem(ValueProblem::LoneSurrogate) => "lone surrogate",
            Self::Problem(ValueProblem::NumberTooLarge) => "number too large",
            Self::Problem(ValueProblem::InvalidUtf8) => "not UTF-8",
            Self::NotAnObject(_) => "not an object",
            Self::Syntax(_) => "not JSON",
            Self::TooLarge(_) => "too large",
        }
    }
}
