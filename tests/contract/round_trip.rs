//! Random events: every accepted event is read back equal from every database.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Duration, Utc};
use eye_harness::Eye;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use uuid::Uuid;

use crate::api::{Page, PageEvent, get, store};

on_every_database! { accepted_events_are_read_back_equal }

const EVENTS: usize = 1000;
const EVENTS_A_BODY: usize = 100;

/// An event as it is sent, and its expected form in the answer.
#[derive(Debug)]
struct Expected {
    sent: String,
    id: String,
    timestamp: String,
    texts: [String; 3],
    data: String,
}

async fn accepted_events_are_read_back_equal(eye: &Eye) {
    println!("seed: {}", *SEED);
    let events = tokio::task::spawn_blocking(|| &*GENERATED).await.unwrap();
    for events in events.chunks(EVENTS_A_BODY) {
        store(eye, &events.iter().map(|event| event.sent.clone()).collect::<Vec<_>>()).await;
    }
    let read: Page = get(eye, "include=id&limit=1000").await.json();
    assert_eq!((read.count as usize, read.results.len()), (EVENTS, EVENTS));
    let read: HashMap<String, PageEvent> =
        read.results.into_iter().map(|mut event| (event.id.take().unwrap(), event)).collect();
    for Expected { sent, id, timestamp, texts, data } in events {
        let event = read.get(id).unwrap_or_else(|| panic!("not stored: {sent}"));
        assert_eq!([&event.session_id, &event.category, &event.name], texts.each_ref(), "{sent}");
        assert_eq!((&event.timestamp, event.data.get()), (timestamp, data.as_str()), "{sent}");
    }
}

/// The seed of the events. To repeat a failed test, put its printed seed here.
static SEED: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);

/// The events, generated once for all databases because that takes longer than to store them.
static GENERATED: LazyLock<Vec<Expected>> = LazyLock::new(|| {
    let seed = [*SEED.as_bytes(), *SEED.as_bytes()].concat();
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let event = event();
    (0..EVENTS).map(|_| event.new_tree(&mut runner).unwrap().current()).collect()
});

fn event() -> impl Strategy<Value = Expected> {
    let texts = [(); 3].map(|()| text());
    (any::<u128>(), instant(), texts, json(), white_space()).prop_map(
        |(id, (timestamp, instant), texts, data, space)| {
            let id = Uuid::from_u128(id).to_string();
            let texts_sent = [("session_id", &texts[0]), ("category", &texts[1]), ("name", &texts[2])];
            let mut members: Vec<String> = texts_sent.map(|(name, token)| format!("\"{name}\"{space}:{token}")).into();
            members.push(format!(
                "\"data\":{space}{}",
                data.iter().map(|token| format!("{token}{space}")).collect::<String>()
            ));
            members.push(format!("\"timestamp\":\"{timestamp}\"{space}"));
            members.push(format!("\"id\":\"{id}\""));
            let sent = format!("{{{space}{}}}", members.join(&format!(",{space}")));
            let texts = texts.map(|token| match token.strip_prefix('"') {
                Some(_) => serde_json::from_str(&token).unwrap(),
                None => token,
            });
            Expected { sent, id, timestamp: instant, texts, data: data.concat() }
        },
    )
}

fn white_space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// Generates a string or a number of 1 to 150 characters that is not blank.
fn text() -> impl Strategy<Value = String> {
    let bounded =
        prop_oneof![9 => string_of(1..12), 1 => string_of(1..150)].prop_filter("not blank, not too long", |token| {
            let text: String = serde_json::from_str(token).unwrap();
            !text.trim().is_empty() && text.chars().count() <= 150
        });
    prop_oneof![8 => bounded, 1 => number(), 1 => "[a-z ]{0,10}[a-z]".prop_map(|text| format!("\"{text}\""))]
}

/// Generates the token of a string.
fn string_of(pieces: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let plain = any::<char>().prop_filter("plain", |c| *c >= ' ' && *c != '"' && *c != '\\').prop_map(String::from);
    let escaped = any::<char>().prop_filter("no null", |c| *c != '\0').prop_map(|character| {
        character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    });
    let short =
        prop::sample::select(vec!["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"]).prop_map(str::to_owned);
    let awkward = prop::sample::select(vec![
        "'",
        "%",
        "_",
        "\u{feff}",
        "\u{ffff}",
        "\u{10ffff}",
        "\u{301}",
        " ",
        "`",
        "$1",
        "?",
        "\u{85}",
    ])
    .prop_map(str::to_owned);
    let piece = prop_oneof![6 => plain, 2 => escaped, 1 => short, 1 => awkward, 4 => "[a-zA-Z0-9]{1,3}"];
    vec(piece, pieces).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?([eE][+-]?[0-2]?[0-9]{1,2})?"
        .prop_filter("a double can hold it", |number| number.parse::<f64>().is_ok_and(f64::is_finite))
}

/// Generates the tokens of any value but `null`.
fn json() -> impl Strategy<Value = Vec<String>> {
    let scalar = prop_oneof![
        2 => string_of(0..20),
        2 => number(),
        1 => prop::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned),
    ];
    let joined = |values: Vec<Vec<String>>| {
        values.into_iter().reduce(|all, value| [all, vec![",".to_owned()], value].concat()).unwrap_or_default()
    };
    let around =
        |open: &str, tokens: Vec<String>, close: &str| [vec![open.to_owned()], tokens, vec![close.to_owned()]].concat();
    let value = scalar.prop_map(|token| vec![token]).prop_recursive(8, 40, 5, move |value| {
        let member =
            (string_of(0..5), value.clone()).prop_map(|(key, value)| [vec![key, ":".to_owned()], value].concat());
        prop_oneof![
            vec(value, 0..5).prop_map(move |values| around("[", joined(values), "]")),
            vec(member, 0..5).prop_map(move |members| around("{", joined(members), "}")),
        ]
    });
    value.prop_filter("not null", |tokens| tokens[0] != "null")
}

/// Generates a timestamp in one of the accepted forms, and its form in the answer.
fn instant() -> impl Strategy<Value = (String, String)> {
    const LAST: i64 = 253_402_300_799_999_999;
    let micros = prop_oneof![0..=LAST, 1_600_000_000_000_000..1_800_000_000_000_000_i64];
    let offset_minutes = prop_oneof![Just(0), -1439..=1439_i64];
    let separator = prop_oneof![Just('T'), Just(' ')];
    (micros, offset_minutes, separator, prop_oneof![Just('.'), Just(',')]).prop_map(
        |(micros, offset, separator, point)| {
            let instant: DateTime<Utc> = DateTime::from_timestamp_micros(micros).unwrap();
            let local = instant.naive_utc() + Duration::minutes(offset);
            let format = if micros % 1_000_000 == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%.6fZ" };
            let read = instant.format(format).to_string();
            // A local time before 1970 or after 9999 is invalid.
            let in_range = (1970..=9999).contains(&chrono::Datelike::year(&local));
            let (local, offset) = if in_range { (local, offset) } else { (instant.naive_utc(), 0) };
            let sign = if offset < 0 { '-' } else { '+' };
            let sent = format!(
                "{}{separator}{}{point}{:06}{sign}{:02}:{:02}",
                local.format("%Y-%m-%d"),
                local.format("%H:%M:%S"),
                micros % 1_000_000,
                offset.abs() / 60,
                offset.abs() % 60
            );
            (sent, read)
        },
    )
}
