//! `GET /audit`: the event accounting as JSON.
//!
//! [`AuditReport`] is the wire format. It is apart from the ledger of `eye-core`, which may change without it.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use eye_core::accounts::{Accounts, Books, SinkBook, SourceBook};
use eye_http::mount::{Mount, Scope};
use eye_http::response;
use serde::{Deserialize, Serialize};

/// Returns the mount of `/audit`.
pub fn mount(accounting: Accounts) -> Mount {
    Mount {
        owner: "audit".to_owned(),
        path: "/audit".to_owned(),
        methods: vec![Method::GET],
        scope: Scope::Admin,
        router: any(audit).with_state(accounting),
    }
}

async fn audit(State(accounting): State<Accounts>) -> Response {
    response::json(StatusCode::OK, &AuditReport::from(accounting.books()))
}

/// The accounting of one program since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// True if every equation of the ledger holds.
    pub balanced: bool,
    /// The equations that do not hold, with their numbers.
    pub imbalances: Vec<String>,
    /// Sources by name.
    pub sources: BTreeMap<String, SourceReport>,
    /// The kind of transport, on which the equations depend.
    pub transport: TransportReport,
    /// Sinks by name.
    pub sinks: BTreeMap<String, SinkReport>,
}

/// The events of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Read from a body or message.
    pub received: u64,
    /// Acknowledged to the producer.
    pub accepted: u64,
    /// Refused for good.
    pub rejected: u64,
    /// To be sent again by the producer.
    pub failed: u64,
    /// Published, without an outcome yet.
    pub waiting: u64,
    /// Reasons of refusals, and their counts.
    pub refusals: BTreeMap<String, u64>,
}

/// The kind of transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportReport {
    /// True if it keeps events across a restart.
    pub durable: bool,
    /// True if several programs may share it.
    pub shared: bool,
}

/// The events of one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    /// Taken by the transport for this sink.
    pub taken: u64,
    /// Pending when the program started.
    pub at_start: u64,
    /// Held by the transport.
    pub pending: u64,
    /// Lost to damage.
    pub missing: u64,
    /// Messages in a shared transport, for any program; `None` if unknown or not shared.
    pub in_stream: Option<u64>,
    /// Stored.
    pub delivered: u64,
    /// Found stored already.
    pub duplicates: u64,
    /// Refused for good.
    pub rejected: u64,
    /// Negatively acknowledged.
    pub failed: u64,
    /// Writes, not events, that were retried.
    pub retried: u64,
    /// Being written.
    pub in_flight: u64,
}

impl From<Books> for AuditReport {
    fn from(books: Books) -> Self {
        let imbalances = books.imbalances();
        Self {
            balanced: imbalances.is_empty(),
            imbalances,
            sources: books.sources.into_iter().map(|(name, book)| (name, book.into())).collect(),
            transport: TransportReport { durable: books.transport.durable, shared: books.transport.shared },
            sinks: books.sinks.into_iter().map(|(name, book)| (name, book.into())).collect(),
        }
    }
}

impl From<SourceBook> for SourceReport {
    fn from(book: SourceBook) -> Self {
        let SourceBook { received, accepted, rejected, failed, waiting, refusals } = book;
        Self { received, accepted, rejected, failed, waiting, refusals }
    }
}

impl From<SinkBook> for SinkReport {
    fn from(book: SinkBook) -> Self {
        let SinkBook { custody, delivered, duplicates, rejected, failed, retried, in_flight } = book;
        Self {
            taken: custody.taken,
            at_start: custody.at_start,
            pending: custody.pending,
            missing: custody.missing,
            in_stream: custody.in_stream,
            delivered,
            duplicates,
            rejected,
            failed,
            retried,
            in_flight,
        }
    }
}
