#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::json::{JsonText, Scanner};
use crate::testkit::strategy;

const SESSION: &str = "e2085be5-9137-4e4e-80b5-f1ffddc25423";
const RECEIVED_AT: Timestamp = Timestamp::MAX;

fn parse(json: impl AsRef<[u8]>) -> Result<Event, EventErrors> {
    Event::parse(json.as_ref(), &context())
}

fn context() -> ParseContext {
    let origin = Arc::new(Origin::new("web", None));
    ParseContext {
        received_at: RECEIVED_AT,
        default_timestamp: DefaultTimestamp::ForEventsWithoutId(RECEIVED_AT),
        origin,
        limits: EventLimits::default(),
    }
}

/// An event in which each member given replaces the usual one.
fn with(member: &str, json: &str) -> String {
    let usual = [
        ("session_id", "\"s\""),
        ("category", "\"c\""),
        ("name", "\"n\""),
        ("data", "{}"),
        ("timestamp", "\"2021-01-01\""),
    ];
    let mut members: Vec<String> =
        usual.iter().filter(|(key, _)| *key != member).map(|(key, value)| format!("\"{key}\":{value}")).collect();
    members.push(format!("\"{member}\":{json}"));
    format!("{{{}}}", members.join(","))
}

fn with_data(json: &str) -> String {
    with("data", json)
}

/// The errors of a refused event, by field.
fn errors(json: impl AsRef<[u8]>) -> Value {
    let errors = parse(json).unwrap_err();
    errors.fields().map(|(field, error)| (field.to_owned(), json!([error.to_string()]))).collect()
}

#[test]
fn parsed_event_has_the_fields_sent() {
    let event = parse(format!(
        r#" {{"session_id": "{SESSION}", "category": "page interaction", "name": "cta click",
             "data": {{"host": "www.consumeraffairs.com", "path": "/", "element": "chat bubble"}},
             "timestamp": "2021-01-01 09:15:27.243860", "id": "0190b6a0-7e1c-7000-8000-000000000001"}} "#
    ))
    .unwrap();
    assert_eq!(event.session_id(), SESSION);
    assert_eq!(event.category(), "page interaction");
    assert_eq!(event.name(), "cta click");
    assert_eq!(event.data(), r#"{"host":"www.consumeraffairs.com","path":"/","element":"chat bubble"}"#);
    assert_eq!(event.timestamp().to_string(), "2021-01-01T09:15:27.243860Z");
    assert_eq!(event.id().to_string(), "0190b6a0-7e1c-7000-8000-000000000001");
    assert_eq!(event.received_at(), RECEIVED_AT);
    assert_eq!(event.size_bytes(), SESSION.len() + "page interaction".len() + "cta click".len() + event.data().len());
}

#[test]
fn order_of_members_does_not_matter() {
    let id = "\"id\":\"0190b6a0-7e1c-7000-8000-000000000001\"";
    let one = format!(r#"{{"session_id":"s","category":"c","name":"n","data":[1],"timestamp":"2021-01-01",{id}}}"#);
    let other =
        format!(r#"{{{id},"x":9,"timestamp":"2021-01-01","data":[ 1 ],"name":"n","category":"c","session_id":"s"}}"#);
    assert_eq!(parse(one), parse(other));
}

#[test]
fn event_read_back_from_its_fields_is_equal() {
    let event = parse(with_data("{\"a\":[1,2]}")).unwrap();
    let fields = EventFields {
        id: event.id(),
        timestamp: event.timestamp(),
        received_at: event.received_at(),
        session_id: event.session_id(),
        category: event.category(),
        name: event.name(),
        data: event.data(),
        origin: event.origin(),
    };
    assert_eq!(Event::from(fields), event);
}

#[test]
fn serialised_event_keeps_data_as_sent() {
    let id = "0190b6a0-7e1c-7000-8000-000000000001";
    let event = parse(format!(
        r#"{{"id":"{id}","session_id":"\"s\"","category":"c","name":"n","data":{{"b":1.10,"a":"\u00e9"}},"timestamp":"2021-01-01"}}"#
    ))
    .unwrap();
    assert_eq!(
        serde_json::to_string(&event).unwrap(),
        format!(
            r#"{{"id":"{id}","session_id":"\"s\"","category":"c","name":"n","data":{{"b":1.10,"a":"\u00e9"}},"timestamp":"2021-01-01T00:00:00Z","received_at":"9999-12-31T23:59:59.999999Z","origin":"web"}}"#
        )
    );
}

#[test]
fn data_is_kept_as_sent_less_white_space() {
    let table = [
        ("{}", "{}"),
        ("[]", "[]"),
        ("true", "true"),
        ("false", "false"),
        ("0", "0"),
        ("-0", "-0"),
        ("1.10", "1.10"),
        ("1E+05", "1E+05"),
        ("1e-999", "1e-999"),
        ("12345678901234567890", "12345678901234567890"),
        ("1.7976931348623157e308", "1.7976931348623157e308"),
        ("\"\"", "\"\""),
        (r#""a \u00e9\/\n\ud83d\uDE00 é 😀""#, r#""a \u00e9\/\n\ud83d\uDE00 é 😀""#),
        ("\" a  b \"", "\" a  b \""),
        (" { } ", "{}"),
        ("[\n]", "[]"),
        ("{ \"b\" : 1 ,\r\n\t\"a\" : [ 1 , 2 ] , \"b\" : null }", "{\"b\":1,\"a\":[1,2],\"b\":null}"),
        ("[null,{},[],{\"\":{}}]", "[null,{},[],{\"\":{}}]"),
    ];
    for (sent, kept) in table {
        assert_eq!(parse(with_data(sent)).map(|event| event.data().to_owned()), Ok(kept.to_owned()), "{sent}");
    }
}

#[test]
fn data_is_at_most_32_levels_deep() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |levels: usize| with_data(&format!("{}1{}", open.repeat(levels), close.repeat(levels)));
        assert!(parse(nested(32)).is_ok());
        assert_eq!(errors(nested(33)), json!({"data": ["Ensure this field is nested no more than 32 levels deep."]}));
    }
    assert!(parse(with_data(&format!("{}{}", "[".repeat(32), "]".repeat(32)))).is_ok());
    assert!(parse(with_data(&format!("{}{}", "[".repeat(33), "]".repeat(33)))).is_err());
}

#[test]
fn many_shallow_containers_are_not_deep() {
    assert!(parse(with_data(&format!("[{}[]]", "[],{},".repeat(1000)))).is_ok());
}

#[test]
fn texts_are_kept_exactly() {
    let table = [
        ("\" a \"", " a "),
        ("\"A\\u00e9\\n\\\"\\\\\\/\\b\\f\\r\\t\"", "Aé\n\"\\/\u{8}\u{c}\r\t"),
        ("\"\\ud83d\\ude00\\u20ac\"", "😀€"),
        ("\"😀\"", "😀"),
        ("\"\\u0001\\u007f\"", "\u{1}\u{7f}"),
        ("1.10", "1.10"),
        ("12345678901234567890", "12345678901234567890"),
        ("-0", "-0"),
    ];
    for field in ["session_id", "category", "name"] {
        for (sent, kept) in table {
            let event = parse(with(field, sent)).unwrap();
            let text = match field {
                "session_id" => event.session_id(),
                "category" => event.category(),
                _ => event.name(),
            };
            assert_eq!(text, kept, "{field}: {sent}");
        }
    }
}

#[test]
fn texts_have_1_to_150_characters() {
    let too_long = "Ensure this field has no more than 150 characters.";
    let blank = "This field may not be blank.";
    for field in ["session_id", "category", "name"] {
        for character in ["a", "é", "😀", "\\u00e9", "\\ud83d\\ude00"] {
            assert!(parse(with(field, &format!("\"{}\"", character.repeat(150)))).is_ok(), "{field}: {character}");
            assert_eq!(errors(with(field, &format!("\"{}\"", character.repeat(151)))), json!({field: [too_long]}));
        }
        assert!(parse(with(field, &"1".repeat(150))).is_ok());
        assert_eq!(errors(with(field, &"1".repeat(151))), json!({field: [too_long]}));
        for sent in ["\"\"", "\" \"", "\"\\t\\n\"", "\"\u{a0}\u{3000}\""] {
            assert_eq!(errors(with(field, sent)), json!({field: [blank]}), "{sent}");
        }
    }
}

#[test]
fn wrong_types_are_named() {
    let date = |kind: &str| {
        format!(
            "Expected a string such as \"2021-01-01T09:15:27.243860Z\" or a number of seconds, milliseconds or microseconds since 1970, but got {kind}."
        )
    };
    for field in ["session_id", "category", "name", "data", "timestamp"] {
        assert_eq!(errors(with(field, "null")), json!({field: ["This field may not be null."]}));
    }
    for field in ["session_id", "category", "name"] {
        for sent in ["true", "{}", "[\"a\"]"] {
            assert_eq!(errors(with(field, sent)), json!({field: ["Not a valid string."]}), "{sent}");
        }
    }
    for (sent, kind) in [("{}", "an object"), ("[]", "an array"), ("true", "a boolean")] {
        assert_eq!(errors(with("timestamp", sent)), json!({"timestamp": [date(kind)]}));
    }
    for sent in ["1", "{}", "\"\"", "\"abc\"", "\"0190b6a0-7e1c-7000-8000-00000000000\"", "true"] {
        assert_eq!(errors(with("id", sent)), json!({"id": ["Must be a valid UUID."]}), "{sent}");
    }
    for (sent, kind) in
        [("1", "a number"), ("\"a\"", "a string"), ("[]", "an array"), ("null", "null"), ("false", "a boolean")]
    {
        let error = format!("Invalid data. Expected an object, but got {kind}.");
        assert_eq!(errors(sent), json!({"event": [error]}));
    }
}

#[test]
fn a_timestamp_is_read_without_its_escapes() {
    let event = parse(with("timestamp", "\"2021\\u002d01-01\"")).unwrap();
    assert_eq!(event.timestamp().to_string(), "2021-01-01T00:00:00Z");
}

#[test]
fn a_wrong_timestamp_says_what_to_write() {
    assert_eq!(
        errors(with("timestamp", "\"2021-001\"")),
        json!({"timestamp": ["Datetime has wrong format. Use one of these formats instead: \
               YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z], YYYY-MM-DD."]})
    );
}

#[test]
fn every_wrong_field_is_named_in_order() {
    let errors = parse(r#"{"id":"x","timestamp":"x","data":null,"name":true,"category":""}"#).unwrap_err();
    let fields: Vec<&str> = errors.fields().map(|(field, _)| field).collect();
    assert_eq!(fields, ["session_id", "category", "name", "data", "timestamp", "id"]);
    let required = json!(["This field is required."]);
    assert_eq!(self::errors("{}"), json!({"session_id": required, "category": required, "name": required}));
}

/// An event of the required fields, and these.
fn minimal(members: &str) -> String {
    format!(r#"{{"session_id":"s","category":"c","name":"n"{members}}}"#)
}

#[test]
fn absent_data_is_an_empty_object() {
    assert_eq!(parse(minimal(r#","timestamp":"2021-01-01""#)).unwrap().data(), "{}");
    assert_eq!(parse(minimal(r#","timestamp":"2021-01-01","data":[]"#)).unwrap().data(), "[]");
}

#[test]
fn absent_timestamp_is_the_time_in_the_id_or_the_default() {
    use DefaultTimestamp::{ForEventsWithoutId, ForEveryEvent, None};
    let time = Timestamp::parse("2020-02-03T04:05:06.789012Z").unwrap();
    let of_id = Timestamp::parse("2021-01-01T09:15:27.003Z").unwrap();
    let version_7 = r#","id":"0176bd3a-f79b-7000-8000-000000000001""#;
    let version_4 = r#","id":"0176bd3a-f79b-4000-8000-000000000001""#;
    let other_variant = r#","id":"0176bd3a-f79b-7000-c000-000000000001""#;
    let late = r#","id":"ffffffff-ffff-7000-8000-000000000001""#;
    let required =
        Err("timestamp: This field is required, because the id is not a UUIDv7: without a timestamp, an event \
                        that is sent again would be stored twice.");
    let out_of_range = Err("timestamp: Datetime is out of range: in UTC it must be within the years 1970 to 9999.");
    let table = [
        ("", ForEventsWithoutId(time), Ok(time)),
        ("", ForEveryEvent(time), Ok(time)),
        ("", None, required),
        (r#","id":null"#, ForEventsWithoutId(time), Ok(time)),
        (version_7, ForEventsWithoutId(time), Ok(of_id)),
        (version_7, ForEveryEvent(time), Ok(of_id)),
        (version_7, None, Ok(of_id)),
        (version_4, ForEventsWithoutId(time), required),
        (version_4, ForEveryEvent(time), Ok(time)),
        (version_4, None, required),
        (other_variant, ForEventsWithoutId(time), required),
        (late, ForEventsWithoutId(time), out_of_range),
        (r#","id":"no""#, ForEventsWithoutId(time), Err("id: Must be a valid UUID.")),
    ];
    for (members, default_timestamp, expected) in table {
        let context = ParseContext { default_timestamp, ..context() };
        let parse = |members: &str| Event::parse(minimal(members).as_bytes(), &context);
        let found = parse(members).map(|event| event.timestamp()).map_err(|errors| errors.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{members} {default_timestamp:?}");
        if found != Err("id: Must be a valid UUID.".to_owned()) {
            let found = parse(&format!(r#"{members},"timestamp":1"#)).map(|event| event.timestamp().as_micros());
            assert_eq!(found, Ok(1_000_000), "the own timestamp counts: {members}");
        }
    }
}

#[test]
fn numeric_timestamp_is_time_since_1970() {
    for number in ["1609492527.24386", "1609492527243.86", "1609492527243860"] {
        assert_eq!(parse(with("timestamp", number)).unwrap().timestamp().to_string(), "2021-01-01T09:15:27.243860Z");
    }
    assert_eq!(
        errors(with("timestamp", "-1")),
        json!({"timestamp": ["Datetime has a negative number: it must be 0 or more, counted from 1970-01-01T00:00:00Z."]})
    );
}

#[test]
fn unset_id_is_refused_with_the_cure() {
    for id in ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
        assert_eq!(
            errors(with("id", &format!("\"{id}\""))),
            json!({"id": ["The nil and the max UUID do not identify an event. Send a random UUID, or omit the field."]})
        );
    }
}

#[test]
fn an_id_may_have_every_form_of_a_uuid() {
    let expected: EventId = "0190b6a0-7e1c-7000-8000-00000000abcd".parse().unwrap();
    for sent in [
        "0190b6a0-7e1c-7000-8000-00000000abcd",
        "0190B6A0-7E1C-7000-8000-00000000ABCD",
        "0190b6a07e1c7000800000000000abcd",
        "{0190b6a0-7e1c-7000-8000-00000000abcd}",
        "urn:uuid:0190b6a0-7e1c-7000-8000-00000000abcd",
    ] {
        assert_eq!(parse(with("id", &format!("\"{sent}\""))).unwrap().id(), expected, "{sent}");
    }
}

#[test]
fn an_event_without_an_id_gets_one_of_its_own() {
    for json in [with_data("1"), with("id", "null")] {
        let [one, other] = [parse(&json).unwrap().id(), parse(&json).unwrap().id()];
        assert_eq!(one.get_version_num(), 7);
        assert_ne!(one, other);
    }
}

#[test]
fn unknown_members_are_ignored() {
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    for sent in ["1", "null", "{\"name\":1}", &deep] {
        assert!(parse(with("date", sent)).is_ok(), "{sent}");
    }
}

#[test]
fn of_equal_keys_the_last_one_wins() {
    let twice =
        |first: &str, second: &str| with_data("1").replacen('{', &format!("{{{first},"), 1).replace("\"n\"", second);
    assert_eq!(parse(twice("\"name\":\"first\"", "\"last\"")).unwrap().name(), "last");
    assert_eq!(parse(twice("\"na\\u006de\":[]", "\"last\"")).unwrap().name(), "last");
    let deep = format!("\"data\":{}{}", "[".repeat(33), "]".repeat(33));
    assert_eq!(parse(twice(&deep, "\"n\"")).unwrap().data(), "1");
    assert_eq!(errors(twice("\"name\":\"first\"", "null")), json!({"name": ["This field may not be null."]}));
    assert_eq!(
        errors(twice("\"name\":\"\\u0000\"", "\"last\"")),
        json!({"name": ["Null characters (\\u0000) are not allowed."]})
    );
}

#[test]
fn what_no_database_may_meet_is_refused_wherever_it_stands() {
    let null = "Null characters (\\u0000) are not allowed.";
    let lone = "Lone surrogates (\\uD800 to \\uDFFF without their pair) are not allowed.";
    let large = "Numbers beyond the range of a double (about 1.8e308) are not allowed; send them as strings.";
    let digits = "9".repeat(400);
    let negative_digits = format!("-{digits}");
    let table = [
        ("\"a\\u0000\"", null),
        ("\"\\ud83d\"", lone),
        ("\"\\ud83d x\"", lone),
        ("\"\\ud83d\\n\"", lone),
        ("\"\\ud83d\\u0041\"", lone),
        ("\"\\ud83d\\ud83d\\ude00\"", lone),
        ("\"\\ude00\"", lone),
        ("\"\\ude00\\ud83d\"", lone),
        ("\"\\uDFFF\"", lone),
        ("1e400", large),
        ("-1e400", large),
        ("1.8e308", large),
        ("1e99999999999999999999999", large),
        (&digits, large),
        (&negative_digits, large),
    ];
    for (sent, error) in table {
        for field in ["session_id", "category", "name", "data", "timestamp", "id"] {
            assert_eq!(errors(with(field, sent)), json!({field: [error]}), "{field}: {sent}");
            assert_eq!(errors(with(field, &format!("[{{\"a\":{sent}}}]"))), json!({field: [error]}), "{field}: {sent}");
        }
        assert_eq!(errors(with("unknown", sent)), json!({"event": [error]}), "{sent}");
        let deep = format!("{}{sent}{}", "[".repeat(40), "]".repeat(40));
        assert_eq!(errors(with("unknown", &deep)), json!({"event": [error]}), "{sent}");
        if sent.starts_with('"') {
            assert_eq!(errors(with_data(&format!("{{{sent}:1}}"))), json!({"data": [error]}), "{sent}");
            assert_eq!(errors(with_data("1").replacen('{', &format!("{{{sent}:1,"), 1)), json!({"event": [error]}));
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_refuse_their_field() {
    let error = json!(["The text is not valid UTF-8."]);
    for bytes in [&b"\xff"[..], b"\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"] {
        for field in ["session_id", "data", "timestamp"] {
            let json = [&with(field, "\"").into_bytes()[..], &[]].concat();
            let json = [&json[..json.len() - 1], bytes, b"\"}"].concat();
            assert_eq!(errors(json), json!({field: error}), "{bytes:?}");
        }
        let key = [b"{\"", bytes, b"\":1,", &with_data("1").as_bytes()[1..]].concat();
        assert_eq!(errors(key), json!({"event": error}), "{bytes:?}");
    }
}

#[test]
fn an_event_has_at_most_its_limit_of_bytes() {
    let limits = EventLimits::default();
    assert_eq!(limits.max_event_bytes, 1_048_576);
    let empty = with_data("\"\"").len();
    let sized = |bytes: usize| format!("  {}\n", with_data(&format!("\"{}\"", "x".repeat(bytes - empty))));
    assert!(parse(sized(limits.max_event_bytes)).is_ok());
    let errors = parse(sized(limits.max_event_bytes + 1)).unwrap_err();
    assert!(errors.is_too_large());
    assert_eq!(errors.to_string(), "event: Ensure the event has no more than 1048576 bytes.");
    assert!(!parse("{}").unwrap_err().is_too_large());
}

#[test]
fn text_that_is_not_one_json_value_is_refused() {
    for (sent, error) in [
        ("", "JSON parse error at line 1 column 1: expected a JSON value, but the text ends here"),
        ("{} {}", "JSON parse error at line 1 column 4: expected the end of the text, but found `{`"),
        ("{\"a\" 1}", "JSON parse error at line 1 column 6: expected `:`, but found `1`"),
    ] {
        assert_eq!(errors(sent), json!({"event": [error]}));
    }
}

#[test]
fn the_copies_of_one_event_make_room_for_the_next() {
    let json = with_data("[1, 2]");
    let body = json.repeat(100);
    let text = JsonText::new(body.as_bytes());
    let mut scanner = Scanner::new(&text);
    while scanner.peek().is_some() {
        let event = Event::scan(&mut scanner, &context(), Uuid::now_v7).unwrap().unwrap();
        assert_eq!(event.data(), "[1,2]");
        assert!(scanner.copied().len() < 2 * json.len());
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert!(parse(format!("\u{feff}{}", with_data("1"))).is_ok());
}

proptest! {
    #[test]
    fn a_valid_event_comes_through_unchanged(sent in strategy::sent_events()) {
        let context = ParseContext {
            received_at: strategy::RECEIVED_AT,
            default_timestamp: DefaultTimestamp::ForEventsWithoutId(strategy::RECEIVED_AT),
            origin: crate::testkit::origin().clone(),
            limits: EventLimits::default(),
        };
        let event = Event::parse(sent.json.as_bytes(), &context);
        prop_assert_eq!(event, Ok(sent.event));
    }

    #[test]
    fn a_damaged_event_is_still_json_or_refused(
        sent in strategy::sent_events(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut json = sent.json.into_bytes();
        let place = place.index(json.len());
        json[place] = byte;
        if let Ok(event) = parse(&json) {
            prop_assert!(serde_json::from_slice::<&RawValue>(&json).is_ok());
            prop_assert!(serde_json::from_str::<&RawValue>(event.data()).is_ok());
        }
    }
}
