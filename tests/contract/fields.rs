//! The fields of an event: accepted values and their form in answers, refused values and their errors.

use eye_harness::Eye;
use serde_json::{Value, json};

use crate::api::{JSON, Page, PageEvent, event, get, page, post};

on_every_database! {
    texts_are_kept_exactly
    data_is_kept_token_for_token
    absent_data_is_an_empty_object
    timestamps_are_read_in_every_form
    numeric_timestamps_are_time_since_1970
    absent_timestamp_is_the_time_of_the_id_or_of_receipt
    same_id_and_timestamp_is_stored_once
    unknown_fields_are_ignored
    last_of_two_equal_keys_wins
    invalid_events_are_refused_with_reasons
    invalid_bodies_are_refused_with_reasons
    invalid_timestamps_are_refused_with_reasons
    all_invalid_fields_are_named_at_once
}

/// Sends an event and returns it as a query returns it, with the whole answer.
async fn send_and_query(eye: &Eye, row: usize, field: &str, sent: &str) -> (PageEvent, String) {
    let marker = format!("row {row}");
    let marker_field = if field == "category" { "name" } else { "category" };
    let body = event(&[(field, sent), (marker_field, &format!("\"{marker}\""))]);
    let answer = post(eye, JSON, body).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#), "{field}: {sent}");
    let answer = get(eye, &format!("{marker_field}={}&include=id", marker.replace(' ', "+"))).await;
    let mut page: Page = answer.json();
    assert_eq!(page.count, 1, "{field}: {sent}: {}", answer.text);
    (page.results.remove(0), answer.text)
}

async fn texts_are_kept_exactly(eye: &Eye) {
    let quoted = |text: &str| format!("\"{text}\"");
    let as_sent = [
        "a",
        " a ",
        "a ",
        "\u{a0}a",
        "ABC",
        "abc",
        "àbc",
        "a\u{300}bc",
        "ß",
        "ſ",
        "👁",
        "'; DROP TABLE event; --",
        "%",
        "_",
        "null",
        "\u{7f}",
        "\u{feff}",
        "\u{ffff}",
        "\u{10ffff}",
        "\u{202e}",
        "{}",
        "&<>",
        "🧑‍🚀",
        "a\u{2028}b",
    ];
    let mut table: Vec<(String, String)> = as_sent.iter().map(|text| (quoted(text), (*text).to_owned())).collect();
    for character in ["x", "é", "字", "👁"] {
        table.push((quoted(&character.repeat(150)), character.repeat(150)));
    }
    table.extend(
        [
            (r#""\" \\ \/ \b\f\n\r\t""#, "\" \\ / \u{8}\u{c}\n\r\t"),
            (r#""\u0001\u001f\u007f""#, "\u{1}\u{1f}\u{7f}"),
            (r#""\u00E9\u00e9\u5B57\ud83d\uDC41""#, "éé字👁"),
            // A JSON number is stored as its text.
            ("42", "42"),
            ("-0", "-0"),
            ("1.10", "1.10"),
            ("1E5", "1E5"),
            ("12345678901234567890123", "12345678901234567890123"),
        ]
        .map(|(sent, stored)| (sent.to_owned(), stored.to_owned())),
    );
    let mut row = 0;
    for field in ["session_id", "category", "name"] {
        for (sent, stored) in &table {
            row += 1;
            let (found, text) = send_and_query(eye, row, field, sent).await;
            let found = match field {
                "session_id" => found.session_id,
                "category" => found.category,
                _ => found.name,
            };
            assert_eq!(&found, stored, "{field}: {sent}: {text}");
        }
    }
}

async fn data_is_kept_token_for_token(eye: &Eye) {
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let objects = format!("{}{{}}{}", r#"{"a":"#.repeat(31), "}".repeat(31));
    let as_sent = [
        "{}",
        "[]",
        "true",
        "false",
        "0",
        "\"\"",
        "\"text\"",
        "[null]",
        r#"{"a":null}"#,
        r#"{"z":1,"a":2,"m":{"y":[],"b":{}}}"#,
        r#"{"a":1,"a":2,"":3}"#,
        "12345678901234567890",
        "-9223372036854775809",
        "123456789012345678901234567890.123456789012345678901234567890",
        "1.10",
        "-0",
        "-0.0",
        "1e3",
        "1E+3",
        "1e-400",
        "1e308",
        "0.1",
        "100000000000000000000000",
        r#""\" \\ \/ \b\f\n\r\t""#,
        r#""\u00e9\u00E9é""#,
        r#""\ud83d\udc41👁""#,
        r#""\u0001\u001f""#,
        r#""a  b""#,
        r#"{"\u0061":1,"a":2,"é":3,"👁":4}"#,
        r#""\\u0000""#,
        r#""' '' ; -- $1 ? :a""#,
        "\"\u{feff}\u{ffff}\u{10ffff}\u{7f}\u{2028}\"",
        &nested(32),
        &objects,
    ];
    let mut table: Vec<(&str, &str)> = as_sent.iter().map(|data| (*data, *data)).collect();
    // Only white space between tokens is removed.
    table.push((" [ 1 ,\t2\r\n, \" a  b \" ] ", r#"[1,2," a  b "]"#));
    table.push(("{ \"a b\" : { } , \"c\" : [ ] }", r#"{"a b":{},"c":[]}"#));
    for (row, (sent, stored)) in table.into_iter().enumerate() {
        let (found, text) = send_and_query(eye, row, "data", sent).await;
        assert_eq!(found.data.get(), stored, "{sent}: {text}");
        assert!(text.contains(&format!(r#""data":{stored},"id":"#)), "the bytes of the answer: {text}");
    }
}

async fn absent_data_is_an_empty_object(eye: &Eye) {
    let (found, _) = send_and_query(eye, 1, "data", "").await;
    assert_eq!(found.data.get(), "{}");
}

async fn timestamps_are_read_in_every_form(eye: &Eye) {
    let table = [
        ("2021-01-01 09:15:27.243860", "2021-01-01T09:15:27.243860Z"),
        ("2021-01-01T09:15:27.243860", "2021-01-01T09:15:27.243860Z"),
        ("2021-01-01T09:15:27.243860Z", "2021-01-01T09:15:27.243860Z"),
        ("2021-01-01 09:15:27,5", "2021-01-01T09:15:27.500000Z"),
        ("2021-01-01T09:15:27.1", "2021-01-01T09:15:27.100000Z"),
        ("2021-01-01T09:15:27.000001Z", "2021-01-01T09:15:27.000001Z"),
        ("2021-01-01T09:15:27.9999999", "2021-01-01T09:15:27.999999Z"),
        ("2021-01-01T09:15:27.1234567891234+02:00", "2021-01-01T07:15:27.123456Z"),
        ("2021-01-01T09:15:27.000000", "2021-01-01T09:15:27Z"),
        ("2021-01-01T09:15:27", "2021-01-01T09:15:27Z"),
        ("2021-01-01 09:15", "2021-01-01T09:15:00Z"),
        ("2021-01-01T09:15Z", "2021-01-01T09:15:00Z"),
        ("2021-01-01T09:15:27+02:00", "2021-01-01T07:15:27Z"),
        ("2021-01-01T09:15:27+0200", "2021-01-01T07:15:27Z"),
        ("2021-01-01T09:15:27+02", "2021-01-01T07:15:27Z"),
        ("2021-01-01T09:15:27-05:30", "2021-01-01T14:45:27Z"),
        ("2021-01-01T00:00:00+23:59", "2020-12-31T00:01:00Z"),
        ("2021-1-1 9:15:27", "2021-01-01T09:15:27Z"),
        ("2021-1-1 9:5:7", "2021-01-01T09:05:07Z"),
        ("2021-01-01t09:15:27z", "2021-01-01T09:15:27Z"),
        ("2021-01-01 09:15:27 +02:00", "2021-01-01T07:15:27Z"),
        ("2021-01-01 09:15:27 Z", "2021-01-01T09:15:27Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
        ("2021-01-01", "2021-01-01T00:00:00Z"),
        ("2020-02-29", "2020-02-29T00:00:00Z"),
        ("1970-01-01", "1970-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00.000001Z", "1970-01-01T00:00:00.000001Z"),
        // Hours that do not exist in some zones. The zone of a server must not shift them.
        ("2021-03-28T02:30:00", "2021-03-28T02:30:00Z"),
        ("2021-10-31T02:30:00", "2021-10-31T02:30:00Z"),
        // Beyond 32 bits of seconds.
        ("2038-01-19T03:14:08Z", "2038-01-19T03:14:08Z"),
        ("2106-02-07T06:28:16Z", "2106-02-07T06:28:16Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ];
    for (row, (sent, read)) in table.into_iter().enumerate() {
        let (found, _) = send_and_query(eye, row, "timestamp", &format!("\"{sent}\"")).await;
        assert_eq!(found.timestamp, read, "{sent}");
        // Bounds of queries accept the same forms.
        let here = page(eye, &[("timestamp_after", sent), ("timestamp_before", sent)]).await;
        assert!(
            !here.results.is_empty() && here.results.iter().all(|event| event.timestamp == read),
            "{sent}: {here:?}"
        );
    }
}

async fn numeric_timestamps_are_time_since_1970(eye: &Eye) {
    let table = [
        ("1609492527", "2021-01-01T09:15:27Z"),
        ("1609492527.24386", "2021-01-01T09:15:27.243860Z"),
        ("1609492527.2438609999", "2021-01-01T09:15:27.243860Z"),
        ("1609492527243", "2021-01-01T09:15:27.243000Z"),
        ("1609492527243.8601", "2021-01-01T09:15:27.243860Z"),
        ("1609492527243860", "2021-01-01T09:15:27.243860Z"),
        ("1.60949252724386E9", "2021-01-01T09:15:27.243860Z"),
        ("0", "1970-01-01T00:00:00Z"),
        ("-0", "1970-01-01T00:00:00Z"),
        ("0.0000019", "1970-01-01T00:00:00.000001Z"),
        ("99999999999", "5138-11-16T09:46:39Z"),
        ("100000000000", "1973-03-03T09:46:40Z"),
        ("99999999999999", "5138-11-16T09:46:39.999000Z"),
        ("100000000000000", "1973-03-03T09:46:40Z"),
        ("253402300799999999", "9999-12-31T23:59:59.999999Z"),
    ];
    for (row, (sent, read)) in table.into_iter().enumerate() {
        let (found, _) = send_and_query(eye, row, "timestamp", sent).await;
        assert_eq!(found.timestamp, read, "{sent}");
        // A query takes no numbers.
        for parameter in ["timestamp_after", "timestamp_before"] {
            let answer = get(eye, &format!("{parameter}={sent}")).await;
            let expected = json!({parameter: ["Enter a valid date/time."]});
            assert_eq!((answer.status, answer.json::<Value>()), (400, expected), "{sent}");
        }
    }
}

async fn absent_timestamp_is_the_time_of_the_id_or_of_receipt(eye: &Eye) {
    let id = "\"0176bd3a-f79b-7000-8000-000000000001\"";
    let sent = event(&[("timestamp", ""), ("id", id)]);
    for _ in 0..2 {
        assert_eq!(post(eye, JSON, sent.clone()).await.status, 201);
    }
    let stored = page(eye, &[]).await;
    assert_eq!((stored.count, stored.results[0].timestamp.as_str()), (1, "2021-01-01T09:15:27.003000Z"));

    let minted = event(&[("timestamp", ""), ("name", "\"minted\"")]);
    assert_eq!(post(eye, JSON, minted).await.status, 201);
    let stored: Value = get(eye, "name=minted&include=received_at").await.json();
    let stored = &stored["results"][0];
    assert!(stored["timestamp"].is_string() && stored["timestamp"] == stored["received_at"], "{stored}");
}

async fn same_id_and_timestamp_is_stored_once(eye: &Eye) {
    let read = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let forms = [
        "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "67E55044-10B1-426F-9247-BB680E5FE0C8",
        "67e5504410b1426f9247bb680e5fe0c8",
    ];
    for (row, form) in forms.into_iter().enumerate() {
        // The second event is accepted, but the first one stays stored.
        for name in ["first", "second"] {
            let timestamp = format!("\"2021-01-0{}\"", row + 1);
            let [id, name] = [form, name].map(|text| format!("\"{text}\""));
            let body = event(&[("id", &id), ("timestamp", &timestamp), ("name", &name)]);
            let answer = post(eye, JSON, body).await;
            assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#), "{form}");
        }
        let stored = page(eye, &[("include", "id")]).await;
        assert_eq!(stored.count as usize, row + 1, "the same id at another time is another event");
        assert_eq!((stored.results[0].id.as_deref(), stored.results[0].name.as_str()), (Some(read), "first"));
    }

    // Twice in one body.
    let twice = event(&[("id", "\"00000000-0000-0000-0000-000000000009\""), ("timestamp", "\"2022-01-01\"")]);
    let answer = post(eye, JSON, format!("[{twice},{twice}]")).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true, "accepted": 2}"#));
    assert_eq!(page(eye, &[("timestamp_after", "2022-01-01")]).await.count, 1);

    // Equal events without id are separate, and each gets a UUIDv7.
    let minted = event(&[("id", "null"), ("timestamp", "\"2023-01-01\"")]);
    for _ in 0..2 {
        assert_eq!(post(eye, JSON, minted.clone()).await.status, 201);
    }
    let ids: Vec<String> =
        (page(eye, &[("timestamp_after", "2023-01-01"), ("include", "id")]).await.results.into_iter())
            .filter_map(|event| event.id)
            .collect();
    assert!(ids.len() == 2 && ids[0] != ids[1] && ids.iter().all(|id| &id[14..15] == "7"), "{ids:?}");
}

async fn unknown_fields_are_ignored(eye: &Eye) {
    let extra = r#"{"date":1609492527.24,"nested":{"id":"no"},"":[],"Name":"b","received_at":"nonsense"}"#;
    let body = format!("{},{}", event(&[]).strip_suffix('}').unwrap(), &extra[1..]);
    let answer = post(eye, JSON, body).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#));
    let expected = r#"{"count":1,"next":null,"previous":null,"results":[{"session_id":"s","timestamp":"2021-01-01T00:00:00Z","category":"c","name":"n","data":{}}]}"#;
    assert_eq!(get(eye, "").await.text, expected);
}

async fn last_of_two_equal_keys_wins(eye: &Eye) {
    let table = [
        (r#""name":"a","name":"b""#, "b", "{}"),
        (r#""name":"a","n\u0061me":"c""#, "c", "{}"),
        (r#""name":7,"name":"d""#, "d", "{}"),
        (r#""name":"e","data":[1],"data":[2]"#, "e", "[2]"),
        (r#""name":"f","timestamp":"nonsense","timestamp":"2021-01-01""#, "f", "{}"),
    ];
    for (members, name, data) in table {
        let first = event(&[]);
        let body = format!("{},{members}}}", first.strip_suffix('}').unwrap());
        let answer = post(eye, JSON, body.clone()).await;
        assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#), "{body}");
        let found = page(eye, &[("name", name)]).await;
        assert_eq!(found.results.first().map(|event| event.data.get()), Some(data), "{body}");
    }
}

const REQUIRED: &str = "This field is required.";
const NULL: &str = "This field may not be null.";
const NUL_CHARACTER: &str = "Null characters (\\u0000) are not allowed.";
const SURROGATE: &str = "Lone surrogates (\\uD800 to \\uDFFF without their pair) are not allowed.";
const FORMAT: &str = "Datetime has wrong format. Use one of these formats instead: \
                      YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z], YYYY-MM-DD.";

const TOO_LARGE: &str = "Numbers beyond the range of a double (about 1.8e308) are not allowed; send them as strings.";
const NO_DATE: &str = "Datetime has a date that does not exist.";
const NO_TIME: &str = "Datetime has a time that does not exist: it goes from 00:00:00 to 23:59:59.";
const NO_OFFSET: &str = "Datetime has an offset that does not exist: it goes from -23:59 to +23:59.";
const OUT_OF_RANGE: &str = "Datetime is out of range: in UTC it must be within the years 1970 to 9999.";
const NEGATIVE: &str = "Datetime has a negative number: it must be 0 or more, counted from 1970-01-01T00:00:00Z.";
const TIMESTAMP_FOR_ID: &str = "This field is required, because the id is not a UUIDv7: without a timestamp, an event \
                                that is sent again would be stored twice.";
const UNSET_ID: &str = "The nil and the max UUID do not identify an event. Send a random UUID, or omit the field.";

/// Sends an event with this field and expects this one error.
async fn assert_refused(eye: &Eye, field: &str, sent: &str, error: &str) {
    let answer = post(eye, JSON, event(&[(field, sent)])).await;
    let sent = sent.chars().take(80).collect::<String>();
    assert_eq!(answer.status, 400, "{field}: {sent}: {}", answer.text);
    assert_eq!(answer.json::<Value>(), json!({"success": false, "errors": {field: [error]}}), "{field}: {sent}");
}

async fn invalid_events_are_refused_with_reasons(eye: &Eye) {
    let mut table: Vec<(&str, String, &str)> = Vec::new();
    for field in ["session_id", "category", "name"] {
        let rows = [
            ("", REQUIRED),
            ("null", NULL),
            (r#""""#, "This field may not be blank."),
            (r#"" \t\n ""#, "This field may not be blank."),
            ("\"\u{a0}\u{3000}\"", "This field may not be blank."),
            ("true", "Not a valid string."),
            ("[]", "Not a valid string."),
            ("{}", "Not a valid string."),
            (r#""a\u0000b""#, NUL_CHARACTER),
            (r#""\ud83d""#, SURROGATE),
            (r#""\udc41\ud83d""#, SURROGATE),
            (r#""\ud83dx""#, SURROGATE),
        ];
        table.extend(rows.map(|(sent, error)| (field, sent.to_owned(), error)));
        for character in ["x", "👁"] {
            let long = format!("\"{}\"", character.repeat(151));
            table.push((field, long, "Ensure this field has no more than 150 characters."));
        }
        table.push((field, "1".repeat(151), "Ensure this field has no more than 150 characters."));
    }
    let too_deep = "Ensure this field is nested no more than 32 levels deep.";
    let nested = |open: &str, close: &str, levels: usize| format!("{}{}", open.repeat(levels), close.repeat(levels));
    table.extend([
        ("data", "null".to_owned(), NULL),
        ("data", nested("[", "]", 33), too_deep),
        ("data", nested("[", "]", 100_000), too_deep),
        ("data", format!("{}1{}", r#"{"a":"#.repeat(33), "}".repeat(33)), too_deep),
        ("data", "1e400".to_owned(), TOO_LARGE),
        ("data", "-1e309".to_owned(), TOO_LARGE),
        ("data", r#"{"a":[1e400]}"#.to_owned(), TOO_LARGE),
        ("data", "9".repeat(310), TOO_LARGE),
        ("data", r#""\u0000""#.to_owned(), NUL_CHARACTER),
        ("data", r#"{"a\u0000":1}"#.to_owned(), NUL_CHARACTER),
        ("data", r#"["\ud800"]"#.to_owned(), SURROGATE),
        ("timestamp", "null".to_owned(), NULL),
        ("id", "\"no uuid\"".to_owned(), "Must be a valid UUID."),
        ("id", "\"\"".to_owned(), "Must be a valid UUID."),
        ("id", "7".to_owned(), "Must be a valid UUID."),
        ("id", "\"00000000-0000-0000-0000-000000000000\"".to_owned(), UNSET_ID),
        ("id", "\"ffffffff-ffff-ffff-ffff-ffffffffffff\"".to_owned(), UNSET_ID),
        ("id", "\"67e55044-10b1-426f-9247-bb680e5fe0c\"".to_owned(), "Must be a valid UUID."),
    ]);
    for (field, sent, error) in table {
        assert_refused(eye, field, &sent, error).await;
    }
    assert_eq!(page(eye, &[]).await.count, 0, "a refused event is not stored");
}

/// Unknown fields are validated, too, and the event must be an object.
async fn invalid_bodies_are_refused_with_reasons(eye: &Eye) {
    let unknown = r#"{"\u0000":1,"#.to_owned() + &event(&[])[1..];
    let not_utf8 = event(&[("name", "\"?\"")]).into_bytes().iter().map(|&b| if b == b'?' { 0xff } else { b }).collect();
    let overlong = event(&[("name", "\"??\"")]).replace("??", "\u{7f}\u{7f}").into_bytes();
    let overlong = overlong.iter().map(|&byte| if byte == 0x7f { 0xc0 } else { byte }).collect();
    let not_an_object = |kind| format!("Invalid data. Expected an object, but got {kind}.");
    let table: [(Vec<u8>, &str, String); 8] = [
        (unknown.into(), "non_field_errors", NUL_CHARACTER.into()),
        (event(&[("other", "1e400")]).into(), "non_field_errors", TOO_LARGE.into()),
        (event(&[("other", r#""\ud800""#)]).into(), "non_field_errors", SURROGATE.into()),
        (not_utf8, "name", "The text is not valid UTF-8.".into()),
        (overlong, "name", "The text is not valid UTF-8.".into()),
        ("null".into(), "non_field_errors", not_an_object("null")),
        ("\"text\"".into(), "non_field_errors", not_an_object("a string")),
        ("17".into(), "non_field_errors", not_an_object("a number")),
    ];
    for (body, field, error) in table {
        let sent = String::from_utf8_lossy(&body).into_owned();
        let answer = post(eye, JSON, body).await;
        assert_eq!(answer.json::<Value>(), json!({"success": false, "errors": {field: [error]}}), "{sent}");
        assert_eq!(answer.status, 400, "{sent}");
    }
    assert_eq!(page(eye, &[]).await.count, 0, "a refused event is not stored");
}

async fn invalid_timestamps_are_refused_with_reasons(eye: &Eye) {
    let texts = [
        ("", FORMAT),
        ("now", FORMAT),
        ("1609492527", FORMAT),
        ("2021-001", FORMAT),
        ("2021-W01-1", FORMAT),
        ("20210101", FORMAT),
        ("2021-01-01T09", FORMAT),
        ("2021-01-01T09:15:27 Europe/Berlin", FORMAT),
        ("2021-01-01T09:15:27 CET", FORMAT),
        ("2021-01-01T09:15:27GMT", FORMAT),
        ("Fri, 01 Jan 2021 09:15:27 GMT", FORMAT),
        ("2021-01-01Z", FORMAT),
        (" 2021-01-01", FORMAT),
        ("10000-01-01", FORMAT),
        ("2021-02-29", NO_DATE),
        ("2021-13-01", NO_DATE),
        ("2021-01-00", NO_DATE),
        ("2021-01-01T24:00:00", NO_TIME),
        ("2021-01-01T09:15:60", NO_TIME),
        ("2021-01-01T00:00:00+24:00", NO_OFFSET),
        ("1969-12-31T23:59:59.999999", OUT_OF_RANGE),
        ("9999-12-31T23:59:59-00:01", OUT_OF_RANGE),
        ("0000-01-01", OUT_OF_RANGE),
    ];
    for (sent, error) in texts {
        assert_refused(eye, "timestamp", &format!("\"{sent}\""), error).await;
    }
    let numbers =
        [("-1", NEGATIVE), ("-0.0000001", NEGATIVE), ("253402300800000000", OUT_OF_RANGE), ("1e300", OUT_OF_RANGE)];
    for (sent, error) in numbers {
        assert_refused(eye, "timestamp", sent, error).await;
    }
    for (sent, kind) in [("true", "a boolean"), ("[]", "an array"), ("{}", "an object")] {
        let error = format!(
            "Expected a string such as \"2021-01-01T09:15:27.243860Z\" or a number of seconds, milliseconds or \
             microseconds since 1970, but got {kind}."
        );
        assert_refused(eye, "timestamp", sent, &error).await;
    }

    // Without a timestamp, the id must tell the time.
    for (id, error) in [
        ("67e55044-10b1-426f-9247-bb680e5fe0c8", TIMESTAMP_FOR_ID),
        ("0176bd3a-f79b-7000-c000-000000000001", TIMESTAMP_FOR_ID),
        ("ffffffff-ffff-7000-8000-000000000001", OUT_OF_RANGE),
    ] {
        let answer = post(eye, JSON, event(&[("timestamp", ""), ("id", &format!("\"{id}\""))])).await;
        assert_eq!(answer.status, 400, "{id}: {}", answer.text);
        assert_eq!(answer.json::<Value>(), json!({"success": false, "errors": {"timestamp": [error]}}), "{id}");
    }
    assert_eq!(page(eye, &[]).await.count, 0, "a refused event is not stored");
}

async fn all_invalid_fields_are_named_at_once(eye: &Eye) {
    let answer = post(eye, JSON, "{}").await;
    let expected = r#"{"success":false,"errors":{"session_id":["This field is required."],"category":["This field is required."],"name":["This field is required."]}}"#;
    assert_eq!((answer.status, answer.text.as_str()), (400, expected));
    let wrong = event(&[("session_id", "null"), ("name", "\" \""), ("timestamp", "\"2021-02-30\""), ("id", "1")]);
    let expected = json!({"success": false, "errors": {
        "session_id": ["This field may not be null."],
        "name": ["This field may not be blank."],
        "timestamp": ["Datetime has a date that does not exist."],
        "id": ["Must be a valid UUID."],
    }});
    assert_eq!(post(eye, JSON, wrong).await.json::<Value>(), expected);
}
