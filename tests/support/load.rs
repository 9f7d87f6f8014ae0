//! Clients that send events with ids and try again until they are told that all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eye_harness::{Eye, eventually};
use eye_oracle::Row;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::Store;
use super::{EVENT_MICROS, HANG, event, post};

const CLIENTS: usize = 6;
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// In the data of each event.
    data_bytes: usize,
    stop: CancellationToken,
    /// The clients take turns.
    urls: Mutex<Vec<String>>,
    issued: Mutex<BTreeSet<Uuid>>,
    acknowledged: Mutex<BTreeSet<Uuid>>,
    /// How often each answer came, by status and whether it has `Retry-After`; 0: none came.
    answers: Mutex<BTreeMap<(u16, bool), usize>>,
    progress: AtomicUsize,
}

/// Events by what became of them.
#[derive(Debug)]
pub(crate) struct Balance {
    pub(crate) issued: usize,
    pub(crate) acknowledged: usize,
    pub(crate) stored: usize,
    /// Acknowledged, and not stored.
    pub(crate) lost: usize,
    /// Stored once more.
    pub(crate) twice: usize,
    /// Stored, and sent by none of the clients.
    pub(crate) foreign: usize,
    /// Stored, and not as it was sent.
    pub(crate) corrupt: usize,
}

impl Balance {
    /// # Panics
    /// When something is lost, or stored and should not be.
    pub(crate) fn assert_true(&self) {
        assert_eq!((self.lost, self.twice, self.foreign, self.corrupt), (0, 0, 0, 0), "{self:?}");
    }

    /// Prints the line of a table that `scripts/soak` makes.
    pub(crate) fn report(&self, what: &str, place: &str, times: usize) {
        let Self { issued, acknowledged, stored, lost, twice, corrupt, .. } = self;
        let unknown = issued - acknowledged;
        println!(
            "RESULT | {what} | {place} | {times} | {issued} | {acknowledged} | {unknown} | 0 | {stored} | 0 | {lost} | \
             {twice} | {corrupt} |"
        );
    }
}

impl Load {
    /// Half of the clients send one event at a time, the others ten.
    pub(crate) fn start(eye: &Eye) -> Self {
        Self::start_with(eye, 1)
    }

    /// As [`start`](Self::start), each event with so many bytes of data.
    pub(crate) fn start_with(eye: &Eye, data_bytes: usize) -> Self {
        let shared = Arc::new(Shared { data_bytes, ..Shared::default() });
        let load = Self { shared, clients: Vec::new() };
        load.retarget(eye);
        let client = reqwest::Client::builder().no_proxy().timeout(HANG).build().expect("the client needs nothing");
        let clients = (0..CLIENTS).map(|number| {
            let events = if number % 2 == 0 { 1 } else { 10 };
            tokio::spawn(load.shared.clone().run(client.clone(), number, events))
        });
        Self { clients: clients.collect(), ..load }
    }

    /// Sends to where the program listens now.
    pub(crate) fn retarget(&self, eye: &Eye) {
        self.spread(std::slice::from_ref(eye));
    }

    /// Sends to several programs: each client to one after the other, as long as it is not told that all is well.
    pub(crate) fn spread(&self, eyes: &[Eye]) {
        *self.shared.urls.lock().unwrap() = eyes.iter().map(|eye| eye.url("/api/event/")).collect();
    }

    /// Stops the clients, and waits until what they were told is in the database: a transport that is durable tells them
    /// before.
    pub(crate) async fn drained(&mut self, store: &Store) {
        self.stop().await;
        let acknowledged = self.shared.acknowledged.lock().unwrap().clone();
        eventually("all that was acknowledged is stored", HANG * 2, async || {
            let stored: BTreeSet<Uuid> = store.ids().await.into_iter().collect();
            acknowledged.is_subset(&stored)
        })
        .await;
    }

    /// Waits until so many more requests were answered with 201.
    pub(crate) async fn progress(&self, requests: usize) {
        let target = self.shared.progress.load(Ordering::Relaxed) + requests;
        eventually("more events acknowledged", HANG, async || self.shared.progress.load(Ordering::Relaxed) >= target)
            .await;
    }

    /// Waits until so many more requests were answered with `status`, 0 for no answer at all.
    pub(crate) async fn answered(&self, status: u16, requests: usize) {
        let target = self.shared.count(status) + requests;
        eventually(&format!("answers with {status}"), HANG, async || self.shared.count(status) >= target).await;
    }

    /// How many requests were answered with 503.
    pub(crate) fn unavailable(&self) -> usize {
        self.shared.count(503)
    }

    /// Stops the clients. They saw nothing but 201, 503 with `Retry-After`, and lost connections; what they were told is
    /// true of the database.
    pub(crate) async fn finish(mut self, store: &Store) {
        self.stop().await;
        self.balance(store).await.assert_true();
    }

    /// As [`finish`](Self::finish), for a program that stores what it has acknowledged in its order, but later.
    pub(crate) async fn settle(mut self, eye: &Eye, store: &Store) -> Balance {
        self.stop().await;
        // When this one is stored, nothing is left of those before it.
        let last = Uuid::new_v4();
        self.shared.issued.lock().unwrap().insert(last);
        let body = self.shared.event(last);
        eventually("a fresh event is taken", HANG, async || post(eye, &body).await.0 == 201).await;
        self.shared.acknowledged.lock().unwrap().insert(last);
        eventually("and stored", HANG, async || store.ids().await.contains(&last)).await;
        let balance = self.balance(store).await;
        println!("{balance:?}");
        balance
    }

    /// Stops the clients. They saw nothing but 201, 503 with `Retry-After`, and lost connections.
    async fn stop(&mut self) {
        self.shared.stop.cancel();
        for client in self.clients.drain(..) {
            client.await.expect("a client does not panic");
        }
        let answers = self.shared.answers.lock().unwrap().clone();
        let allowed = [(0, false), (201, false), (503, true)];
        assert!(answers.keys().all(|answer| allowed.contains(answer)), "{answers:?}");
    }

    /// What the clients were told against what is stored.
    async fn balance(&self, store: &Store) -> Balance {
        let rows = store.each_row(|row| (row.id, row == self.shared.row(row.id))).await;
        let stored: BTreeSet<Uuid> = rows.iter().map(|(id, _)| *id).collect();
        let acknowledged = self.shared.acknowledged.lock().unwrap();
        let issued = self.shared.issued.lock().unwrap();
        assert!(!acknowledged.is_empty(), "nothing was tried");
        Balance {
            issued: issued.len(),
            acknowledged: acknowledged.len(),
            stored: stored.len(),
            lost: acknowledged.difference(&stored).count(),
            twice: rows.len() - stored.len(),
            foreign: stored.difference(&issued).count(),
            corrupt: rows.iter().filter(|(id, is_as_sent)| issued.contains(id) && !is_as_sent).count(),
        }
    }
}

impl Shared {
    /// What is sent. The data tells it from every other.
    fn event(&self, id: Uuid) -> Value {
        let mut event = event(id, "load");
        event["data"] = self.data(id);
        event
    }

    /// How that is to be stored.
    fn row(&self, id: Uuid) -> Row {
        let [session_id, category, name] = ["s", "test", "load"].map(str::to_owned);
        Row { id, session_id, category, name, data: self.data(id).to_string(), timestamp_micros: EVENT_MICROS }
    }

    fn data(&self, id: Uuid) -> Value {
        json!(format!("{id}{}", "x".repeat(self.data_bytes)))
    }

    async fn run(self: Arc<Self>, client: reqwest::Client, mut turn: usize, events: usize) {
        while !self.stop.is_cancelled() {
            let ids: Vec<Uuid> = (0..events).map(|_| Uuid::new_v4()).collect();
            self.issued.lock().unwrap().extend(&ids);
            let body: Value = ids.iter().map(|id| self.event(*id)).collect();
            while !self.stop.is_cancelled() {
                let url = {
                    let urls = self.urls.lock().unwrap();
                    urls[turn % urls.len()].clone()
                };
                let answer = match client.post(url).json(&body).send().await {
                    Ok(answer) => (answer.status().as_u16(), answer.headers().contains_key("retry-after")),
                    Err(_) => (0, false),
                };
                *self.answers.lock().unwrap().entry(answer).or_default() += 1;
                if answer.0 == 201 {
                    self.acknowledged.lock().unwrap().extend(&ids);
                    self.progress.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                turn += 1;
                // As a client would, but sooner.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn count(&self, status: u16) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|((answer, _), _)| *answer == status).map(|(_, count)| count).sum()
    }
}
