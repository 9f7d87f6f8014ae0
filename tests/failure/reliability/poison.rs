//! The database refuses one valid event in a thousand. The others are stored. The producer of the refused one gets an
//! error with the memory transport; the durable transports keep a dead letter.

use futures_util::future::join_all;

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::store::{ALL, Kind, Store};

const THOUSAND: usize = 1000;

#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// A constraint, whose error the sink recognises.
    Constraint,
    /// A trigger with an unspecific error.
    Trigger,
}

#[tokio::test(flavor = "multi_thread")]
async fn constraint_costs_one_event_in_a_thousand() {
    refused_one_in_a_thousand(Refusal::Constraint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_costs_one_event_in_a_thousand() {
    refused_one_in_a_thousand(Refusal::Trigger).await;
}

async fn refused_one_in_a_thousand(refusal: Refusal) {
    let rows = Transport::all_with(ALL);
    join_all(rows.map(|(transport, kind)| refuse(refusal, transport, kind))).await;
}

async fn refuse(refusal: Refusal, transport: Transport, kind: Kind) {
    let setup = Setup {
        // The search for the refused event takes long on a busy machine.
        settings: "sources.web.receipt_timeout_ms = 25000",
        change_load: |load| {
            (load.singles, load.arrays) = (0, 1);
            (load.array_events, load.refused_every) = (THOUSAND, THOUSAND);
        },
        ..Setup::default()
    };
    let what = format!("1 of 1000 events is refused ({refusal:?})");
    let mut trial = Trial::start_with(&what, transport, Store::new(kind), setup).await;
    match refusal {
        Refusal::Constraint => trial.store.refuse().await,
        Refusal::Trigger => trial.store.refuse_by_trigger().await,
    }
    trial.load().await;
    for round in 1..=rounds() {
        trial.until("1,000 more events are sent", |counts| counts.issued >= round * THOUSAND).await;
    }
    // The search for the refused event blocks all other events.
    trial.oracle.pause().await;
    let report = trial.check().await;
    // The check adds two events.
    let thousands = report.issued / THOUSAND;
    assert_eq!((report.issued, report.unknown), (thousands * THOUSAND + 2, 0), "{report}");
    let (refused, dead_letters) = if transport == Transport::Memory { (thousands, 0) } else { (0, thousands) };
    assert_eq!((report.refused, report.dead_letters), (refused, dead_letters), "{report}");
    assert_eq!(report.stored, report.issued - thousands, "{report}");
    trial.report(thousands);
}
