#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::testkit::strategy;

/// The value of a text that holds nothing else, and the copy of its tokens.
fn scan(json: &[u8]) -> Result<(ScannedValue, String), SyntaxError> {
    let text = JsonText::new(json);
    let mut scanner = Scanner::new(&text);
    scanner.skip_white_space();
    let value = scanner.value()?;
    scanner.skip_white_space();
    if scanner.peek().is_some() {
        return Err(scanner.unexpected("the end"));
    }
    let copy = scanner.copied()[value.tokens.clone()].to_owned();
    Ok((value, copy))
}

#[test]
fn json_is_accepted() {
    let table = [
        "0",
        "-0",
        "0.0",
        "-1.5e+10",
        "1E5",
        "1e-5",
        "10",
        "true",
        "false",
        "null",
        "\"\"",
        "[]",
        "{}",
        "[0]",
        "{\"\":0}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0aF9\"",
        "\"\u{7f}\u{80}\"",
        "[[],{}]",
    ];
    for json in table {
        assert_eq!(scan(json.as_bytes()).map(|(_, copy)| copy), Ok(json.to_owned()));
    }
}

#[test]
fn what_is_not_json_is_refused() {
    let table: &[&[u8]] = &[
        b"",
        b"-",
        b"+1",
        b"01",
        b"-01",
        b"1.",
        b".5",
        b"1.e5",
        b"1e",
        b"1e+",
        b"0x10",
        b"1_000",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"True",
        b"tru",
        b"truefalse",
        b"nul",
        b"undefined",
        b"'a'",
        b"\"",
        b"\"a",
        b"\"\\",
        b"\"\\\"",
        b"\"\\x41\"",
        b"\"\\u\"",
        b"\"\\u12\"",
        b"\"\\u12g4\"",
        b"\"\\u+123\"",
        b"\"\n\"",
        b"\"\t\"",
        b"\"\0\"",
        b"\"12345678\x1f\"",
        b"[",
        b"[1",
        b"[1,",
        b"[1,]",
        b"[,1]",
        b"[,]",
        b"[1 1]",
        b"[1}",
        b"]",
        b"{",
        b"{\"a\"",
        b"{\"a\":",
        b"{\"a\":1",
        b"{\"a\":1,",
        b"{\"a\":1,}",
        b"{,}",
        b"{a:1}",
        b"{1:1}",
        b"{\"a\" 1}",
        b"{\"a\"::1}",
        b"{\"a\":1]",
        b"{\"a\",1}",
        b"}",
        b"[] []",
        b"// c\n1",
        b"/* c */ 1",
        b"\x0b1",
        b"\xc2\xa01",
        b"\xff",
        b"[\xff]",
        b"1\xff",
        b"\0",
        b"1\0",
    ];
    for json in table {
        assert!(scan(json).is_err(), "{}", String::from_utf8_lossy(json));
    }
}

#[test]
fn levels_count_containers() {
    for (json, levels) in [("1", 0), ("\"[[\"", 0), ("[]", 1), ("{}", 1), ("[[],[]]", 2), ("{\"a\":[{}],\"b\":{}}", 3)]
    {
        assert_eq!(scan(json.as_bytes()).unwrap().0.levels, levels, "{json}");
    }
}

#[test]
fn strings_end_where_they_end_whatever_their_length() {
    for length in 0..40 {
        for (end, expected) in [("\"", None), ("\\n\"", None), ("\u{1f}\"", Some("a control character"))] {
            let json = format!("\"{}{end}", "é ~!]#[".repeat(7).chars().take(length).collect::<String>());
            let error = scan(json.as_bytes()).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{json:?}");
            assert!(error.is_none_or(|error| error.contains(&format!("column {}:", length + 2))), "{json:?}");
        }
    }
}

#[test]
fn the_range_of_numbers_is_that_of_a_double() {
    let digits = |count| "9".repeat(count);
    for json in [digits(308), format!("-{}", digits(308)), "1.7976931348623157e308".to_owned(), "0e999".to_owned()] {
        assert_eq!(scan(json.as_bytes()).unwrap().0.problem, None, "{json}");
    }
    let many_decimals = format!("0.{}", digits(5000));
    assert_eq!(scan(many_decimals.as_bytes()).unwrap().0.problem, None);
    for json in [digits(309), format!("-{}", digits(309)), "1.7976931348623159e308".to_owned(), "1E309".to_owned()] {
        assert_eq!(scan(json.as_bytes()).unwrap().0.problem, Some(ValueProblem::NumberTooLarge), "{json}");
    }
}

/// Without white space between tokens, the slow and obvious way.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&character| {
            if in_string {
                in_string = escaped || character != '"';
                escaped = !escaped && character == '\\';
                return true;
            }
            in_string = character == '"';
            !" \t\r\n".contains(character)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn accepts_what_serde_json_accepts(
        text in any::<String>(),
        near in "([\\[\\]{},:\" ]|\\\\[\"\\\\nu]|[a-d0-9.eE+-]{1,4}|\"[a\\\\\"u09dD]{0,6}\"|\"a\":|1,|true|null| \n){0,12}",
    ) {
        for json in [text, near] {
            let scanned = scan(json.as_bytes());
            let oracle = serde_json::from_str::<&RawValue>(&json);
            prop_assert_eq!(scanned.is_ok(), oracle.is_ok(), "{:?}: {:?} {:?}", json, scanned, oracle);
            if let Ok((_, copy)) = scanned {
                prop_assert_eq!(copy, compact(&json));
            }
        }
    }

    #[test]
    fn any_json_survives_as_its_tokens(
        tokens in strategy::data(),
        spaces in any::<[u8; 8]>(),
    ) {
        let json = strategy::spaced(&tokens, &spaces);
        let (value, copy) = scan(json.as_bytes()).unwrap();
        prop_assert_eq!(value.problem, None);
        prop_assert_eq!(&copy, &tokens.concat());
        prop_assert_eq!(&copy, &compact(&json));
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        prop_assert_eq!(read(&copy), read(&json));
    }

    #[test]
    fn strings_are_unescaped_as_serde_json_does(
        content in "([a-z é😀]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][1-9a-f]|\\\\u[0-9a-cA-C][0-9a-f]{2}1|\\\\ud[89abAB][0-9a-f]{2}\\\\uD[c-fC-F][0-9A-F]{2}){0,12}",
    ) {
        let json = format!("\"{content}\"");
        let text = JsonText::new(json.as_bytes());
        let mut scanner = Scanner::new(&text);
        let value = scanner.value().unwrap();
        let read = scanner.content(&value);
        prop_assert_eq!(value.problem, None);
        prop_assert_eq!(&scanner.copied()[read], &serde_json::from_str::<String>(&json).unwrap());
    }

    #[test]
    fn any_bytes_are_scanned_or_refused(bytes in any::<Vec<u8>>()) {
        let quoted = [b"\"", &bytes[..], b"\""].concat();
        for json in [&bytes[..], &quoted] {
            if let Ok((value, copy)) = scan(json) {
                prop_assert!(serde_json::from_str::<&RawValue>(&copy).is_ok());
                prop_assert_eq!(value.problem == Some(ValueProblem::InvalidUtf8), std::str::from_utf8(json).is_err());
            }
        }
    }
}
