//! `config/eye.toml` names every key there is, with its default.

use std::fmt::Debug;

use eye::telemetry::SentryConfig;
use eye_api::events::QueryConfig;
use eye_core::config::field_names;
use eye_core::writer::WriterConfig;
use eye_http::config::ServerConfig;
use eye_sinks::{MysqlConfig, PostgresConfig, SqliteConfig};
use eye_sources::http::HttpConfig;
use eye_sources::nats::NatsConfig;
use eye_transports::disk::DiskConfig;
use eye_transports::jetstream::JetStreamConfig;
use eye_transports::memory::MemoryConfig;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Names for the two further `[transport]` tables of the file, of type `disk` and `jetstream`.
const DISK: &str = "transport_on_disk";
const JETSTREAM: &str = "transport_over_jetstream";

/// The file, with the choices that are not taken (`#key = …`, `#[…]`) taken as well.
fn documented() -> Table {
    let text = include_str!("../../config/eye.toml");
    let is_choice = |line: &str| line.starts_with(|c: char| c == '[' || c.is_ascii_lowercase());
    let lines = text.lines().map(|line| line.strip_prefix('#').filter(|rest| is_choice(rest)).unwrap_or(line));
    let text = lines.collect::<Vec<_>>().join("\n");
    // There is one transport: the other choices stand here under names of their own.
    let [before, memory, disk, jetstream] = text.split("[transport]").collect::<Vec<_>>()[..] else {
        panic!("it names three transports")
    };
    let text = format!("{before}[transport]{memory}[{DISK}]{disk}[{JETSTREAM}]{jetstream}");
    text.parse().expect("it is TOML with every choice taken, too")
}

/// The documented keys below `path`, less `type`.
fn section(path: &[&str]) -> Table {
    let mut table = documented();
    for key in path {
        let Some(Value::Table(below)) = table.remove(*key) else { panic!("no [{}] in eye.toml", path.join(".")) };
        table = below;
    }
    table.remove("type");
    table
}

fn assert_every_key<T: DeserializeOwned>(path: &[&str]) {
    let section = section(path);
    let mut documented: Vec<&str> = section.keys().map(String::as_str).collect();
    let mut known = field_names::<T>();
    documented.sort_unstable();
    known.sort_unstable();
    assert!(!known.is_empty(), "{path:?}");
    assert_eq!(documented, known, "{path:?}");
}

/// `required` are values for the keys that have no default.
fn assert_defaults<T: DeserializeOwned + Debug>(path: &[&str], required: &[(&str, Value)]) {
    let mut documented = section(path);
    let mut default = Table::new();
    for (key, value) in required {
        documented.insert((*key).to_owned(), value.clone());
        default.insert((*key).to_owned(), value.clone());
    }
    let read = |table: Table| format!("{:?}", T::deserialize(table).expect("it can be read"));
    assert_eq!(read(documented), read(default), "{path:?}");
}

#[test]
fn every_key_is_documented() {
    assert_every_key::<ServerConfig>(&["server"]);
    assert_every_key::<QueryConfig>(&["query"]);
    assert_every_key::<SentryConfig>(&["sentry"]);
    assert_every_key::<WriterConfig>(&["writer"]);
    assert_every_key::<HttpConfig>(&["sources", "web"]);
    assert_every_key::<NatsConfig>(&["sources", "bus"]);
    assert_every_key::<MemoryConfig>(&["transport"]);
    assert_every_key::<DiskConfig>(&[DISK]);
    assert_every_key::<JetStreamConfig>(&[JETSTREAM]);
    assert_every_key::<SqliteConfig>(&["sinks", "store"]);
    assert_every_key::<PostgresConfig>(&["sinks", "postgres"]);
    assert_every_key::<MysqlConfig>(&["sinks", "mysql"]);
}

#[test]
fn every_documented_value_is_the_default() {
    assert_defaults::<ServerConfig>(&["server"], &[]);
    assert_defaults::<QueryConfig>(&["query"], &[("sink", "store".into())]);
    assert_defaults::<SentryConfig>(&["sentry"], &[("dsn", "".into())]);
    // The default depends on the transport.
    assert_defaults::<WriterConfig>(&["writer"], &[("max_wait_ms", 0.into())]);
    assert_defaults::<HttpConfig>(&["sources", "web"], &[]);
    let nats = [("url", "nats://host".into()), ("mode", "core".into()), ("subjects", vec!["a"].into())];
    assert_defaults::<NatsConfig>(&["sources", "bus"], &nats);
    assert_defaults::<MemoryConfig>(&["transport"], &[]);
    assert_defaults::<DiskConfig>(&[DISK], &[]);
    assert_defaults::<JetStreamConfig>(&[JETSTREAM], &[("url", "nats://host".into()), ("stream", "EYE".into())]);
    assert_defaults::<SqliteConfig>(&["sinks", "store"], &[]);
    assert_defaults::<PostgresConfig>(&["sinks", "postgres"], &[("url", "postgres://eye@localhost/eye".into())]);
    assert_defaults::<MysqlConfig>(&["sinks", "mysql"], &[("url", "mysql://eye@localhost/eye".into())]);
    assert_eq!(documented()["shutdown_timeout_s"], Value::Integer(10));
}

/// The file names no section that [`eye::config::Config`] does not read.
#[test]
fn nothing_else_is_documented() {
    let documented = documented();
    let mut keys: Vec<&str> = documented.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let known =
        ["query", "sentry", "server", "shutdown_timeout_s", "sinks", "sources", "transport", DISK, JETSTREAM, "writer"];
    assert_eq!(keys, known);
}
