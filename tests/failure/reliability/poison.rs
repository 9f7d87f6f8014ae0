//! One event in a thousand gets past the gate, and is refused by the database: the others are stored, and whoever has
//! custody tells of it or keeps it.

use futures_util::future::join_all;

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::store::{ALL, Kind, Store};

const THOUSAND: usize = 1000;

#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// By a constraint, as which it is known.
    Constraint,
    /// By a trigger, with an error that says nothing of its kind.
    Trigger,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_refuses_one_event_in_a_thousand() {
    refused_one_in_a_thousand(Refusal::Constraint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_refuses_one_event_in_a_thousand() {
    refused_one_in_a_thousand(Refusal::Trigger).await;
}

async fn refused_one_in_a_thousand(refusal: Refusal) {
    let rows = Transport::all_with(ALL);
    join_all(rows.map(|(transport, kind)| refuse(refusal, transport, kind))).await;
}

async fn refuse(refusal: Refusal, transport: Transport, kind: Kind) {
    let setup = Setup {
        // Time enough to hear of the event at fault on a busy machine, too.
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
        trial.until("the next thousand is sent", |counts| counts.issued >= round * THOUSAND).await;
    }
    // Finding the event at fault takes its time, for which nothing else gets through.
    trial.oracle.pause().await;
    let verdict = trial.check().await;
    // Two more to see whether it still works.
    let thousands = verdict.issued / THOUSAND;
    assert_eq!((verdict.issued, verdict.unknown), (thousands * THOUSAND + 2, 0), "{verdict}");
    let (refused, dead) = if transport == Transport::Memory { (thousands, 0) } else { (0, thousands) };
    assert_eq!((verdict.refused, verdict.dead), (refused, dead), "{verdict}");
    assert_eq!(verdict.stored, verdict.issued - thousands, "{verdict}");
    trial.report(thousands);
}
