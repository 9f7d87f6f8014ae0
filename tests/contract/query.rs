//! Query parameters: filters, bounds, paging, links, more keys, and errors.

use eye_harness::Eye;
use reqwest::header::HOST;
use serde_json::{Value, json};

use crate::api::{Page, event, get, named, page, page_at, post, send, store};
use crate::support::program;

on_every_database! {
    filters_are_exact
    filters_combine
    bounds_are_inclusive_by_both_names
    limit_and_offset_select_the_page
    results_have_five_keys_and_included_ones
    wrong_parameters_are_named
    parameters_of_old_clients_are_accepted
    links_are_absolute_and_keep_the_parameters
    large_pages_are_complete
}

/// Texts that a collation or a pattern could confuse.
const LOOKALIKES: [&str; 18] = [
    "abc",
    "ABC",
    "abc ",
    " abc",
    "àbc",
    "a\u{300}bc",
    "a%c",
    "a_c",
    "abc\t",
    "abc\u{a0}",
    "abc\u{1}",
    "ab",
    "ß",
    "ss",
    "1",
    "1.0",
    "👁",
    "'abc'",
];

async fn filters_are_exact(eye: &Eye) {
    for field in ["session_id", "category", "name"] {
        let events =
            LOOKALIKES.map(|text| event(&[(field, &json!(text).to_string()), ("data", &json!(field).to_string())]));
        store(eye, &events).await;
    }
    for field in ["session_id", "category", "name"] {
        for text in LOOKALIKES {
            let found = page(eye, &[(field, text)]).await;
            assert_eq!((found.count, found.results.len()), (1, 1), "{field}={text:?}: {found:?}");
            let event = &found.results[0];
            let value = [("session_id", &event.session_id), ("category", &event.category), ("name", &event.name)];
            assert!(value.contains(&(field, &text.to_owned())), "{field}={text:?}: {found:?}");
            assert_eq!(event.data.get(), json!(field).to_string(), "{field}={text:?}");
        }
        for text in ["Abc", "abc  ", "a*c", "0", "' OR '1'='1", "\\", "%", "_", "👀", "\u{ffff}"] {
            assert_eq!(page(eye, &[(field, text)]).await.count, 0, "{field}={text:?}");
        }
    }
}

async fn filters_combine(eye: &Eye) {
    let mut events = Vec::new();
    for number in 0..60 {
        let [session, category, name] = [number % 2, number % 3, number % 5].map(|rest| format!("\"{rest}\""));
        let timestamp = format!("\"2021-01-01T00:{number:02}:00Z\"");
        let fields = [("session_id", &*session), ("category", &category), ("name", &name), ("timestamp", &timestamp)];
        events.push(event(&fields));
    }
    store(eye, &events).await;
    let table: [(&[(&str, &str)], u64); 9] = [
        (&[], 60),
        (&[("session_id", "1")], 30),
        (&[("session_id", "1"), ("category", "2")], 10),
        (&[("session_id", "1"), ("name", "4")], 6),
        (&[("category", "2"), ("name", "4")], 4),
        (&[("session_id", "1"), ("category", "2"), ("name", "4")], 2),
        (&[("session_id", "1"), ("category", "2"), ("name", "4"), ("timestamp_after", "2021-01-01T00:30")], 1),
        (&[("session_id", "1"), ("timestamp_after", "2021-01-01T00:15"), ("timestamp_before", "2021-01-01T00:17")], 2),
        (&[("session_id", "2"), ("category", "2"), ("name", "4")], 0),
    ];
    for (filters, count) in table {
        let found = page(eye, filters).await;
        assert_eq!((found.count, found.results.len() as u64), (count, count), "{filters:?}");
        let minutes: Vec<&str> = found.results.iter().map(|event| &event.timestamp[14..16]).collect();
        assert!(minutes.is_sorted_by(|newer, older| newer > older), "newest first: {minutes:?}");
        for event in &found.results {
            let fields = [("session_id", &event.session_id), ("category", &event.category), ("name", &event.name)];
            let wrong = fields
                .iter()
                .find(|(name, value)| filters.iter().any(|(filter, wanted)| filter == name && wanted != value));
            assert_eq!(wrong, None, "{filters:?}");
        }
    }
}

async fn bounds_are_inclusive_by_both_names(eye: &Eye) {
    let instants = [
        "2021-01-01T00:00:00Z",
        "2021-01-01T23:59:59.999999Z",
        "2021-01-02T00:00:00Z",
        "2021-01-02T00:00:00.000001Z",
        "2021-01-02T09:15:27.243860Z",
    ];
    store(eye, &instants.map(|instant| event(&[("timestamp", &format!("\"{instant}\""))]))).await;
    let table = [
        ("", "", 0..5),
        ("2021-01-01", "2021-01-02", 0..3),
        ("2021-01-02", "2021-01-02", 2..3),
        ("2021-01-02", "", 2..5),
        ("", "2021-01-01", 0..1),
        ("2021-01-01T23:59:59.999999", "2021-01-01T23:59:59.999999", 1..2),
        ("2021-01-02T00:00:00.000001", "", 3..5),
        ("2021-01-02T00:00:00.000002", "", 4..5),
        ("2021-01-02 01:00:00+01:00", "2021-01-01T23:00:00-0100", 2..3),
        ("2021-1-2 9:15:27,24386", "9999-12-31T23:59:59.999999Z", 4..5),
        ("1970-01-01", "1970-01-01", 0..0),
        ("2021-01-03", "2021-01-01", 0..0),
    ];
    for (after, before, expected) in table {
        for names in [["timestamp_after", "timestamp_before"], ["timestamp_start", "timestamp_end"]] {
            let found = page(eye, &[(names[0], after), (names[1], before)]).await;
            let found: Vec<&str> = found.results.iter().rev().map(|event| event.timestamp.as_str()).collect();
            assert_eq!(found, instants[expected.clone()], "{names:?}: {after} to {before}");
        }
    }
    // Encoded as by curl and browsers, where `+` is a space.
    for query in ["timestamp_after=2021-01-02T01:00:00+01:00", "timestamp_after=2021-01-02%2000:00"] {
        assert_eq!(get(eye, query).await.json::<Page>().count, 3, "{query}");
    }
}

async fn limit_and_offset_select_the_page(eye: &Eye) {
    let names: Vec<String> = (0..1001).map(|number| format!("{number:04}")).collect();
    let events = names.iter().map(|name| {
        let timestamp = format!("\"2021-01-01T00:00:00.00{name}Z\"");
        event(&[("name", &format!("\"{name}\"")), ("timestamp", &timestamp)])
    });
    store(eye, &events.collect::<Vec<_>>()).await;
    let newest_first: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    // Parameters, the page, and the presence of `next` and `previous`.
    let table = [
        ("", 0..100, true, false),
        ("limit=1", 0..1, true, false),
        ("limit=999", 0..999, true, false),
        ("limit=1000", 0..1000, true, false),
        ("limit=1001", 0..1000, true, false),
        ("limit=99999999999999999999", 0..1000, true, false),
        ("limit=", 0..100, true, false),
        ("offset=0", 0..100, true, false),
        ("offset=1", 1..101, true, true),
        ("offset=900&limit=101", 900..1001, false, true),
        ("offset=900&limit=100", 900..1000, true, true),
        ("offset=1000", 1000..1001, false, true),
        ("offset=1001", 0..0, false, true),
        ("offset=9223372036854775807", 0..0, false, true),
    ];
    for (query, expected, has_next, has_previous) in table {
        let found: Page = get(eye, query).await.json();
        assert_eq!((found.count, found.names()), (1001, newest_first[expected].to_vec()), "{query}");
        assert_eq!((found.next.is_some(), found.previous.is_some()), (has_next, has_previous), "{query}");
    }
}

async fn results_have_five_keys_and_included_ones(eye: &Eye) {
    let empty = r#"{"count":0,"next":null,"previous":null,"results":[]}"#;
    assert_eq!(get(eye, "").await.text, empty);
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    store(eye, &[event(&[("id", &format!("\"{id}\""))])]).await;
    let five = r#""session_id":"s","timestamp":"2021-01-01T00:00:00Z","category":"c","name":"n","data":{}"#;
    let around = |keys: &str| format!(r#"{{"count":1,"next":null,"previous":null,"results":[{{{five}{keys}}}]}}"#);
    assert_eq!(get(eye, "").await.text, around(""));
    assert_eq!(get(eye, "include=id").await.text, around(&format!(r#","id":"{id}""#)));
    for query in ["include=id,received_at", "include=received_at,%20id"] {
        let found = get(eye, query).await;
        let received_at = found.json::<Page>().results[0].received_at.clone().unwrap();
        assert_eq!(found.text, around(&format!(r#","id":"{id}","received_at":"{received_at}""#)));
        let age = chrono::Utc::now() - received_at.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        assert!((0..60).contains(&age.num_seconds()), "{received_at}");
    }
}

async fn wrong_parameters_are_named(eye: &Eye) {
    store(eye, &["a", "b"].map(named)).await;
    let next = page(eye, &[("limit", "1")]).await.next.unwrap();
    let cursor = next.split("cursor=").nth(1).unwrap().split('&').next().unwrap();
    let (integer, time) = ("A valid integer is required.", "Enter a valid date/time.");
    let bad_cursor = "Invalid cursor. Use one as given in `next` or `previous`.";
    let tampered = format!("cursor={}{}", if cursor.starts_with('A') { "B" } else { "A" }, &cursor[1..]);
    let (cut, longer) = (format!("cursor={}", &cursor[..cursor.len() - 1]), format!("cursor={cursor}A"));
    let both = format!("cursor={cursor}&offset=1");
    let table = [
        ("limit=abc", json!({"limit": [integer]})),
        ("limit=1.5", json!({"limit": [integer]})),
        ("limit=0x10", json!({"limit": [integer]})),
        ("limit=%2010", json!({"limit": [integer]})),
        ("limit=0", json!({"limit": ["Ensure this value is greater than or equal to 1."]})),
        ("limit=-1", json!({"limit": ["Ensure this value is greater than or equal to 1."]})),
        ("offset=x", json!({"offset": [integer]})),
        ("offset=-1", json!({"offset": ["Ensure this value is greater than or equal to 0."]})),
        (
            "offset=9223372036854775808",
            json!({"offset": ["Ensure this value is less than or equal to 9223372036854775807."]}),
        ),
        ("timestamp_after=nonsense", json!({"timestamp_after": [time]})),
        ("timestamp_start=1609492527", json!({"timestamp_start": [time]})),
        ("timestamp_before=2021-02-29", json!({"timestamp_before": [time]})),
        ("timestamp_end=2021-01-01T24:00:00", json!({"timestamp_end": [time]})),
        ("timestamp_end=1969-12-31", json!({"timestamp_end": [time]})),
        ("cursor=nonsense", json!({"cursor": [bad_cursor]})),
        (&tampered, json!({"cursor": [bad_cursor]})),
        (&cut, json!({"cursor": [bad_cursor]})),
        (&longer, json!({"cursor": [bad_cursor]})),
        (&both, json!({"offset": ["Give either `offset` or `cursor`, not both."]})),
        ("include=data", json!({"include": ["Unknown key `data`. Known keys: id, received_at."]})),
        ("include=id,", json!({"include": ["Unknown key ``. Known keys: id, received_at."]})),
        ("format=xml", json!({"format": ["Only `json` is served."]})),
        ("sesion_id=x", json!({"sesion_id": ["Unknown parameter. Did you mean `session_id`?"]})),
        ("Session_ID=x", json!({"Session_ID": ["Unknown parameter. Did you mean `session_id`?"]})),
        ("timestamp_form=x", json!({"timestamp_form": ["Unknown parameter. Did you mean `timestamp_before`?"]})),
        ("foo=bar", json!({"foo": ["Unknown parameter."]})),
        ("session_id=%00", json!({"session_id": ["Null characters are not allowed."]})),
        ("name=%ff", json!({"name": ["Not valid percent-encoded UTF-8."]})),
        ("name=%zz", json!({"name": ["Not valid percent-encoded UTF-8."]})),
        (
            "limit=abc&timestamp_after=nonsense&foo=1",
            json!({"foo": ["Unknown parameter."], "limit": [integer], "timestamp_after": [time]}),
        ),
    ];
    for (query, expected) in table {
        let answer = get(eye, query).await;
        assert_eq!((answer.status, answer.json::<Value>()), (400, expected), "{query}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("allow"), "GET, POST, HEAD, OPTIONS");
    }
    let too_long = get(eye, &format!("name={}", "x".repeat(40_000))).await;
    assert!([414, 431].contains(&too_long.status), "{too_long:?}");
}

async fn parameters_of_old_clients_are_accepted(eye: &Eye) {
    store(eye, &[named("a")]).await;
    for query in ["format=json", "format=json&name=a", "name=b&name=a", "name=&session_id", "&&"] {
        let answer = get(eye, query).await;
        assert_eq!((answer.status, answer.json::<Page>().count), (200, 1), "{query}");
    }
}

async fn links_are_absolute_and_keep_the_parameters(eye: &Eye) {
    let awkward = r#"a b+c&d=e/é👁"#;
    let encoded = "a+b%2Bc%26d%3De%2F%C3%A9%F0%9F%91%81";
    store(eye, &vec![event(&[("name", &json!(awkward).to_string())]); 3]).await;

    // Links have the sent parameters, sorted and encoded.
    let base = eye.url("/api/event/");
    let query = [("timestamp_before", "2021-01-02 00:00"), ("offset", "1"), ("name", awkward), ("limit", "1")];
    let found = page(eye, &query).await;
    let rest = "timestamp_before=2021-01-02+00%3A00";
    assert_eq!(found.next.unwrap(), format!("{base}?limit=1&name={encoded}&offset=2&{rest}"));
    assert_eq!(found.previous.unwrap(), format!("{base}?limit=1&name={encoded}&{rest}"));

    // A cursor takes its sorted position among them.
    let first = page(eye, &[("name", awkward), ("include", "id"), ("limit", "2"), ("category", "c")]).await;
    let next = first.next.unwrap();
    assert!(next.starts_with(&format!("{base}?category=c&cursor=")), "{next}");
    assert!(next.ends_with(&format!("&include=id&limit=2&name={encoded}")), "{next}");
    let second = page_at(eye.client(), &next).await;
    assert_eq!((second.count, second.results.len(), second.next), (3, 1, None));
    assert!(second.results[0].id.is_some());
    let back = page_at(eye.client(), &second.previous.unwrap()).await;
    let ids = |page: Vec<crate::api::PageEvent>| page.into_iter().map(|event| event.id).collect::<Vec<_>>();
    assert_eq!((ids(back.results), back.previous), (ids(first.results), None));

    // Links use host and path of the request, and no untrusted header.
    let request = eye.client().get(eye.url("/api/event?limit=1&offset=0")).header(HOST, "eye.example.com:8080");
    let request = request.header("x-forwarded-host", "evil.example").header("x-forwarded-proto", "https");
    let found: Page = send(request).await.json();
    assert_eq!(found.next.unwrap(), "http://eye.example.com:8080/api/event?limit=1&offset=1");
}

#[tokio::test]
async fn trusted_proxy_headers_determine_the_links() {
    let config = include_str!("../../config/sqlite.toml");
    let eye = Eye::start(program(), &format!("{config}\n[server]\nlisten = \"127.0.0.1:0\"\ntrust_proxy = true\n"));
    eye.wait_ready().await;
    store(&eye, &["a", "b"].map(named)).await;
    let request = eye.client().get(eye.url("/api/event/?limit=1&offset=0"));
    let request = request.header("x-forwarded-host", "eye.example.com").header("x-forwarded-proto", "https");
    assert_eq!(send(request).await.json::<Page>().next.unwrap(), "https://eye.example.com/api/event/?limit=1&offset=1");
}

async fn large_pages_are_complete(eye: &Eye) {
    // A page of 8 MB consists of many chunks.
    let data = |number: usize| format!("\"{number:04} {}\"", "é".repeat(4000));
    for start in (0..1000).step_by(250) {
        let events = (start..start + 250).map(|number| {
            let timestamp = format!("\"2021-01-01T00:00:00.00{number:04}Z\"");
            event(&[("timestamp", &timestamp), ("data", &data(number))])
        });
        store(eye, &events.collect::<Vec<_>>()).await;
    }
    let found = page(eye, &[("limit", "1000")]).await;
    assert_eq!((found.count, found.results.len()), (1000, 1000));
    for (event, number) in found.results.iter().zip((0..1000).rev()) {
        assert_eq!(event.data.get(), data(number));
    }
    // Pages around the end of the first chunk.
    for limit in 6..12 {
        let found = page(eye, &[("limit", &limit.to_string())]).await;
        assert_eq!(found.results.len(), limit);
    }
    assert_eq!(post(eye, crate::api::JSON, named("after")).await.status, 201);
}
