#![allow(clippy::unwrap_used, missing_docs)]

use std::env::VarError;

use serde::Deserialize;

use super::*;
use crate::context::BuildContext;
use crate::error::BuildError;
use crate::sink::{BuiltSink, SinkConfig};
use crate::source::{SourceConfig, SourceContext};
use crate::transport::TransportConfig;

#[derive(Deserialize)]
struct WebConfig {
    claim: Option<String>,
}

impl SourceConfig for WebConfig {
    const TYPE: &'static str = "web";
    fn check(&self) -> Vec<BuildError> {
        let is_wrong = self.claim.as_deref() == Some("nothing");
        is_wrong.then(|| BuildError::at("claim", "must be a method and a path")).into_iter().collect()
    }
    fn claims(&self) -> Vec<String> {
        self.claim.iter().cloned().collect()
    }
    async fn build(self, _: &SourceContext) -> Result<Box<dyn Source>, BuildError> {
        Err(BuildError::new("the port is taken"))
    }
}

#[derive(Deserialize)]
struct MemoryConfig {
    #[serde(rename = "max_events")]
    _max_events: Option<u64>,
}

impl TransportConfig for MemoryConfig {
    const TYPE: &'static str = "memory";
    async fn build(self, _: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        Err(BuildError::new("no memory"))
    }
}

/// A sink that answers queries.
#[derive(Deserialize, Debug, PartialEq)]
struct StoreConfig {
    url: String,
    table: String,
}

impl SinkConfig for StoreConfig {
    const TYPE: &'static str = "store";
    const ANSWERS_QUERIES: bool = true;
    async fn build(self, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Err(BuildError::at("table", format!("no table {}", self.table)))
    }
}

#[derive(Deserialize)]
struct NullConfig {}

impl SinkConfig for NullConfig {
    const TYPE: &'static str = "null";
    async fn build(self, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Err(BuildError::new("nothing"))
    }
}

#[derive(Deserialize, Default)]
struct Server {}

#[derive(Deserialize, Default)]
struct Query {
    #[serde(rename = "sink")]
    _sink: Option<String>,
}

fn registry() -> Registry {
    Registry::new().source::<WebConfig>().transport::<MemoryConfig>().sink::<StoreConfig>().sink::<NullConfig>()
}

fn pipeline(text: &str) -> Result<PipelineConfig, ConfigErrors> {
    let mut document = Document::parse("eye.toml", text, |_| Err(VarError::NotPresent))?;
    document.section::<Server>("server");
    document.section::<Query>("query");
    PipelineConfig::read(document, &registry())
}

/// The faults of the text, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let errors = pipeline(text).expect_err("the configuration has faults").to_string();
    errors.lines().map(|line| line.strip_prefix("eye.toml:").unwrap().to_owned()).collect()
}

const SOUND: &str = "[sources.web]\ntype = \"web\"\n[sinks.a]\ntype = \"store\"\nurl = \"u\"\ntable = \"t\"\n";

#[test]
fn components_keep_the_order_of_the_file() {
    let text = "[sinks.z]\ntype = \"null\"\n[sources.web]\ntype = \"web\"\n[sinks.a]\ntype = \"null\"\n\
                [sources.again]\ntype = \"web\"\n";
    let pipeline = pipeline(text).unwrap();
    let sources: Vec<_> = pipeline.sources.iter().map(Configured::name).collect();
    let sinks: Vec<_> = pipeline.sinks.iter().map(|sink| sink.component.key()).collect();
    assert_eq!((sources, sinks), (vec!["web", "again"], vec!["sinks.z", "sinks.a"]));
    assert_eq!(pipeline.transport.type_name(), "memory");
    assert_eq!(pipeline.query_sink, None);
}

#[tokio::test]
async fn build_error_names_its_component() {
    let mut pipeline = pipeline(SOUND).unwrap();
    let context = BuildContext::standalone("sinks.a");
    let sink = pipeline.sinks.pop().unwrap().component.build(&context).await.err().unwrap();
    assert_eq!(sink.to_string(), "sinks.a.table: no table t");
    assert_eq!(pipeline.transport.build(&context).await.err().unwrap().to_string(), "transport: no memory");
}

#[test]
#[should_panic(expected = "`null` is registered twice")]
fn second_plug_in_of_a_type_panics() {
    let _ = Registry::new().sink::<NullConfig>().sink::<NullConfig>();
}

#[test]
fn name_of_65_letters_is_refused() {
    let named = |length: usize| SOUND.replace("sources.web", &format!("sources.{}", "a".repeat(length)));
    assert!(pipeline(&named(64)).is_ok());
    assert!(faults(&named(65))[0].ends_with("a name is 1 to 64 letters, digits, `_` or `-`"));
}

#[test]
fn misspelt_required_key_is_one_fault() {
    let text = SOUND.replace("url =", "ulr =");
    assert_eq!(faults(&text), ["5:1: sinks.a.ulr: unknown key; did you mean `url`?"]);
    let text = SOUND.replace("[sinks.a]\ntype", "[sinks.a]\ntyp");
    assert_eq!(faults(&text), ["4:1: sinks.a.typ: unknown key; did you mean `type`?"]);
    let text = SOUND.replace("sinks", "sink");
    assert_eq!(faults(&text), ["3:2: sink: unknown key; did you mean `sinks`?"]);
}

#[test]
fn each_pipeline_fault_has_its_position() {
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
        (format!("server = 1\n{SOUND}"), "1:10: server: expected a table, found an integer"),
        (
            SOUND.replace("\"store\"", "\"${TYPE}\""),
            "4:8: sinks.a.type: the environment variable `TYPE` is not set; set it, or write `${TYPE:-default}`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(faults(&text), [expected], "{text}");
    }
}

#[test]
fn only_able_sink_answers_queries() {
    let text = format!("{SOUND}[sinks.other]\ntype = \"null\"\n");
    assert_eq!(pipeline(&text).unwrap().query_sink.as_deref(), Some("a"));
}

#[test]
fn chosen_sink_answers_queries() {
    let text = format!("{SOUND}[sinks.b]\ntype = \"store\"\nurl = \"\"\ntable = \"\"\n[query]\nsink = \"b\"\n");
    assert_eq!(pipeline(&text).unwrap().query_sink.as_deref(), Some("b"));
}

#[test]
fn sink_keeps_its_own_settings_from_its_plug_in() {
    let text = format!("{SOUND}[sinks.a.writer]\nmax_events = 7\n[sinks.a.filter]\nonly = {{name = [\"n\"]}}\n");
    let sink = pipeline(&text).unwrap().sinks.pop().unwrap();
    assert_eq!(crate::writer::WriterConfig::default().with(&sink.writer).max_events, 7);
    assert!(!sink.filter.passes(&crate::testkit::event(0)));
    let wrong = format!("{SOUND}[sinks.a.writer]\nmax_event = 7\n[sinks.a.filter]\nonly = {{name = []}}\n");
    let expected = [
        "8:1: sinks.a.writer.max_event: unknown key; did you mean `max_events`?",
        "10:16: sinks.a.filter.only.name: expected at least one value",
    ];
    assert_eq!(faults(&wrong), expected);
}

#[test]
fn plug_in_check_is_reported_at_its_key() {
    let text = SOUND.replace("type = \"web\"", "claim = \"nothing\"\ntype = \"web\"");
    assert_eq!(faults(&text), ["2:9: sources.web.claim: must be a method and a path"]);
}

#[test]
fn second_claim_of_a_source_names_the_first() {
    let source = |name: &str, claim: &str| format!("[sources.{name}]\ntype = \"web\"\nclaim = \"{claim}\"\n");
    let text = [source("x", "POST /a"), source("y", "POST /b"), source("z", "POST /a"), SOUND.to_owned()].concat();
    assert_eq!(faults(&text), ["7:10: sources.z: `POST /a` belongs to sources.x already; remove one of the two"]);
}

/// Lines that resemble a configuration, wrong in many ways.
fn hostile_text() -> impl proptest::strategy::Strategy<Value = String> {
    let line = proptest::sample::select(vec![
        "[sinks.a]\n",
        "[sinks.b]\n",
        "[sinks]\n",
        "[sinks.\"\"]\n",
        "[[sources.web]]\n",
        "[sources.web]\n",
        "[sources.x]\n",
        "[sources]\n",
        "[transport]\n",
        "[query]\n",
        "[server]\n",
        "[snks.a]\n",
        "sinks = 1\n",
        "type = \"store\"\n",
        "type = \"web\"\n",
        "type = \"null\"\n",
        "type = 1\n",
        "typ = \"store\"\n",
        "type = \"${NONE}\"\n",
        "url = \"u\"\n",
        "url = 1\n",
        "table = \"t\"\n",
        "tabel = []\n",
        "sink = \"a\"\n",
        "sink = {}\n",
        "é = \"é\"\n",
        "\u{feff}",
        "\r\n",
        "\0",
    ]);
    proptest::strategy::Strategy::prop_map(proptest::collection::vec(line, 0..12), |lines| lines.concat())
}

proptest::proptest! {
    /// Faults are in the order of the file, and each is reported once.
    #[test]
    fn no_pipeline_text_panics(text in hostile_text()) {
        if let Err(errors) = pipeline(&text) {
            let errors = errors.to_string();
            let lines: std::collections::HashSet<&str> = errors.lines().collect();
            assert_eq!(lines.len(), errors.lines().count(), "{errors}");
        }
    }
}
