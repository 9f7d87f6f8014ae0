//! The program on each database, and a client of its HTTP API: events to send, answers, and pages of results.

use eye_harness::{Eye, MariaDb, Postgres};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Body, Client, RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::support::program;

pub(crate) const JSON: &str = "application/json";
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// Starts the program with the built-in configuration, except for the port.
pub(crate) async fn on_sqlite() -> Eye {
    start(include_str!("../../config/sqlite.toml"), None).await
}

/// Starts the program with the example for PostgreSQL, on a new database.
pub(crate) async fn on_postgres() -> Eye {
    start(include_str!("../../config/postgres.toml"), Some(Postgres::shared().create_database().url)).await
}

/// Starts the program with the example for MySQL and MariaDB, on a new database.
pub(crate) async fn on_mariadb() -> Eye {
    start(include_str!("../../config/mysql.toml"), Some(MariaDb::shared().create_database().url)).await
}

async fn start(example: &str, url: Option<String>) -> Eye {
    let with_url = |line: &str| match &url {
        Some(url) if line.starts_with("url = ") => format!("url = \"{url}\"\n"),
        _ => format!("{line}\n"),
    };
    let config: String = example.lines().map(with_url).collect();
    let eye = Eye::start(program(), &format!("{config}\n[server]\nlisten = \"127.0.0.1:0\"\n"));
    eye.wait_ready().await;
    eye
}

/// Returns an event with these fields as JSON, in this order, and default values for the others. An empty text omits
/// the field.
pub(crate) fn event(fields: &[(&str, &str)]) -> String {
    let others = [
        ("session_id", "\"s\""),
        ("category", "\"c\""),
        ("name", "\"n\""),
        ("data", "{}"),
        ("timestamp", "\"2021-01-01\""),
    ];
    let others = others.iter().filter(|(name, _)| fields.iter().all(|(given, _)| given != name));
    let members: Vec<String> = (fields.iter().chain(others))
        .filter(|(_, json)| !json.is_empty())
        .map(|(name, json)| format!("\"{name}\":{json}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Returns an event with this name.
pub(crate) fn named(name: &str) -> String {
    event(&[("name", &format!("\"{name}\""))])
}

/// An answer of the program.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// Returns the value of a header; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Parses the body as JSON.
    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("the program answers");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.expect("the answer is complete") }
}

pub(crate) async fn post(eye: &Eye, content_type: &str, body: impl Into<Body>) -> Answer {
    send(eye.client().post(eye.url("/api/event/")).header(CONTENT_TYPE, content_type).body(body)).await
}

/// Sends events and checks that all are accepted.
#[track_caller]
pub(crate) fn store(eye: &Eye, events: &[String]) -> impl Future<Output = ()> {
    let body = format!("[{}]", events.join(","));
    let expected = (201, format!(r#"{{"success": true, "accepted": {}}}"#, events.len()));
    async move {
        let answer = post(eye, JSON, body).await;
        assert_eq!((answer.status, answer.text), expected);
    }
}

/// Sends `GET /api/event/` with a query string.
pub(crate) async fn get(eye: &Eye, query: &str) -> Answer {
    send(eye.client().get(eye.url(&format!("/api/event/?{query}")))).await
}

/// A page of results.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    pub(crate) count: u64,
    pub(crate) next: Option<String>,
    pub(crate) previous: Option<String>,
    pub(crate) results: Vec<PageEvent>,
}

/// A result, with the bytes of `data` unchanged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageEvent {
    pub(crate) session_id: String,
    pub(crate) timestamp: String,
    pub(crate) category: String,
    pub(crate) name: String,
    pub(crate) data: Box<RawValue>,
    pub(crate) id: Option<String>,
    pub(crate) received_at: Option<String>,
}

impl Page {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.results.iter().map(|event| event.name.as_str()).collect()
    }
}

/// Returns the page at a URL, such as a `next`.
pub(crate) async fn page_at(client: &Client, url: &str) -> Page {
    let answer = send(client.get(url)).await;
    assert_eq!(answer.status, 200, "{url}: {}", answer.text);
    answer.json()
}

/// Returns the page with these parameters, correctly encoded.
pub(crate) async fn page(eye: &Eye, query: &[(&str, &str)]) -> Page {
    let url = Url::parse_with_params(&eye.url("/api/event/"), query).unwrap();
    page_at(eye.client(), url.as_str()).await
}
