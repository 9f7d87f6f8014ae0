//! Valid events for property tests: what a producer sends, and what must come back.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::event::{Event, EventFields, MAX_DATA_LEVELS, MAX_TEXT_CHARS};
use crate::timestamp::Timestamp;

/// The time of receipt of the generated events.
pub const RECEIVED_AT: Timestamp = Timestamp::MAX;

/// An event as it is sent, and as it must be kept.
#[derive(Clone, Debug)]
pub struct SentEvent {
    /// The JSON text, with white space and members in some order.
    pub json: String,
    /// The event that the parser returns for it, received at [`RECEIVED_AT`]. Its producer gave it an id.
    pub event: Event,
}

/// Valid events of every kind: Unicode, escapes, big numbers, nesting up to the limit, white space, unknown members.
pub fn sent_events() -> impl Strategy<Value = SentEvent> {
    let texts = [text(), text(), text()];
    let timestamp = Timestamp::MIN.as_micros()..=Timestamp::MAX.as_micros();
    let rest = (data(), timestamp, any::<u128>(), option::of(data()), any::<[u8; 8]>(), 0..6_usize);
    (texts, rest).prop_map(|(texts, (data, micros, id, unknown, spaces, rotation))| {
        let [(session_id, session_json), (category, category_json), (name, name_json)] = texts;
        let timestamp = Timestamp::from_micros(micros).expect("the strategy keeps to the bounds");
        let id = uuid::Uuid::from_u128(id);
        let mut members = vec![
            ("session_id", vec![session_json]),
            ("category", vec![category_json]),
            ("name", vec![name_json]),
            ("data", data.clone()),
            ("timestamp", vec![format!("\"{timestamp}\"")]),
            ("id", vec![format!("\"{id}\"")]),
        ];
        members.rotate_left(rotation);
        members.extend(unknown.map(|tokens| ("unknown", tokens)));
        let event = Event::from(EventFields {
            id,
            timestamp,
            received_at: RECEIVED_AT,
            session_id: &session_id,
            category: &category,
            name: &name,
            data: &data.concat(),
            origin: super::origin(),
        });
        SentEvent { json: spaced(&object(members), &spaces), event }
    })
}

/// The tokens of a JSON value that is valid as `data`.
pub fn data() -> impl Strategy<Value = Vec<String>> {
    let deep = (value(), 0..=MAX_DATA_LEVELS - 4).prop_map(|(value, levels)| {
        (0..levels).fold(value, |value, level| match level % 2 {
            0 => array(vec![value]),
            _ => object(vec![("", value)]),
        })
    });
    prop_oneof![4 => value(), 1 => deep].prop_filter("null is no data", |tokens| tokens[0] != "null")
}

/// The text of the tokens, with white space between them that `pattern` decides.
pub fn spaced(tokens: &[String], pattern: &[u8]) -> String {
    let mut text = String::new();
    for (token, byte) in tokens.iter().zip(pattern.iter().cycle()) {
        text.push_str(token);
        text.push_str([" ", "\n", "\r\n", "\t  ", "", "", "", ""][usize::from(byte % 8)]);
    }
    text
}

/// At most 4 levels.
fn value() -> impl Strategy<Value = Vec<String>> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,20})?",
        "-?(0|[1-9])(\\.[0-9]{1,3})?[eE][+-]?[0-2]?[0-9]{1,2}",
        "-?[1-9]e-[0-9]{1,5}",
        string(0..20).prop_map(|(_, json)| json),
    ];
    scalar.prop_map(|token| vec![token]).prop_recursive(4, 24, 4, |inner| {
        let member = (string(0..5), inner.clone());
        prop_oneof![
            vec(inner, 0..4).prop_map(array),
            vec(member, 0..4).prop_map(|members| {
                object_of_tokens(members.into_iter().map(|((_, key), value)| (key, value)).collect())
            }),
        ]
    })
}

fn array(values: Vec<Vec<String>>) -> Vec<String> {
    enclosed("[", values, "]")
}

fn object(members: Vec<(&str, Vec<String>)>) -> Vec<String> {
    object_of_tokens(members.into_iter().map(|(key, value)| (format!("\"{key}\""), value)).collect())
}

fn object_of_tokens(members: Vec<(String, Vec<String>)>) -> Vec<String> {
    let members = members.into_iter().map(|(key, value)| [vec![key, ":".to_owned()], value].concat());
    enclosed("{", members.collect(), "}")
}

fn enclosed(open: &str, parts: Vec<Vec<String>>, close: &str) -> Vec<String> {
    let mut tokens = vec![open.to_owned()];
    tokens.extend(parts.join(&",".to_owned()));
    tokens.push(close.to_owned());
    tokens
}

/// A text of an event, and its JSON.
fn text() -> impl Strategy<Value = (String, String)> {
    string(1..MAX_TEXT_CHARS + 1).prop_filter("a text is not blank", |(text, _)| !text.trim().is_empty())
}

/// A string, and its JSON with escapes here and there.
fn string(chars: std::ops::Range<usize>) -> impl Strategy<Value = (String, String)> {
    let character = prop_oneof![
        4 => proptest::char::range(' ', '~'),
        1 => any::<char>(),
        1 => proptest::char::range('\u{1}', '\u{1f}'),
        1 => proptest::sample::select(vec!['"', '\\', '/', '\u{7f}', '\u{2028}', '\u{ffff}', '😀']),
    ];
    let character = character.prop_filter("U+0000 is refused", |character| *character != '\0');
    vec((character, any::<bool>()), chars).prop_map(|characters| {
        let text = characters.iter().map(|(character, _)| character).collect();
        let escaped: String = characters.iter().map(|&(character, escape)| escaped(character, escape)).collect();
        (text, format!("\"{escaped}\""))
    })
}

fn escaped(character: char, may_escape: bool) -> String {
    match character {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' if may_escape => "\\n".to_owned(),
        '/' if may_escape => "\\/".to_owned(),
        '\0'..=' ' | '\u{7f}'.. if may_escape || character < ' ' => {
            character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }
        _ => character.to_string(),
    }
}
