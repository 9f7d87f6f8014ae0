#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, HashSet};
use std::env::VarError;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use serde::Deserialize;

use super::*;

#[derive(Deserialize, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Core,
    Jetstream,
}

#[derive(Deserialize, Debug, PartialEq)]
struct Tls {
    cert: String,
    verify: Option<bool>,
}

/// A field of every sort.
#[derive(Deserialize, Debug, PartialEq)]
struct Store {
    url: String,
    table: String,
    max_events: Option<NonZeroU32>,
    port: Option<u16>,
    total: Option<u64>,
    ratio: Option<f64>,
    fast: Option<bool>,
    mode: Option<Mode>,
    address: Option<SocketAddr>,
    subjects: Option<Vec<String>>,
    labels: Option<BTreeMap<String, u8>>,
    tls: Option<Tls>,
    #[serde(deserialize_with = "at_least_one", default = "one")]
    least: u64,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(default)]
struct Server {
    listen: SocketAddr,
}

impl Default for Server {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8000).into() }
    }
}

fn variable(name: &str) -> Result<String, VarError> {
    match name {
        "PASSWORD" => Ok("hush".to_owned()),
        _ => Err(VarError::NotPresent),
    }
}

/// Reads `[store]`, `[tls]` and `timeout_s`.
fn read(text: &str) -> Result<Option<Store>, ConfigErrors> {
    let mut document = Document::parse("eye.toml", text, variable)?;
    let store = document.section("store");
    document.section::<Option<Tls>>("tls");
    document.value("timeout_s", 10_u64);
    document.reject_unknown_keys(&["other"]);
    document.finish(Some(store))
}

/// The faults of the text, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let errors = read(text).expect_err("the configuration has faults").to_string();
    errors.lines().map(|line| line.strip_prefix("eye.toml:").unwrap().to_owned()).collect()
}

/// A store with its required keys on lines 2 and 3, and `keys` from line 4.
fn store(keys: &str) -> String {
    format!("[store]\nurl = \"u\"\ntable = \"t\"\n{keys}\n")
}

/// The faults of a section that is read as `T`.
fn section_faults<T: serde::de::DeserializeOwned + Default>(text: &str) -> String {
    let mut document = Document::parse("eye.toml", text, variable).unwrap();
    document.section::<T>("section");
    document.finish(Some(())).unwrap_err().to_string()
}

#[test]
fn sections_and_values_are_read_or_default() {
    let text = "shutdown_timeout_s = 3\n[server]\nlisten = \"[::1]:80\"\n";
    let mut document = Document::parse("eye.toml", text, variable).unwrap();
    assert_eq!(document.value("shutdown_timeout_s", 10_u64), 3);
    assert_eq!(document.value("other", 10_u64), 10);
    assert_eq!(document.section::<Server>("server").listen, "[::1]:80".parse().unwrap());
    assert_eq!(document.section::<Server>("none"), Server::default());
}

#[test]
fn field_names_need_no_value() {
    assert_eq!(field_names::<Tls>(), ["cert", "verify"]);
    assert_eq!(field_names::<Server>(), ["listen"]);
    assert!(field_names::<u8>().is_empty());
}

#[test]
fn variables_are_replaced_at_any_depth() {
    #[derive(Default, Deserialize)]
    struct Strings {
        list: Vec<String>,
        tls: Option<Tls>,
    }
    let text = "[strings]\nlist = [\"${PASSWORD}\", \"$${x}\"]\ntls = { cert = \"${NONE:-c}\" }\n";
    let mut document = Document::parse("eye.toml", text, variable).unwrap();
    let strings: Strings = document.section("strings");
    assert_eq!(strings.list, ["hush", "${x}"]);
    assert_eq!(strings.tls.unwrap().cert, "c");
}

#[test]
fn wrong_value_names_the_expected_one() {
    let cases = [
        ("total = \"5\"", "4:9: store.total: expected an integer, found a string"),
        ("total = -1", "4:9: store.total: expected an integer that is 0 or greater, found -1"),
        ("total = 1.5", "4:9: store.total: expected an integer, found a number with a fraction"),
        ("total = 99999999999999999999", "4:9: store.total: the number is out of range"),
        ("total = 1979-05-27", "4:9: store.total: expected an integer, found a date or time"),
        ("port = 65536", "4:8: store.port: expected an integer from 0 to 65535, found 65536"),
        ("max_events = 0", "4:14: store.max_events: expected an integer from 1 to 4294967295, found 0"),
        ("max_events = true", "4:14: store.max_events: expected an integer, found a boolean"),
        ("ratio = \"x\"", "4:9: store.ratio: expected a number, found a string"),
        ("ratio = 1e999", "4:9: store.ratio: the number is out of range"),
        ("ratio = nan", "4:9: store.ratio: the number is out of range"),
        ("fast = 1", "4:8: store.fast: expected a boolean, found an integer"),
        ("mode = \"cor\"", "4:8: store.mode: unknown value; did you mean `core`?"),
        ("mode = \"other\"", "4:8: store.mode: unknown value; known values: core, jetstream"),
        ("mode = 1", "4:8: store.mode: expected a string, found an integer"),
        ("address = \"8000\"", "4:11: store.address: invalid socket address syntax"),
        ("subjects = \"a\"", "4:12: store.subjects: expected an array, found a string"),
        ("subjects = [\"a\", 1]", "4:18: store.subjects[1]: expected a string, found an integer"),
        ("labels = { \"a b\" = 256 }", "4:20: store.labels.\"a b\": expected an integer from 0 to 255, found 256"),
        ("least = 0", "4:9: store.least: expected an integer that is 1 or greater, found 0"),
        ("least = -1", "4:9: store.least: expected an integer that is 0 or greater, found -1"),
        ("tls = []", "4:7: store.tls: expected a table, found an array"),
        ("tls = \"x\"", "4:7: store.tls: expected a table, found a string"),
        ("tls = {}", "4:7: store.tls.cert: this key is required"),
        ("tls = { cert = 1 }", "4:16: store.tls.cert: expected a string, found an integer"),
        ("[store.tls]\ncrt = \"x\"", "5:1: store.tls.crt: unknown key; did you mean `cert`?"),
        (
            "mode = \"${MODE}\"",
            "4:8: store.mode: the environment variable `MODE` is not set; set it, or write `${MODE:-default}`",
        ),
        // Columns count characters, not bytes.
        ("labels = { \"é\" = true }", "4:18: store.labels.\"é\": expected an integer, found a boolean"),
        ("maxevents = 1", "4:1: store.maxevents: unknown key; did you mean `max_events`?"),
    ];
    for (key, expected) in cases {
        assert_eq!(faults(&store(key)), [expected], "{key}");
    }
}

#[test]
fn each_top_level_fault_has_its_position() {
    let cases = [
        ("tls = 1", "1:7: tls: expected a table, found an integer"),
        ("[tsl]", "1:2: tsl: unknown key; did you mean `tls`?"),
        ("otter = 1", "1:1: otter: unknown key; did you mean `other`?"),
        ("timeout = 1", "1:1: timeout: unknown key; did you mean `timeout_s`?"),
        ("timeout_s = \"1\"", "1:13: timeout_s: expected an integer, found a string"),
        ("\"é\" = 1", "1:1: \"é\": unknown key; known keys: other, store, tls, timeout_s"),
    ];
    for (text, expected) in cases {
        assert_eq!(faults(text), [expected], "{text}");
    }
}

#[test]
fn every_fault_is_reported_once_and_in_order() {
    let text = "[tls]\n[store]\nport = \"x\"\nurl = 5\nbogus_key = 1\nsubjects = [1, \"a\", 2]\ntls = { verify = 1 }\n";
    let expected = [
        "1:1: tls.cert: this key is required",
        "2:1: store.table: this key is required",
        "3:8: store.port: expected an integer, found a string",
        "4:7: store.url: expected a string, found an integer",
        "5:1: store.bogus_key: unknown key; known keys: url, table, max_events, port, total, ratio, fast, mode, \
         address, subjects, labels, tls, least",
        "6:13: store.subjects[0]: expected a string, found an integer",
        "6:21: store.subjects[2]: expected a string, found an integer",
        "7:7: store.tls.cert: this key is required",
        "7:18: store.tls.verify: expected a boolean, found an integer",
    ];
    assert_eq!(faults(text), expected);
}

#[test]
fn misspelt_required_key_is_one_fault() {
    let text = "[store]\nulr = \"u\"\ntable = \"t\"\n";
    assert_eq!(faults(text), ["2:1: store.ulr: unknown key; did you mean `url`?"]);
}

/// There is no placeholder for an address. The keys after it are read all the same.
#[test]
fn value_without_placeholder_hides_no_later_fault() {
    #[derive(Deserialize)]
    struct Picky {
        #[serde(rename = "address")]
        _address: SocketAddr,
        #[serde(rename = "port")]
        _port: u16,
    }
    let expected = "eye.toml:2:11: section.address: expected socket address, found an integer\n\
                    eye.toml:3:8: section.port: expected an integer, found a string";
    assert_eq!(section_faults::<Option<Picky>>("[section]\naddress = 5\nport = \"x\"\n"), expected);
}

/// No placeholder leaves the deserializer.
#[test]
fn section_with_faults_is_its_default() {
    let sections = ["cert = \"${NONE}\"\nverify = true", "cert = 1\nverify = true", "cert = \"c\"\nunknown_key = 1"];
    for keys in sections {
        let text = format!("[tls]\n{keys}\n");
        let mut document = Document::parse("eye.toml", &text, variable).unwrap();
        assert_eq!(document.section::<Option<Tls>>("tls"), None, "{keys}");
    }
}

#[test]
fn text_that_is_not_toml_is_refused() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(faults(&deep)[0].starts_with("1:"));

    let cases: [(&str, &[&str]); 6] = [
        ("[store.a\ntype = \"null\"\n", &["1:9: "]),
        ("a = \nb = 1\nc = [1\n", &["1:5: ", "3:7: "]),
        ("a = 1\na = 2\n", &["2:1: duplicate key"]),
        ("a = \"hush\n", &["1:10: "]),
        ("a = postgres://ann:hush@db\n", &["1:5: "]),
        ("a = 1\nb = hush = hush\n", &["2:5: "]),
    ];
    for (text, expected) in cases {
        let found = faults(text);
        assert_eq!(found.len(), expected.len(), "{text}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected) && !found.contains("hush"), "{text}: {found}");
        }
    }
}

/// The types of the keys and the faults make no difference.
#[test]
fn strings_are_never_repeated() {
    let wrong = ["\"hush\"", "\"${PASSWORD}\"", "[\"hush\"]", "{ cert = [\"hush\"] }", "\"hush${\"", "\"hush${NONE}\""];
    for key in field_names::<Store>() {
        for value in wrong {
            let errors = read(&format!("[store]\n{key} = {value}\n")).unwrap_err().to_string();
            assert!(!errors.contains("hush"), "{errors}");
        }
    }
}

#[test]
fn message_of_a_type_is_shown_without_the_value() {
    #[derive(Default, Deserialize)]
    struct Keys {
        #[serde(rename = "url", deserialize_with = "refuse")]
        _url: String,
    }
    fn refuse<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        let url = String::deserialize(deserializer)?;
        Err(serde::de::Error::custom(format!("`{url}` is no URL")))
    }
    let errors = section_faults::<Keys>("[section]\nurl = \"postgres://ann:hush@db\"\n");
    assert_eq!(errors, "eye.toml:2:7: section.url: `…` is no URL");
}

/// The check runs only when its parts have no fault.
#[test]
fn check_of_a_struct_is_reported_at_its_table() {
    #[derive(Default, Deserialize)]
    struct Parts {
        low: u8,
        high: u8,
    }
    #[derive(Default, Deserialize)]
    #[serde(try_from = "Parts")]
    struct Checked;
    impl TryFrom<Parts> for Checked {
        type Error = &'static str;
        fn try_from(parts: Parts) -> Result<Self, &'static str> {
            if parts.low < parts.high { Ok(Self) } else { Err("`low` must be below `high`") }
        }
    }
    let cases = [
        ("low = 2\nhigh = 1", "1:1: section: `low` must be below `high`"),
        ("low = 2\nhigh = 300", "3:8: section.high: expected an integer from 0 to 255, found 300"),
    ];
    for (keys, expected) in cases {
        assert_eq!(section_faults::<Checked>(&format!("[section]\n{keys}\n")), format!("eye.toml:{expected}"));
    }
}

#[test]
fn key_faults_point_to_their_values() {
    let text = "[a]\nlist = [1, 2]\ntable.key = 3\n";
    let keys = ["", "list", "list[1]", "list[9]", "table.key", "table.none.x", "none", "none[0]"];
    let mut document = Document::parse("eye.toml", text, variable).unwrap();
    let check = |_: &BTreeMap<String, serde::de::IgnoredAny>| {
        keys.map(|key| KeyFault { key: key.to_owned(), message: format!("<{key}>") }).to_vec()
    };
    assert!(document.take("a").read_and_check(check).is_none());
    let expected = [
        "1:1: a: <>",
        "1:1: a.none: <none>",
        "1:1: a.none[0]: <none[0]>",
        "2:8: a.list: <list>",
        "2:8: a.list[9]: <list[9]>",
        "2:12: a.list[1]: <list[1]>",
        "3:1: a.table.none.x: <table.none.x>",
        "3:13: a.table.key: <table.key>",
    ];
    let expected = expected.map(|line| format!("eye.toml:{line}")).join("\n");
    assert_eq!(document.finish(Some(())).unwrap_err().to_string(), expected);
}

#[test]
fn taken_key_is_unknown_to_the_rest() {
    let text = "[sinks.a]\nurl = 1\nwriter = { cert = \"c\" }\n";
    let mut document = Document::parse("eye.toml", text, variable).unwrap();
    let mut sinks = document.take("sinks");
    let mut sink = sinks.take_first().unwrap();
    assert_eq!((sink.path(), sink.name()), ("sinks.a", "a"));
    let tls: Option<Tls> = sink.take("writer").unwrap().read();
    assert_eq!(tls.unwrap().cert, "c");
    assert_eq!(sink.read(), Some(BTreeMap::from([("url".to_owned(), 1)])));
    assert!(sinks.take_first().is_none());
    assert_eq!(document.finish(Some(())), Ok(()));
}

/// A placeholder is neither a missing key nor a second fault.
#[test]
fn section_with_a_reported_fault_has_no_further_ones() {
    let mut document = Document::parse("eye.toml", "a = 1\n", variable).unwrap();
    let mut section = document.take("a");
    section.expect_table("; write [a]");
    section.expect_table("");
    assert_eq!(section.take_or_misspelt("type").unwrap().read::<String>(), None);
    let errors = document.finish(Some(())).unwrap_err().to_string();
    assert_eq!(errors, "eye.toml:1:5: a: expected a table, found an integer; write [a]");
}

/// Lines that resemble TOML, wrong in many ways.
fn hostile_text() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let key = prop_oneof![proptest::sample::select(field_names::<Store>()), "[a-zé]{0,3}"];
    let value = proptest::sample::select(vec![
        "1",
        "-1",
        "0",
        "70000",
        "1e400",
        "nan",
        "true",
        "\"\"",
        "\"core\"",
        "\"${PASSWORD}\"",
        "\"${NONE}\"",
        "\"é${\"",
        "[]",
        "[1, \"a\", [true]]",
        "{}",
        "{ cert = 1 }",
        "{ cert = \"é\", x = 1 }",
        "1979-05-27",
        "",
        "[",
        "'",
    ]);
    let line = prop_oneof![
        6 => (key, value).prop_map(|(key, value)| format!("{key} = {value}\n")),
        1 => proptest::sample::select(vec![
            "[store.tls]\n", "[store.labels]\n", "[tls]\n", "[tsl]\n", "[[store]]\n", "timeout_s = \"\"\n", "\u{feff}",
            "\r\n", "\0", "é",
        ]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| format!("[store]\n{}", lines.concat()))
}

proptest::proptest! {
    /// Faults are in the order of the file, and each is reported once.
    #[test]
    fn no_text_panics(text in hostile_text()) {
        if let Err(errors) = read(&text) {
            let errors = errors.to_string();
            let position = |line: &str| {
                let mut parts = line.strip_prefix("eye.toml:").unwrap().splitn(3, ':');
                let mut number = || parts.next().unwrap().parse::<usize>().unwrap();
                (number(), number())
            };
            assert!(errors.lines().map(position).is_sorted(), "{errors}");
            assert_eq!(errors.lines().collect::<HashSet<_>>().len(), errors.lines().count(), "{errors}");
        }
    }
}
