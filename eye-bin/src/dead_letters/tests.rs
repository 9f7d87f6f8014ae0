use super::*;

#[test]
fn json_is_shown_unchanged_in_one_line() {
    for (payload, shown) in [
        (r#"{"b":1.10,"a":12345678901234567890,"a":"é é"}"#, r#"{"b":1.10,"a":12345678901234567890,"a":"é é"}"#),
        ("\u{feff} [1,\r\n\t\" \\n \\ud800\"] ", "[1,\" \\n \\ud800\"]"),
        ("\"x\"", "\"x\""),
    ] {
        assert_eq!(json(payload.as_bytes()).map(|json| json.get().to_owned()).as_deref(), Some(shown), "{payload}");
    }
    for text in [&b""[..], b" ", b"{\"a\":", b"{} {}", b"hello", b"\"\xff\"", b"00c0ffee {}"] {
        assert!(json(text).is_none(), "{text:?}");
    }
}

#[test]
fn summary_has_the_fields_of_one_event() {
    let summary = |payload: &str| serde_json::to_string(&EventSummary::of(payload.as_bytes())).ok();
    for (payload, expected) in [
        (
            r#"{"id":1,"session_id":17,"category":"c","name":"n","data":{"name":"x"},"timestamp":"2021-01-01"}"#,
            r#"{"session_id":17,"category":"c","name":"n","timestamp":"2021-01-01"}"#,
        ),
        ("{\"session_id\":null,\"category\":{\n},\"name\":[\n],\"timestamp\":true}", "{}"),
        ("[{\"name\":\"n\"}]", "{}"),
        ("{\"name\":", "{}"),
        ("", "{}"),
    ] {
        assert_eq!(summary(payload).as_deref(), Some(expected), "{payload}");
    }
}
