#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::env::VarError;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use serde::Deserialize;

use super::*;
use crate::registry::BuildError;
use crate::sink::SinkConfig;
use crate::source::SourceConfig;
use crate::transport::TransportConfig;

#[derive(Deserialize)]
struct WebConfig {}

impl SourceConfig for WebConfig {
    const TYPE: &'static str = "web";
    async fn build(self) -> Result<Box<dyn Source>, BuildError> {
        Err(BuildError("the port is taken".into()))
    }
}

#[derive(Deserialize)]
struct MemoryConfig {
    #[serde(rename = "max_events")]
    _max_events: Option<u64>,
}

impl TransportConfig for MemoryConfig {
    const TYPE: &'static str = "memory";
    async fn build(self) -> Result<Box<dyn Transport>, BuildError> {
        Err(BuildError("no memory".into()))
    }
}

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
struct StoreConfig {
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

impl SinkConfig for StoreConfig {
    const TYPE: &'static str = "store";
    const ANSWERS_QUERIES: bool = true;
    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        Err(BuildError(format!("no table {}", self.table)))
    }
}

#[derive(Deserialize)]
struct NullConfig {}

impl SinkConfig for NullConfig {
    const TYPE: &'static str = "null";
    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        Err(BuildError("nothing".into()))
    }
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

#[derive(Deserialize, Default)]
struct Query {
    #[serde(rename = "sink")]
    _sink: Option<String>,
}

fn registry() -> Registry {
    Registry::new().source::<WebConfig>().transport::<MemoryConfig>().sink::<StoreConfig>().sink::<NullConfig>()
}

fn variable(name: &str) -> Result<String, VarError> {
    match name {
        "PASSWORD" => Ok("hush".to_owned()),
        _ => Err(VarError::NotPresent),
    }
}

fn pipeline(text: &str) -> Result<PipelineConfig, ConfigErrors> {
    let mut document = Document::parse("eye.toml", text, variable)?;
    document.section::<Server>("server");
    document.section::<Query>("query");
    document.value("shutdown_timeout_s", 10_u64);
    document.into_pipeline(&registry())
}

/// What is wrong with the text, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let errors = pipeline(text).expect_err("the configuration has faults").to_string();
    errors.lines().map(|line| line.strip_prefix("eye.toml:").unwrap().to_owned()).collect()
}

/// What is wrong with the keys of a sink of every sort of key, whose `url` and `table` are on lines 3 and 4.
fn store_faults(keys: &str) -> Vec<String> {
    faults(&format!("[sinks.a]\ntype = \"store\"\nurl = \"u\"\ntable = \"t\"\n{keys}\n[sources.web]\ntype = \"web\"\n"))
}

const SOUND: &str = "[sources.web]\ntype = \"web\"\n[sinks.a]\ntype = \"store\"\nurl = \"u\"\ntable = \"t\"\n";

#[test]
fn components_keep_the_order_of_the_file() {
    let text = "[sinks.z]\ntype = \"null\"\n[sources.web]\ntype = \"web\"\n[sinks.a]\ntype = \"null\"\n\
                [sources.again]\ntype = \"web\"\n";
    let pipeline = pipeline(text).unwrap();
    let sources: Vec<_> = pipeline.sources.iter().map(Configured::name).collect();
    let sinks: Vec<_> = pipeline.sinks.iter().map(Configured::key).collect();
    assert_eq!((sources, sinks), (vec!["web", "again"], vec!["sinks.z", "sinks.a"]));
    assert_eq!(pipeline.transport.type_name(), "memory");
    assert_eq!(pipeline.query_sink, None);
}

#[tokio::test]
async fn an_error_of_build_names_its_component() {
    let mut pipeline = pipeline(SOUND).unwrap();
    let sink = pipeline.sinks.pop().unwrap().build().await.err().unwrap();
    assert_eq!(sink.to_string(), "sinks.a: no table t");
    assert_eq!(pipeline.transport.build().await.err().unwrap().to_string(), "transport: no memory");
}

#[test]
#[should_panic(expected = "`null` is registered twice")]
fn a_type_name_cannot_be_registered_twice() {
    let _ = Registry::new().sink::<NullConfig>().sink::<NullConfig>();
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
fn the_keys_of_a_struct_are_known_without_a_value() {
    assert_eq!(field_names::<Tls>(), ["cert", "verify"]);
    assert_eq!(field_names::<Server>(), ["listen"]);
    assert!(field_names::<NullConfig>().is_empty());
}

#[test]
fn variables_reach_strings_wherever_they_are() {
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
fn wrong_values_say_what_is_expected() {
    let cases = [
        ("total = \"5\"", "5:9: sinks.a.total: expected an integer, found a string"),
        ("total = -1", "5:9: sinks.a.total: expected an integer that is 0 or greater, found -1"),
        ("total = 1.5", "5:9: sinks.a.total: expected an integer, found a number with a fraction"),
        ("total = 99999999999999999999", "5:9: sinks.a.total: the number is out of range"),
        ("total = 1979-05-27", "5:9: sinks.a.total: expected an integer, found a date or time"),
        ("port = 65536", "5:8: sinks.a.port: expected an integer from 0 to 65535, found 65536"),
        ("max_events = 0", "5:14: sinks.a.max_events: expected an integer from 1 to 4294967295, found 0"),
        ("max_events = true", "5:14: sinks.a.max_events: expected an integer, found a boolean"),
        ("ratio = \"x\"", "5:9: sinks.a.ratio: expected a number, found a string"),
        ("ratio = 1e999", "5:9: sinks.a.ratio: the number is out of range"),
        ("ratio = nan", "5:9: sinks.a.ratio: the number is out of range"),
        ("fast = 1", "5:8: sinks.a.fast: expected a boolean, found an integer"),
        ("mode = \"cor\"", "5:8: sinks.a.mode: unknown value; did you mean `core`?"),
        ("mode = \"other\"", "5:8: sinks.a.mode: unknown value; known values: core, jetstream"),
        ("mode = 1", "5:8: sinks.a.mode: expected a string, found an integer"),
        ("address = \"8000\"", "5:11: sinks.a.address: invalid socket address syntax"),
        ("subjects = \"a\"", "5:12: sinks.a.subjects: expected an array, found a string"),
        ("subjects = [\"a\", 1]", "5:18: sinks.a.subjects[1]: expected a string, found an integer"),
        ("labels = { \"a b\" = 256 }", "5:20: sinks.a.labels.\"a b\": expected an integer from 0 to 255, found 256"),
        ("least = 0", "5:9: sinks.a.least: expected an integer that is 1 or greater, found 0"),
        ("least = -1", "5:9: sinks.a.least: expected an integer that is 0 or greater, found -1"),
        ("tls = []", "5:7: sinks.a.tls: expected a table, found an array"),
        ("tls = \"x\"", "5:7: sinks.a.tls: expected a table, found a string"),
        ("tls = {}", "5:7: sinks.a.tls.cert: this key is required"),
        ("tls = { cert = 1 }", "5:16: sinks.a.tls.cert: expected a string, found an integer"),
        ("[sinks.a.tls]\ncrt = \"x\"", "6:1: sinks.a.tls.crt: unknown key; did you mean `cert`?"),
        ("maxevents = 1", "5:1: sinks.a.maxevents: unknown key; did you mean `max_events`?"),
    ];
    for (key, expected) in cases {
        assert_eq!(store_faults(key), [expected], "{key}");
    }
}

#[test]
fn every_fault_of_a_component_is_reported_once_and_in_order() {
    let text = "[sources.web]\ntype = \"web\"\nlisten = 1\n[sinks.a]\ntype = \"store\"\nport = \"x\"\nurl = 5\n\
                bogus_key = 1\nsubjects = [1, \"a\", 2]\ntls = { verify = 1 }\n";
    let expected = [
        "3:1: sources.web.listen: unknown key; there are no known keys",
        "4:1: sinks.a.table: this key is required",
        "6:8: sinks.a.port: expected an integer, found a string",
        "7:7: sinks.a.url: expected a string, found an integer",
        "8:1: sinks.a.bogus_key: unknown key; known keys: url, table, max_events, port, total, ratio, fast, mode, \
         address, subjects, labels, tls, least",
        "9:13: sinks.a.subjects[0]: expected a string, found an integer",
        "9:21: sinks.a.subjects[2]: expected a string, found an integer",
        "10:7: sinks.a.tls.cert: this key is required",
        "10:18: sinks.a.tls.verify: expected a boolean, found an integer",
    ];
    assert_eq!(faults(text), expected);
}

/// An address cannot be made up; what stands after it is read all the same.
#[test]
fn a_fault_in_a_picky_type_hides_none_after_it() {
    #[derive(Deserialize)]
    struct Picky {
        #[serde(rename = "address")]
        _address: SocketAddr,
        #[serde(rename = "port")]
        _port: u16,
    }
    let text = format!("{SOUND}[picky]\naddress = 5\nport = \"x\"\n");
    let mut document = Document::parse("eye.toml", &text, variable).unwrap();
    document.section::<Option<Picky>>("picky");
    let errors = document.into_pipeline(&registry()).unwrap_err().to_string();
    let expected = "eye.toml:8:11: picky.address: expected socket address, found an integer\n\
                    eye.toml:9:8: picky.port: expected an integer, found a string";
    assert_eq!(errors, expected);
}

/// Nothing made up gets out.
#[test]
fn a_section_with_faults_is_its_default() {
    let sections = ["cert = \"${NONE}\"\nverify = true", "cert = 1\nverify = true", "cert = \"c\"\nunknown_key = 1"];
    for keys in sections {
        let text = format!("[tls]\n{keys}\n");
        let mut document = Document::parse("eye.toml", &text, variable).unwrap();
        assert_eq!(document.section::<Option<Tls>>("tls"), None, "{keys}");
    }
}

#[test]
fn a_name_has_64_letters_at_most() {
    let named = |length: usize| SOUND.replace("sources.web", &format!("sources.{}", "a".repeat(length)));
    assert!(pipeline(&named(64)).is_ok());
    assert!(faults(&named(65))[0].ends_with("a name is 1 to 64 letters, digits, `_` or `-`"));
}

#[test]
fn a_misspelt_required_key_is_one_fault() {
    let text = SOUND.replace("url =", "ulr =");
    assert_eq!(faults(&text), ["5:1: sinks.a.ulr: unknown key; did you mean `url`?"]);
    let text = SOUND.replace("[sinks.a]\ntype", "[sinks.a]\ntyp");
    assert_eq!(faults(&text), ["4:1: sinks.a.typ: unknown key; did you mean `type`?"]);
    let text = SOUND.replace("sinks", "sink");
    assert_eq!(faults(&text), ["3:2: sink: unknown key; did you mean `sinks`?"]);
}

#[test]
fn faults_of_the_pipeline_are_reported() {
    let sink = "[sinks.a]\ntype = \"null\"\n";
    let source = "[sources.web]\ntype = \"web\"\n";
    let cases = [
        (source.to_owned(), "1:1: sinks: no sink; add one as [sinks.NAME] with its `type`; known types: null, store"),
        (
            format!("{source}[sinks]"),
            "3:2: sinks: no sink; add one as [sinks.NAME] with its `type`; known types: null, store",
        ),
        (sink.to_owned(), "1:1: sources: no source; add one as [sources.NAME] with its `type`; known types: web"),
        (format!("sources = 1\n{sink}"), "1:11: sources: expected a table, found an integer; write [sources.NAME]"),
        (
            format!("{sink}[[sources.web]]\ntype = \"web\""),
            "3:1: sources.web: expected a table, found an array; write [sources.NAME]",
        ),
        (
            format!("{sink}[sources]\ntype = \"web\""),
            "4:8: sources.type: expected a table, found a string; write [sources.NAME]",
        ),
        (format!("{source}[sinks.a]\n"), "3:1: sinks.a.type: this key is required; known types: null, store"),
        (format!("{source}[sinks.a]\ntype = 1"), "4:8: sinks.a.type: expected a string, found an integer"),
        (
            format!("{source}[sinks.a]\ntype = \"stroe\""),
            "4:8: sinks.a.type: no sink type `stroe`; did you mean `store`? known types: null, store",
        ),
        (
            format!("{source}[sinks.a]\ntype = \"webhook\""),
            "4:8: sinks.a.type: no sink type `webhook`; known types: null, store",
        ),
        (
            format!("{source}{sink}[sources.\"\"]\ntype = \"web\""),
            "5:10: sources.\"\": a name is 1 to 64 letters, digits, `_` or `-`",
        ),
        (
            format!("{source}{sink}[sources.\"a.b\"]\ntype = \"web\""),
            "5:10: sources.\"a.b\": a name is 1 to 64 letters, digits, `_` or `-`",
        ),
        (
            format!("{source}{sink}[transport]\ntype = \"dsk\""),
            "6:8: transport.type: no transport type `dsk`; known types: memory",
        ),
        (
            format!("{source}{sink}[transport]\nmax_event = 1"),
            "6:1: transport.max_event: unknown key; did you mean `max_events`?",
        ),
        (format!("transport = \"memory\"\n{source}{sink}"), "1:13: transport: expected a table, found a string"),
        (
            format!("{source}{sink}[query]\nsink = \"a\""),
            "6:8: query.sink: the sink `a` cannot answer queries; sinks that can: none can",
        ),
        (format!("{source}{sink}[query]\nsink = \"b\""), "6:8: query.sink: no sink `b`; sinks: a"),
        (
            format!("{SOUND}{}", "[sinks.store]\ntype=\"store\"\nurl=\"\"\ntable=\"\"\n[query]\nsink = \"stor\""),
            "12:8: query.sink: no sink `stor`; did you mean `store`?",
        ),
        (
            format!("{SOUND}{}", "[sinks.b]\ntype=\"store\"\nurl=\"\"\ntable=\"\""),
            "7:8: query.sink: several sinks can answer queries; choose one in [query]: a, b",
        ),
        (format!("{SOUND}[query]\nsnk = \"a\""), "8:1: query.snk: unknown key; did you mean `sink`?"),
        (format!("{SOUND}[query]\nsink = 1"), "8:8: query.sink: expected a string, found an integer"),
        (format!("query = 1\n{SOUND}"), "1:9: query: expected a table, found an integer"),
        (format!("{SOUND}[servre]\n"), "7:2: servre: unknown key; did you mean `server`?"),
        (
            format!("shutdown_timeout = 1\n{SOUND}"),
            "1:1: shutdown_timeout: unknown key; did you mean `shutdown_timeout_s`?",
        ),
        (
            format!("shutdown_timeout_s = \"1\"\n{SOUND}"),
            "1:22: shutdown_timeout_s: expected an integer, found a string",
        ),
        (format!("server = 1\n{SOUND}"), "1:10: server: expected a table, found an integer"),
        (
            SOUND.replace("\"u\"", "\"${URL}\""),
            "5:7: sinks.a.url: the environment variable `URL` is not set; set it, or write `${URL:-default}`",
        ),
        (
            SOUND.replace("\"store\"", "\"${TYPE}\""),
            "4:8: sinks.a.type: the environment variable `TYPE` is not set; set it, or write `${TYPE:-default}`",
        ),
        // Columns count characters, not bytes.
        (
            format!("{SOUND}\"é\" = 1"),
            "7:1: sinks.a.\"é\": unknown key; known keys: url, table, max_events, port, total, ratio, fast, mode, address, subjects, labels, tls, least",
        ),
        (
            format!("{SOUND}labels = {{ \"é\" = true }}"),
            "7:18: sinks.a.labels.\"é\": expected an integer, found a boolean",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(faults(&text), [expected], "{text}");
    }
}

#[test]
fn the_only_sink_that_can_answers_queries() {
    let text = format!("{SOUND}[sinks.other]\ntype = \"null\"\n");
    assert_eq!(pipeline(&text).unwrap().query_sink.as_deref(), Some("a"));
}

#[test]
fn the_chosen_sink_answers_queries() {
    let text = format!("{SOUND}[sinks.b]\ntype = \"store\"\nurl = \"\"\ntable = \"\"\n[query]\nsink = \"b\"\n");
    assert_eq!(pipeline(&text).unwrap().query_sink.as_deref(), Some("b"));
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_position() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(faults(&deep)[0].starts_with("1:"));

    let cases: [(&str, &[&str]); 6] = [
        ("[sinks.a\ntype = \"null\"\n", &["1:9: "]),
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

/// Whatever a key's type and whatever is wrong: what stands in the file or a variable is not repeated.
#[test]
fn strings_are_never_repeated() {
    let wrong = ["\"hush\"", "\"${PASSWORD}\"", "[\"hush\"]", "{ cert = [\"hush\"] }", "\"hush${\"", "\"hush${NONE}\""];
    for key in field_names::<StoreConfig>() {
        for value in wrong {
            let text = format!("[sinks.a]\ntype = \"store\"\n{key} = {value}\n");
            let errors = pipeline(&text).unwrap_err().to_string();
            assert!(!errors.contains("hush"), "{errors}");
        }
    }
}

/// The message of a plug-in's own check is shown, without the value.
#[test]
fn a_plug_ins_own_message_is_shown_without_the_value() {
    #[derive(Default, Deserialize)]
    struct Keys {
        #[serde(rename = "url", deserialize_with = "refuse")]
        _url: String,
    }
    fn refuse<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        let url = String::deserialize(deserializer)?;
        Err(serde::de::Error::custom(format!("`{url}` is no URL")))
    }
    let text = format!("{SOUND}[keys]\nurl = \"postgres://ann:hush@db\"\n");
    let mut document = Document::parse("eye.toml", &text, variable).unwrap();
    document.section::<Keys>("keys");
    let errors = document.into_pipeline(&registry()).unwrap_err().to_string();
    assert_eq!(errors, "eye.toml:8:7: keys.url: `…` is no URL");
}

/// A check of the whole struct is reported at the table, and only when its parts are sound.
#[test]
fn a_check_of_the_whole_struct_is_reported_at_its_table() {
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
        ("low = 2\nhigh = 1", "7:1: range: `low` must be below `high`"),
        ("low = 2\nhigh = 300", "9:8: range.high: expected an integer from 0 to 255, found 300"),
    ];
    for (keys, expected) in cases {
        let text = format!("{SOUND}[range]\n{keys}\n");
        let mut document = Document::parse("eye.toml", &text, variable).unwrap();
        document.section::<Checked>("range");
        let errors = document.into_pipeline(&registry()).unwrap_err().to_string();
        assert_eq!(errors, format!("eye.toml:{expected}"));
    }
}

/// What looks like TOML, wrong in every way.
fn hostile_text() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let key =
        prop_oneof![proptest::sample::select(field_names::<StoreConfig>()).prop_map(str::to_owned), "[a-zé]{0,3}"];
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
            "[sinks.b]\ntype = \"store\"\n", "[sinks.c.tls]\n", "[query]\n", "[server]\n", "[transport]\n",
            "[[sources.web]]\n", "[sources.x]\ntype = \"web\"\n", "\u{feff}", "\r\n", "\0", "é",
        ]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| format!("[sinks.a]\ntype = \"store\"\n{}", lines.concat()))
}

proptest::proptest! {
    /// No text panics; what is refused has its place in the file, in order, and each fault once.
    #[test]
    fn no_text_panics(text in hostile_text()) {
        if let Err(errors) = pipeline(&text) {
            let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
            let place = |line: &String| {
                let mut parts = line.strip_prefix("eye.toml:").unwrap().splitn(3, ':');
                let mut number = || parts.next().unwrap().parse::<usize>().unwrap();
                (number(), number())
            };
            assert!(lines.iter().map(place).is_sorted(), "{lines:#?}");
            let mut unique = lines.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), lines.len(), "{lines:#?}");
        }
    }
}
