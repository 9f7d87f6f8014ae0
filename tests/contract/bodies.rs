//! Request bodies: single events, several events, invalid JSON, content types and encodings.

use std::io::Write;

use eye_harness::Eye;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};

use crate::api::{Answer, JSON, NDJSON, event, named, page, post, send};

on_every_database! {
    every_body_form_is_answered
    content_types_are_accepted_or_answer_415
    content_encodings_are_decoded_or_refused
}

const TEXT: &str = "text/plain;charset=UTF-8";

async fn every_body_form_is_answered(eye: &Eye) {
    let [a, b, c] = ["a", "b", "c"].map(named);
    let bad = event(&[("timestamp", "\"nonsense\"")]);
    let missing = event(&[("name", "")]);
    let ok = |accepted: usize| format!(r#"{{"success": true, "accepted": {accepted}}}"#);
    let one = r#"{"success": true}"#.to_owned();
    let required = r#"{"name":["This field is required."]}"#;
    let partly = |accepted: usize, rejected: &str| {
        format!(r#"{{"success":false,"accepted":{accepted},"rejected":[{rejected}]}}"#)
    };
    let no_json = |at: &str| format!(r#"{{"success":false,"detail":"JSON parse error at {at}"}}"#);
    let missing_at = |index: usize| format!(r#"{{"index":{index},"errors":{required}}}"#);
    let line_error = |index: usize, at: &str| {
        format!(r#"{{"index":{index},"errors":{{"non_field_errors":["JSON parse error at {at}"]}}}}"#)
    };
    #[rustfmt::skip]
    let table: Vec<(&str, String, u16, String, &[&str])> = vec![
        // One object.
        (JSON, a.clone(), 201, one.clone(), &["a"]),
        (JSON, format!(" \r\n\t{a}\n"), 201, one.clone(), &["a"]),
        (JSON, format!("\u{feff}{a}"), 201, one.clone(), &["a"]),
        (JSON, missing.clone(), 400, format!(r#"{{"success":false,"errors":{required}}}"#), &[]),
        // An array.
        (JSON, "[]".into(), 201, ok(0), &[]),
        (JSON, format!("[{a}]"), 201, ok(1), &["a"]),
        (JSON, format!(" [ {a} , {b}\n,{c} ] "), 201, ok(3), &["a", "b", "c"]),
        (JSON, format!("[{a},{missing},{b},7]"), 200, partly(2, &format!(
            "{},{}", missing_at(1),
            r#"{"index":3,"errors":{"non_field_errors":["Invalid data. Expected an object, but got a number."]}}"#)), &["a", "b"]),
        (JSON, format!("[{missing}]"), 400, partly(0, &missing_at(0)), &[]),
        (JSON, format!("[{missing},{missing}]"), 400, partly(0, &format!("{},{}", missing_at(0), missing_at(1))), &[]),
        // Objects one after the other.
        (JSON, format!("{a}{b}{c}"), 201, ok(3), &["a", "b", "c"]),
        (JSON, format!("{a}\n{b} {c}"), 201, ok(3), &["a", "b", "c"]),
        (JSON, format!("{a}{missing}"), 200, partly(1, &missing_at(1)), &["a"]),
        (JSON, format!("[{a}][{b}]"), 201, ok(2), &["a", "b"]),
        // One object per line.
        (NDJSON, a.clone(), 201, ok(1), &["a"]),
        (NDJSON, format!("{a}\n{b}\r\n\n  \n{c}\n"), 201, ok(3), &["a", "b", "c"]),
        (NDJSON, String::new(), 201, ok(0), &[]),
        (NDJSON, format!("{a}\n{{\"name\": oops}}\n{b}"), 200,
            partly(2, &line_error(1, "line 2 column 10: expected a JSON value, but found `o`")), &["a", "b"]),
        (NDJSON, format!("{a}\n{missing}\n{b}"), 200, partly(2, &missing_at(1)), &["a", "b"]),
        (NDJSON, format!("{a}{b}\n{c}"), 200,
            partly(1, &line_error(0, &format!("line 1 column {}: expected the end of the line, but found `{{`", a.len() + 1))), &["c"]),
        // Text is read as JSON.
        (TEXT, a.clone(), 201, one.clone(), &["a"]),
        (TEXT, format!("[{a},{b}]"), 201, ok(2), &["a", "b"]),
        (TEXT, format!("{a}\n{b}"), 201, ok(2), &["a", "b"]),
        // Invalid JSON: no event is accepted.
        (JSON, String::new(), 400, no_json("line 1 column 1: expected an event, but the body is empty"), &[]),
        (JSON, " \n".into(), 400, no_json("line 1 column 1: expected an event, but the body is empty"), &[]),
        (JSON, "{\"a\": x}".into(), 400, no_json("line 1 column 7: expected a JSON value, but found `x`"), &[]),
        (JSON, format!("[{a},{b}"), 400,
            no_json(&format!("line 1 column {}: expected `,` or `]`, but the text ends here", a.len() + b.len() + 3)), &[]),
        (JSON, format!("{a},{b}"), 400, no_json(&format!("line 1 column {}: expected a JSON value, but found `,`", a.len() + 1)), &[]),
        (JSON, format!("{a}\n]"), 400, no_json("line 2 column 1: expected a JSON value, but found `]`"), &[]),
        (JSON, format!("[{a},]"), 400, no_json(&format!("line 1 column {}: expected a JSON value, but found `]`", a.len() + 3)), &[]),
        (JSON, "{'a': 1}".into(), 400, no_json("line 1 column 2: expected a key in double quotes, but found `'`"), &[]),
        (JSON, "session_id=1&name=2".into(), 400, no_json("line 1 column 1: expected a JSON value, but found `s`"), &[]),
        (JSON, "[".repeat(1_000_000), 400, String::new(), &[]),
        (TEXT, "hello".into(), 400, no_json("line 1 column 1: expected a JSON value, but found `h`"), &[]),
        // Invalid JSON within an event.
        (JSON, a.replace("{}", "NaN"), 400, String::new(), &[]),
        (JSON, a.replace("{}", "01"), 400, String::new(), &[]),
        (JSON, a.replace("{}", "+1"), 400, String::new(), &[]),
        (JSON, a.replace("{}", ".5"), 400, String::new(), &[]),
        (JSON, a.replace("{}", "\"\t\""), 400, String::new(), &[]),
        (JSON, a.replace("{}", r#""\x""#), 400, String::new(), &[]),
        (JSON, a.replace("{}", "{} // why"), 400, String::new(), &[]),
        // An invalid event before a valid one.
        (JSON, format!("[{bad}, {a}]"), 200, String::new(), &["a"]),
    ];
    let mut stored: Vec<&str> = Vec::new();
    for (content_type, body, status, text, taken) in table {
        let start = body.chars().take(400).collect::<String>();
        let answer = post(eye, content_type, body).await;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.status, status, "{content_type}: {start}: {}", answer.text);
        if !text.is_empty() {
            assert_eq!(answer.text, text, "{content_type}: {start}");
        }
        stored.extend(taken);
        for name in ["a", "b", "c"] {
            let times = stored.iter().filter(|stored| **stored == name).count();
            assert_eq!(
                page(eye, &[("name", name), ("limit", "1")]).await.count as usize,
                times,
                "{name} after {start}"
            );
        }
    }
}

async fn content_types_are_accepted_or_answer_415(eye: &Eye) {
    let accepted = [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;charset=latin1",
        "text/plain",
        "text/plain; charset=UTF-8",
        "application/x-ndjson; charset=utf-8",
    ];
    for content_type in accepted {
        assert_eq!(post(eye, content_type, named("a")).await.status, 201, "{content_type}");
    }
    let refused = [
        "",
        "json",
        "text/html",
        "application/xml",
        "application/jsonp",
        "application/vnd.api+json",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
    ];
    let detail =
        "Send events with Content-Type `application/json`, `application/x-ndjson`, or `text/plain` with JSON in it.";
    let expected = format!(r#"{{"success":false,"detail":"{detail}"}}"#);
    for content_type in refused {
        let answer = post(eye, content_type, named("a")).await;
        assert_eq!((answer.status, answer.text.as_str()), (415, expected.as_str()), "{content_type}");
    }
    let none = send(eye.client().post(eye.url("/api/event/")).body(named("a"))).await;
    assert_eq!((none.status, none.text), (415, expected));
    assert_eq!(page(eye, &[]).await.count as usize, accepted.len());
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 1).unwrap()
}

async fn post_encoded(eye: &Eye, encoding: &str, body: Vec<u8>) -> Answer {
    let request = eye.client().post(eye.url("/api/event/")).header(CONTENT_TYPE, JSON);
    send(request.header(CONTENT_ENCODING, encoding).body(body)).await
}

async fn content_encodings_are_decoded_or_refused(eye: &Eye) {
    type Encode = fn(&[u8]) -> Vec<u8>;
    let encodings: [(&str, Encode); 4] = [("gzip", gzip), ("deflate", zlib), ("deflate", raw_deflate), ("zstd", zstd)];
    for (encoding, encode) in encodings {
        let answer = post_encoded(eye, encoding, encode(named(encoding).as_bytes())).await;
        assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#), "{encoding}");

        // The limit of 5 MiB counts the decoded bytes.
        for (length, status) in [(5 << 20, 400), ((5 << 20) + 1, 413), (16 << 20, 413)] {
            let body = encode(&vec![b' '; length]);
            assert!(body.len() < 1 << 20, "the encoded body is small");
            let answer = post_encoded(eye, encoding, body).await;
            assert_eq!(answer.status, status, "{encoding}: {length}: {}", answer.text);
        }
        let mut cut = encode(named("cut").as_bytes());
        cut.truncate(cut.len() - 1);
        for body in [cut, named("plain").into_bytes(), Vec::new()] {
            let answer = post_encoded(eye, encoding, body).await;
            assert_eq!(answer.status, 400, "{encoding}: {}", answer.text);
            assert!(answer.text.contains("The body is not what its Content-Encoding says"), "{}", answer.text);
        }
    }
    let answer = post_encoded(eye, "br", named("br").into_bytes()).await;
    assert_eq!((answer.status, answer.header("accept-encoding")), (415, "gzip, deflate, zstd"));
    assert_eq!(
        answer.text,
        r#"{"success":false,"detail":"Content-Encoding `br` is not supported. Use one of gzip, deflate, zstd, or none."}"#
    );
    assert_eq!(page(eye, &[]).await.count as usize, encodings.len());
}
