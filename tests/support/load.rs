//! Clients in the test process that send events with ids and retry until each event is acknowledged: [`ClientLoad`].
//!
//! In contrast to the oracle they can send to several programs, with data of any size, and die with the test.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eye_harness::{Eye, eventually};
use eye_oracle::{EventRow, Ledger, Reconciliation, ReportedOutcome, reconcile};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::Store;
use super::{EVENT_MICROS, HANG};

const CLIENTS: usize = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A running load of six clients, three with single events and three with arrays of 10 events.
pub(crate) struct ClientLoad {
    shared: Arc<SharedLoad>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedLoad {
    /// Bytes in the data of each event, besides its id.
    data_bytes: usize,
    stop: CancellationToken,
    /// Each client takes the next URL after every answer other than 201.
    urls: Mutex<Vec<String>>,
    ledger: Mutex<Ledger>,
    /// The number of answers by status and presence of `Retry-After`; 0: no answer.
    answers: Mutex<BTreeMap<(u16, bool), usize>>,
    /// Requests answered with 201.
    acknowledged: AtomicUsize,
}

impl ClientLoad {
    pub(crate) fn start(eye: &Eye) -> Self {
        Self::start_with(eye, 1)
    }

    /// Starts a load of events with at least this many bytes of data.
    pub(crate) fn start_with(eye: &Eye, data_bytes: usize) -> Self {
        let shared = Arc::new(SharedLoad { data_bytes, ..SharedLoad::default() });
        let load = Self { shared, clients: Vec::new() };
        load.retarget(eye);
        let client = reqwest::Client::builder().no_proxy().timeout(HANG).build().expect("the client has valid options");
        let clients = (0..CLIENTS).map(|number| {
            let events = if number % 2 == 0 { 1 } else { 10 };
            tokio::spawn(load.shared.clone().run(client.clone(), number, events))
        });
        Self { clients: clients.collect(), ..load }
    }

    /// Sends to the current address of the program.
    pub(crate) fn retarget(&self, eye: &Eye) {
        self.spread(std::slice::from_ref(eye));
    }

    /// Sends to several programs. A client moves on to the next one after every answer other than 201.
    pub(crate) fn spread(&self, eyes: &[Eye]) {
        *self.shared.urls.lock().unwrap() = eyes.iter().map(|eye| eye.url("/api/event/")).collect();
    }

    /// Waits until this many more requests are answered with 201.
    pub(crate) async fn progress(&self, requests: usize) {
        let acknowledged = || self.shared.acknowledged.load(Ordering::Relaxed);
        let target = acknowledged() + requests;
        eventually("more requests are acknowledged", HANG, async || acknowledged() >= target).await;
    }

    /// Waits until this many more requests are answered with `status`; 0 stands for no answer.
    pub(crate) async fn answered(&self, status: u16, requests: usize) {
        let target = self.shared.count(status) + requests;
        eventually(&format!("answers with {status}"), HANG, async || self.shared.count(status) >= target).await;
    }

    /// Returns the number of requests answered with 503.
    pub(crate) fn unavailable(&self) -> usize {
        self.shared.count(503)
    }

    /// Stops the clients and checks the answers, and that the store has all acknowledged events now.
    pub(crate) async fn finish(mut self, store: &Store) {
        self.stop().await;
        self.reconcile(store).await.assert_consistent();
    }

    /// Finishes as [`finish`](Self::finish) does, after the events of a durable transport have reached the store.
    pub(crate) async fn finish_delivered(mut self, store: &Store) {
        self.stop().await;
        let acked: HashSet<Uuid> = self.shared.ledger.lock().unwrap().acked().collect();
        eventually("all acknowledged events are stored", HANG, async || {
            let stored: HashSet<Uuid> = store.ids().await.into_iter().collect();
            acked.is_subset(&stored)
        })
        .await;
        self.reconcile(store).await.assert_consistent();
    }

    /// Stops the clients and compares their ledger with the store, after the transport has delivered its backlog.
    pub(crate) async fn drain(mut self, eye: &Eye, store: &Store) -> Reconciliation {
        self.stop().await;
        // The program stores events in their order: the last one is stored after all others.
        let last = self.shared.new_event();
        eventually("the last event is acknowledged", HANG, async || eye.post(last.json()).await.0 == 201).await;
        self.shared.acknowledge(&[last.id]);
        eventually("the last event is stored", HANG, async || store.has(last.id).await).await;
        let report = self.reconcile(store).await;
        println!("{report}");
        report
    }

    /// Stops the clients and checks that all answers were 201, 503 with `Retry-After`, or lost connections.
    async fn stop(&mut self) {
        self.shared.stop.cancel();
        for client in self.clients.drain(..) {
            client.await.expect("a client does not panic");
        }
        let answers = self.shared.answers.lock().unwrap().clone();
        let allowed = [(0, false), (201, false), (503, true)];
        assert!(answers.keys().all(|answer| allowed.contains(answer)), "{answers:?}");
    }

    async fn reconcile(&self, store: &Store) -> Reconciliation {
        let stored = store.fingerprints().await;
        reconcile(&self.shared.ledger.lock().unwrap(), &stored, &HashSet::new())
    }
}

impl SharedLoad {
    /// Creates an event and records it in the ledger.
    fn new_event(&self) -> EventRow {
        let id = Uuid::new_v4();
        let [session_id, category, name] = ["s", "test", "load"].map(str::to_owned);
        let data = format!("\"{id}{}\"", "x".repeat(self.data_bytes));
        let row = EventRow { id, session_id, category, name, data, timestamp_micros: EVENT_MICROS };
        self.ledger.lock().unwrap().record_intent(id, row.fingerprint()).expect("ids are unique");
        row
    }

    fn acknowledge(&self, ids: &[Uuid]) {
        let mut ledger = self.ledger.lock().unwrap();
        for id in ids {
            ledger.record_outcome(*id, ReportedOutcome::Acked).expect("the intent was recorded");
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    async fn run(self: Arc<Self>, client: reqwest::Client, mut turn: usize, events: usize) {
        while !self.stop.is_cancelled() {
            let rows: Vec<EventRow> = (0..events).map(|_| self.new_event()).collect();
            let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
            let body = format!("[{}]", rows.iter().map(EventRow::json).collect::<Vec<_>>().join(","));
            while !self.stop.is_cancelled() {
                let url = {
                    let urls = self.urls.lock().unwrap();
                    urls[turn % urls.len()].clone()
                };
                let request = client.post(url).header("content-type", "application/json").body(body.clone());
                let answer = match request.send().await {
                    Ok(answer) => (answer.status().as_u16(), answer.headers().contains_key("retry-after")),
                    Err(_) => (0, false),
                };
                *self.answers.lock().unwrap().entry(answer).or_default() += 1;
                if answer.0 == 201 {
                    self.acknowledge(&ids);
                    break;
                }
                turn += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn count(&self, status: u16) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|((answer, _), _)| *answer == status).map(|(_, count)| count).sum()
    }
}
