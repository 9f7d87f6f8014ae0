//! The suite passes a sink that keeps the contract, and each way to break it is caught by a case.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::event::{EventFields, EventKey};
use crate::sink::{SinkError, Written};

/// A fault of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    DropsAnEvent,
    AnswersBeforeItStores,
    RefusesAnEmptyBatch,
    StoresTwice,
    StoresTwiceWithinABatch,
    TakesNewEventsForDuplicates,
    ForgetsKeysAtARestart,
    KnowsEventsByTheirId,
    CutsLongBatches,
    DropsRemainders,
    Trims,
    ChecksAndStoresApart,
    DropsWhatItRefuses,
    RefusesNeighbours,
    RefusesForEver,
    RefusesDuringOutage,
    StaysUnavailable,
    EmptiesAtClose,
    CannotClose,
}

/// A storage in memory, over which sinks are opened.
struct Storage {
    fault: Fault,
    events: Arc<Mutex<Vec<Event>>>,
    refused_name: Arc<Mutex<Option<String>>>,
    unavailable: Arc<AtomicBool>,
}

impl Storage {
    fn new(fault: Fault) -> Self {
        Self { fault, events: Arc::default(), refused_name: Arc::default(), unavailable: Arc::default() }
    }
}

#[async_trait]
impl SinkFixture for Storage {
    async fn open(&self) -> BuiltSink {
        let forgetful = self.fault == Fault::ForgetsKeysAtARestart;
        let stored = if forgetful { Vec::new() } else { self.events.lock().unwrap().clone() };
        BuiltSink::write_only(StorageSink {
            fault: self.fault,
            events: self.events.clone(),
            refused_name: self.refused_name.clone(),
            unavailable: self.unavailable.clone(),
            keys: Mutex::new(stored.iter().map(Event::key).collect()),
            has_refused: AtomicBool::new(false),
            unwritten: Mutex::default(),
        })
    }

    async fn stored(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    async fn refuse(&self, name: &str) -> bool {
        *self.refused_name.lock().unwrap() = Some(name.to_owned());
        true
    }

    async fn become_unavailable(&self) -> bool {
        self.unavailable.store(true, Ordering::SeqCst);
        true
    }

    async fn become_available(&self) {
        self.unavailable.store(self.fault == Fault::StaysUnavailable, Ordering::SeqCst);
    }
}

struct StorageSink {
    fault: Fault,
    events: Arc<Mutex<Vec<Event>>>,
    refused_name: Arc<Mutex<Option<String>>>,
    unavailable: Arc<AtomicBool>,
    keys: Mutex<BTreeSet<EventKey>>,
    has_refused: AtomicBool,
    unwritten: Mutex<Vec<Event>>,
}

#[async_trait]
impl Sink for StorageSink {
    async fn prepare(&self) -> Result<(), WriteError> {
        if self.unavailable.load(Ordering::SeqCst) { Err(WriteError::retry("unavailable")) } else { Ok(()) }
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(match self.fault {
                Fault::RefusesDuringOutage => WriteError::reject("unavailable"),
                _ => WriteError::retry("unavailable"),
            });
        }
        let mut batch = self.accepted(batch)?;
        match self.fault {
            Fault::RefusesAnEmptyBatch if batch.is_empty() => return Err(WriteError::reject("empty")),
            Fault::DropsAnEvent => drop(batch.pop()),
            Fault::CutsLongBatches => batch.truncate(5_000),
            Fault::DropsRemainders if batch.len() > 8 => batch.truncate(batch.len() / 4 * 4),
            Fault::Trims => batch = batch.iter().map(trimmed).collect(),
            _ => {}
        }
        let count = batch.len();
        let is_new: Vec<bool> = {
            let mut keys = self.keys.lock().unwrap();
            let mut is_new = |event: &Event| match self.fault {
                Fault::StoresTwice => true,
                Fault::KnowsEventsByTheirId => {
                    let known = keys.iter().any(|key| key.id == event.id());
                    keys.insert(event.key());
                    !known
                }
                Fault::StoresTwiceWithinABatch | Fault::ChecksAndStoresApart => !keys.contains(&event.key()),
                _ => keys.insert(event.key()),
            };
            // Checking within the batch as well leaves `ChecksAndStoresApart` nothing but its race.
            let mut seen = BTreeSet::new();
            let within = self.fault == Fault::ChecksAndStoresApart;
            batch.iter().map(|event| is_new(event) && (!within || seen.insert(event.key()))).collect()
        };
        if self.fault == Fault::ChecksAndStoresApart {
            tokio::task::yield_now().await;
        }
        let new = batch.into_iter().zip(is_new).filter_map(|(event, is_new)| is_new.then_some(event));
        let new: Vec<Event> = new.collect();
        let duplicates = match self.fault {
            Fault::TakesNewEventsForDuplicates => count,
            _ => count - new.len(),
        };
        self.keys.lock().unwrap().extend(new.iter().map(Event::key));
        match self.fault {
            Fault::AnswersBeforeItStores => self.unwritten.lock().unwrap().extend(new),
            _ => self.events.lock().unwrap().extend(new),
        }
        Ok(Written { duplicates })
    }

    async fn close(&self) -> Result<(), SinkError> {
        match self.fault {
            Fault::CannotClose => return Err(SinkError("cannot".into())),
            Fault::EmptiesAtClose => self.events.lock().unwrap().clear(),
            _ => self.events.lock().unwrap().append(&mut self.unwritten.lock().unwrap()),
        }
        Ok(())
    }
}

impl StorageSink {
    /// The events to store, unless one has to be refused.
    fn accepted(&self, batch: &[Event]) -> Result<Vec<Event>, WriteError> {
        let refused_name = self.refused_name.lock().unwrap();
        let (accepted, refused): (Vec<Event>, Vec<Event>) =
            batch.iter().cloned().partition(|event| Some(event.name()) != refused_name.as_deref());
        let refuses = !refused.is_empty() && self.fault != Fault::DropsWhatItRefuses;
        let has_refused = self.has_refused.fetch_or(refuses, Ordering::SeqCst);
        // Whoever refuses neighbours does so because one in front of them was refused a moment ago.
        let refuses_more = match self.fault {
            Fault::RefusesForEver => has_refused,
            Fault::RefusesNeighbours => has_refused && batch.iter().any(|event| event.name() == "name 4"),
            _ => false,
        };
        if refuses || refuses_more { Err(WriteError::reject("no such name")) } else { Ok(accepted) }
    }
}

fn trimmed(event: &Event) -> Event {
    Event::from(EventFields {
        id: event.id(),
        timestamp: event.timestamp(),
        received_at: event.received_at(),
        session_id: event.session_id(),
        category: event.category(),
        name: event.name().trim(),
        data: event.data(),
        origin: event.origin(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_keeps_the_contract_passes() {
    suite(async || Storage::new(Fault::None)).await;
}

/// One test for each fault: the case fails with it.
macro_rules! caught {
    ($($test:ident: $fault:ident by $($case:ident)+;)*) => { $(
        #[tokio::test(start_paused = true)]
        async fn $test() {
            $(
                let case = tokio::spawn($case(Arc::new(Storage::new(Fault::$fault))));
                assert!(case.await.is_err_and(|error| error.is_panic()), stringify!($case));
            )+
        }
    )* };
}

caught! {
    dropped_events: DropsAnEvent by all_written odd_sizes_of_batches;
    answers_before_storing: AnswersBeforeItStores by all_written;
    an_error_for_an_empty_batch: RefusesAnEmptyBatch by an_empty_batch_is_fine;
    no_key: StoresTwice by the_same_batch_twice_is_stored_once one_event_twice_in_a_batch_is_stored_once concurrent_writes;
    miscounted_duplicates: TakesNewEventsForDuplicates by the_same_batch_twice_is_stored_once;
    a_key_that_ignores_the_batch_itself: StoresTwiceWithinABatch by one_event_twice_in_a_batch_is_stored_once;
    keys_in_memory_only: ForgetsKeysAtARestart by the_same_batch_after_a_restart_is_stored_once;
    a_key_of_the_id_alone: KnowsEventsByTheirId by the_same_id_at_another_time_is_another_event;
    a_bound_on_batches: CutsLongBatches by ten_thousand_events;
    lost_remainders: DropsRemainders by odd_sizes_of_batches;
    trimmed_texts: Trims by unicode_and_large_events;
    a_race_between_writes: ChecksAndStoresApart by concurrent_writes;
    a_refused_event_that_vanishes: DropsWhatItRefuses by refused_event_is_isolated;
    refused_neighbours: RefusesNeighbours by refused_event_is_isolated;
    a_refusal_that_never_ends: RefusesForEver by refused_event_is_isolated;
    a_refusal_instead_of_an_outage: RefusesDuringOutage by an_outage_ends;
    an_outage_without_end: StaysUnavailable by an_outage_ends;
    emptied_at_close: EmptiesAtClose by close_flushes;
    an_error_at_close: CannotClose by close_flushes;
}
