//! The query string of `GET /api/event/`, parsed strictly.
//!
//! [`Params::parse`] reports every wrong parameter at once, each under its own name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use eye_config::did_you_mean;
use eye_core::store::{EventFilter, EventQuery, MAX_PAGE_EVENTS, PageStart};
use eye_core::timestamp::Timestamp;
use percent_encoding::percent_decode_str;

use super::cursor;
use super::include::Include;

/// A parsed query string.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Params {
    /// The query for the store.
    pub(super) query: EventQuery,
    /// Further keys of each result.
    pub(super) include: Include,
    /// The caller's parameters, decoded, for the links.
    pub(super) given: BTreeMap<&'static str, String>,
}

/// Faults by parameter.
pub(super) type ParamErrors = BTreeMap<String, Vec<String>>;

const NAMES: [&str; 12] = [
    "category",
    "cursor",
    "format",
    "include",
    "limit",
    "name",
    "offset",
    "session_id",
    "timestamp_after",
    "timestamp_before",
    "timestamp_end",
    "timestamp_start",
];

const DEFAULT_LIMIT: u32 = 100;

impl Params {
    /// Parses a query string.
    ///
    /// As in Django, an empty value counts as absent, and the last of two values wins. If both names of a bound are given,
    /// both apply.
    ///
    /// # Errors
    /// All faults.
    pub(super) fn parse(query: &str) -> Result<Self, ParamErrors> {
        let mut reader = ParamReader::new(query);
        let after = [reader.read("timestamp_after", timestamp), reader.read("timestamp_start", timestamp)];
        let before = [reader.read("timestamp_before", timestamp), reader.read("timestamp_end", timestamp)];
        let filter = EventFilter {
            session_id: reader.read("session_id", text),
            category: reader.read("category", text),
            name: reader.read("name", text),
            timestamp_after: after.into_iter().flatten().max(),
            timestamp_before: before.into_iter().flatten().min(),
        };
        let limit = reader.read("limit", limit).unwrap_or(DEFAULT_LIMIT);
        let include = reader.read("include", Include::parse).unwrap_or_default();
        reader.read("format", format);
        let start = match (reader.read("offset", offset), reader.read("cursor", cursor)) {
            (None, None) => PageStart::Newest,
            (Some(offset), None) => PageStart::Offset(offset),
            (None, Some(start)) => start,
            (Some(_), Some(_)) => {
                reader.refuse("offset", "Give either `offset` or `cursor`, not both.");
                PageStart::Newest
            }
        };
        if reader.errors.is_empty() {
            Ok(Self { query: EventQuery { filter, start, limit }, include, given: reader.given })
        } else {
            Err(reader.errors)
        }
    }
}

/// The decoded parameters, and the faults found so far.
#[derive(Default)]
struct ParamReader {
    given: BTreeMap<&'static str, String>,
    errors: ParamErrors,
}

impl ParamReader {
    fn new(query: &str) -> Self {
        let mut reader = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = decode(name) else {
                reader.refuse(name, NOT_DECODABLE);
                continue;
            };
            let Some(&known) = NAMES.iter().find(|&&known| known == name) else {
                reader.refuse(&name, unknown(&name));
                continue;
            };
            match decode(value) {
                None => reader.refuse(known, NOT_DECODABLE),
                // No event has one, and PostgreSQL refuses it as a parameter.
                Some(value) if value.contains('\0') => reader.refuse(known, "Null characters are not allowed."),
                Some(value) if value.is_empty() => drop(reader.given.remove(known)),
                Some(value) => drop(reader.given.insert(known, value)),
            }
        }
        reader
    }

    fn read<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.given.get(name)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(name, error);
                None
            }
        }
    }

    fn refuse(&mut self, name: &str, error: impl Into<String>) {
        self.errors.insert(name.to_owned(), vec![error.into()]);
    }
}

const NOT_DECODABLE: &str = "Not valid percent-encoded UTF-8.";

/// Decodes `application/x-www-form-urlencoded`. Returns `None` for a broken escape or invalid UTF-8.
fn decode(encoded: &str) -> Option<String> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !encoded.split('%').skip(1).all(is_escape) {
        return None;
    }
    let spaced = encoded.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(Cow::into_owned)
}

fn unknown(name: &str) -> String {
    match did_you_mean(name, NAMES) {
        Some(known) => format!("Unknown parameter. Did you mean `{known}`?"),
        None => "Unknown parameter.".to_owned(),
    }
}

fn text(value: &str) -> Result<String, String> {
    Ok(value.to_owned())
}

fn timestamp(value: &str) -> Result<Timestamp, String> {
    let parsed = Timestamp::parse(value).ok().or_else(|| Timestamp::parse(&with_plus(value)?).ok());
    parsed.ok_or_else(|| "Enter a valid date/time.".to_owned())
}

/// Restores the `+` of an offset that was sent unencoded and decoded as a space: `2021-01-01T00:00:00 02:00`.
///
/// For text that is no timestamp as it is: in `2021-01-01 02:00`, the space precedes a time of day.
fn with_plus(value: &str) -> Option<String> {
    let (time, offset) = value.rsplit_once(' ')?;
    Some(format!("{time}+{offset}"))
}

fn limit(value: &str) -> Result<u32, String> {
    let limit = integer(value, 1)?;
    // As in Django REST framework, a larger limit counts as the maximum.
    Ok(u32::try_from(limit).unwrap_or(u32::MAX).min(MAX_PAGE_EVENTS))
}

fn offset(value: &str) -> Result<u64, String> {
    let offset = integer(value, 0)?;
    // Databases count in i64.
    if i64::try_from(offset).is_ok() {
        Ok(offset)
    } else {
        Err(format!("Ensure this value is less than or equal to {}.", i64::MAX))
    }
}

/// Parses an integer. One above `u64::MAX` becomes `u64::MAX`.
fn integer(value: &str, min: u64) -> Result<u64, String> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("A valid integer is required.".to_owned());
    }
    let size = digits.parse().unwrap_or(u64::MAX);
    let negative = digits.len() < value.len();
    if negative || size < min {
        return Err(format!("Ensure this value is greater than or equal to {min}."));
    }
    Ok(size)
}

fn format(value: &str) -> Result<(), String> {
    if value == "json" { Ok(()) } else { Err("Only `json` is served.".to_owned()) }
}

fn cursor(value: &str) -> Result<PageStart, String> {
    cursor::decode(value).ok_or_else(|| "Invalid cursor. Use one as given in `next` or `previous`.".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
