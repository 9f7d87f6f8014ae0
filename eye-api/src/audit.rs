//! `GET /audit`: the event accounting as JSON.
//!
//! [`AuditReport`] is the wire format. The ledger of `eye-core` may change without it.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::get;
use eye_core::accounting::{Accounting, Ledger, SinkLedger};
use eye_core::counters::SourceCounts;
use eye_http::mount::{Mount, Scope};
use eye_http::response;
use serde::{Deserialize, Serialize};

/// Returns the mount of `/audit`.
pub fn mount(accounting: Accounting) -> Mount {
    Mount::new("audit", "/audit", Method::GET, Scope::Admin, get(audit).with_state(accounting))
}

async fn audit(State(accounting): State<Accounting>) -> Response {
    response::json(StatusCode::OK, &AuditReport::from(accounting.ledger()))
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
    /// Left out by the sink's filter.
    pub filtered: u64,
    /// Negatively acknowledged.
    pub failed: u64,
    /// Writes, not events, that were retried.
    pub retried: u64,
    /// Being written.
    pub in_flight: u64,
}

impl From<Ledger> for AuditReport {
    fn from(ledger: Ledger) -> Self {
        let imbalances = ledger.imbalances();
        Self {
            balanced: imbalances.is_empty(),
            imbalances,
            sources: ledger.sources.into_iter().map(|(name, counts)| (name, counts.into())).collect(),
            transport: TransportReport { durable: ledger.durable, shared: ledger.shared },
            sinks: ledger.sinks.into_iter().map(|(name, sink)| (name, sink.into())).collect(),
        }
    }
}

impl From<SourceCounts> for SourceReport {
    fn from(counts: SourceCounts) -> Self {
        let SourceCounts { received, accepted, rejected, failed, waiting, refusals } = counts;
        Self { received, accepted, rejected, failed, waiting, refusals }
    }
}

impl From<SinkLedger> for SinkReport {
    fn from(SinkLedger { custody, counts }: SinkLedger) -> Self {
        Self {
            taken: custody.taken,
            at_start: custody.at_start,
            pending: custody.pending,
            missing: custody.missing,
            in_stream: custody.shared_backlog,
            delivered: counts.delivered,
            duplicates: counts.duplicates,
            rejected: counts.rejected,
            filtered: counts.filtered,
            failed: counts.failed,
            retried: counts.retried,
            in_flight: counts.in_flight,
        }
    }
}
