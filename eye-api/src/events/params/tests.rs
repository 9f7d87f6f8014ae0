use eye_core::event::EventId;
use eye_core::event::EventKey;
use serde_json::json;

use super::super::cursor::Direction;
use super::*;

fn at(text: &str) -> Timestamp {
    Timestamp::from_micros(chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()).unwrap()
}

fn key() -> EventKey {
    EventKey { timestamp: at("2021-01-01T09:15:27.243860Z"), id: EventId::from_u128(7) }
}

fn read(query: &str) -> Params {
    Params::parse(query).unwrap_or_else(|errors| panic!("{query}: {errors:?}"))
}

fn errors(query: &str) -> String {
    json!(Params::parse(query).unwrap_err()).to_string()
}

#[test]
fn empty_query_is_the_newest_hundred() {
    for query in ["", "&", "&&", "session_id=", "limit=", "session_id", "limit=7&limit=", "cursor=&offset="] {
        let expected = EventQuery { limit: 100, ..EventQuery::default() };
        assert_eq!(
            read(query),
            Params { query: expected, include: Default::default(), given: Default::default() },
            "{query}"
        );
    }
}

#[test]
fn text_filters_are_decoded() {
    let cases = [
        ("a", "a"),
        ("page+interaction", "page interaction"),
        ("page%20interaction", "page interaction"),
        ("a%2Bb", "a+b"),
        ("a=b", "a=b"),
        ("%c3%A4", "ä"),
        ("ä", "ä"),
        ("%F0%9F%91%81", "👁"),
        ("+a+", " a "),
        ("%26%3D%25", "&=%"),
        ("%0A", "\n"),
        ("a;b", "a;b"),
        ("*", "*"),
    ];
    for (sent, expected) in cases {
        for name in ["session_id", "category", "name"] {
            let filter = read(&format!("{name}={sent}")).query.filter;
            let field = match name {
                "session_id" => &filter.session_id,
                "category" => &filter.category,
                _ => &filter.name,
            };
            assert_eq!(field.as_deref(), Some(expected), "{name}={sent}");
            assert_eq!([&filter.session_id, &filter.category, &filter.name].iter().filter(|f| f.is_some()).count(), 1);
        }
    }
    assert_eq!(read("session%5Fid=a").query.filter.session_id.as_deref(), Some("a"), "an encoded name");
    assert_eq!(read("name=a&name=b").query.filter.name.as_deref(), Some("b"), "the last one wins");
}

#[test]
fn both_names_of_a_bound_mean_the_same() {
    let noon = Some(at("2021-01-01T12:00:00Z"));
    for sent in ["2021-01-01T12:00:00Z", "2021-01-01+12:00", "2021-01-01%2012%3A00%3A00", "2021-01-01T14:00:00%2B02:00"]
    {
        for (after, before) in [("timestamp_after", "timestamp_before"), ("timestamp_start", "timestamp_end")] {
            let filter = read(&format!("{after}={sent}")).query.filter;
            assert_eq!(filter, EventFilter { timestamp_after: noon, ..EventFilter::default() }, "{after}={sent}");
            let filter = read(&format!("{before}={sent}")).query.filter;
            assert_eq!(filter, EventFilter { timestamp_before: noon, ..EventFilter::default() }, "{before}={sent}");
        }
    }
}

#[test]
fn two_names_of_one_bound_both_apply() {
    let filter = read(
        "timestamp_after=2021-01-01&timestamp_start=2021-01-02&timestamp_before=2021-01-05&timestamp_end=2021-01-04",
    )
    .query
    .filter;
    assert_eq!(filter.timestamp_after, Some(at("2021-01-02T00:00:00Z")));
    assert_eq!(filter.timestamp_before, Some(at("2021-01-04T00:00:00Z")));
}

#[test]
fn unencoded_plus_of_an_offset_is_restored() {
    let after = |sent: &str| {
        Params::parse(&format!("timestamp_after={sent}")).ok().and_then(|p| p.query.filter.timestamp_after)
    };
    assert_eq!(after("2021-01-01T00:00:00+02:00"), Some(at("2020-12-31T22:00:00Z")));
    assert_eq!(after("2021-01-01T00:00:00.5+02:00"), Some(at("2020-12-31T22:00:00.5Z")));
    assert_eq!(after("2021-01-01+02:00"), Some(at("2021-01-01T02:00:00Z")), "a time of day");
    assert_eq!(after("2021-01-01+02"), None, "could be either");
    assert_eq!(after("2021-01-01T00:00:00+Z"), None);
}

#[test]
fn paging_is_parsed() {
    let limits = [
        ("1", 1),
        ("100", 100),
        ("007", 7),
        ("1000", 1000),
        ("1001", 1000),
        ("4294967296", 1000),
        (&"9".repeat(30), 1000),
    ];
    for (sent, expected) in limits {
        assert_eq!(read(&format!("limit={sent}")).query.limit, expected, "{sent}");
    }
    for (sent, expected) in [("0", 0), ("25", 25), ("9223372036854775807", i64::MAX as u64)] {
        assert_eq!(read(&format!("offset={sent}")).query.start, PageStart::Offset(expected), "{sent}");
    }
    let key = key();
    for (direction, start) in
        [(Direction::Older, PageStart::OlderThan(key)), (Direction::Newer, PageStart::NewerThan(key))]
    {
        assert_eq!(read(&format!("cursor={}", cursor::encode(direction, key))).query.start, start);
    }
}

#[test]
fn include_and_format_are_parsed() {
    let cases =
        [("id", true, false), ("received_at", false, true), ("received_at,id", true, true), ("id,+id", true, false)];
    for (sent, id, received_at) in cases {
        assert_eq!(read(&format!("include={sent}")).include, Include { id, received_at }, "{sent}");
    }
    read("format=json");
}

#[test]
fn bad_values_name_their_parameter() {
    let date = "Enter a valid date/time.";
    let integer = "A valid integer is required.";
    let cursor = "Invalid cursor. Use one as given in `next` or `previous`.";
    let encoding = "Not valid percent-encoded UTF-8.";
    let cases = [
        ("limit=0", "limit", "Ensure this value is greater than or equal to 1."),
        ("limit=-1", "limit", "Ensure this value is greater than or equal to 1."),
        ("limit=-", "limit", integer),
        ("limit=abc", "limit", integer),
        ("limit=1.5", "limit", integer),
        ("limit=+5", "limit", integer),
        ("limit=%2B5", "limit", integer),
        ("limit=5x", "limit", integer),
        ("limit=%D9%A3", "limit", integer),
        ("limit=5&limit=x", "limit", integer),
        ("offset=-1", "offset", "Ensure this value is greater than or equal to 0."),
        ("offset=abc", "offset", integer),
        ("offset=9223372036854775808", "offset", "Ensure this value is less than or equal to 9223372036854775807."),
        ("timestamp_after=nonsense", "timestamp_after", date),
        ("timestamp_start=2021-02-30", "timestamp_start", date),
        ("timestamp_before=1609459200", "timestamp_before", date),
        ("timestamp_end=+", "timestamp_end", date),
        ("timestamp_end=:+", "timestamp_end", date),
        ("cursor=abc", "cursor", cursor),
        ("cursor=%00x", "cursor", "Null characters are not allowed."),
        ("include=data", "include", "Unknown key `data`. Known keys: id, received_at."),
        ("include=id,", "include", "Unknown key ``. Known keys: id, received_at."),
        ("include=ID", "include", "Unknown key `ID`. Known keys: id, received_at."),
        ("format=csv", "format", "Only `json` is served."),
        ("session_id=a%00b", "session_id", "Null characters are not allowed."),
        ("session_id=%", "session_id", encoding),
        ("session_id=%4", "session_id", encoding),
        ("session_id=%zz", "session_id", encoding),
        ("session_id=%+1", "session_id", encoding),
        ("name=%FF", "name", encoding),
        ("name=%ED%A0%80", "name", encoding),
        ("category=%C3&category=ok", "category", encoding),
        ("na%me=x", "na%me", encoding),
        ("=x", "", "Unknown parameter."),
        ("foo=1", "foo", "Unknown parameter."),
        ("page", "page", "Unknown parameter."),
        ("%F0%9F%91%81=1", "👁", "Unknown parameter."),
        ("sesion_id=1", "sesion_id", "Unknown parameter. Did you mean `session_id`?"),
        ("Session_ID=1", "Session_ID", "Unknown parameter. Did you mean `session_id`?"),
        ("limits=1", "limits", "Unknown parameter. Did you mean `limit`?"),
        ("time_after=1", "time_after", "Unknown parameter. Did you mean `timestamp_after`?"),
        ("offest=1", "offest", "Unknown parameter. Did you mean `offset`?"),
    ];
    for (query, name, error) in cases {
        assert_eq!(errors(query), json!({ name: [error] }).to_string(), "{query}");
    }
}

#[test]
fn offset_and_cursor_exclude_each_other() {
    let cursor = cursor::encode(Direction::Older, key());
    assert_eq!(
        errors(&format!("cursor={cursor}&offset=0")),
        r#"{"offset":["Give either `offset` or `cursor`, not both."]}"#
    );
}
