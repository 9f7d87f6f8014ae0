//! The load: clients that send events with ids and record the answers. [`LoadProfile`] describes them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};
use tokio::time::sleep;
use uuid::Uuid;

use crate::event::{EventRow, REFUSED};
use crate::ledger::{Ledger, LedgerWriter, ReportedOutcome};
use crate::request::{RequestResult, RequestSender};

/// The number and the behaviour of the clients.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LoadProfile {
    /// Clients that send one event per request.
    pub singles: usize,
    /// Clients that send `array_events` events per request.
    pub arrays: usize,
    /// Events in an array.
    pub array_events: usize,
    /// Clients that send a part of a request or all of it and disconnect before the answer. HTTP only.
    pub disconnecting: usize,
    /// One of this many events has the name [`REFUSED`]; 0: none.
    pub refused_every: usize,
    /// One of this many requests repeats an acknowledged one; 0: none.
    pub repeat_every: usize,
    /// The longest pause of a client after a request, in milliseconds.
    pub max_pause_ms: u64,
    /// The seed of all random choices.
    pub seed: u64,
}

impl LoadProfile {
    /// Creates a load of three clients with single events and three with arrays of 10 events.
    pub fn new(seed: u64) -> Self {
        Self {
            singles: 3,
            arrays: 3,
            array_events: 10,
            disconnecting: 0,
            refused_every: 0,
            repeat_every: 8,
            max_pause_ms: 10,
            seed,
        }
    }
}

/// The progress of the load.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LoadCounts {
    /// Events with a recorded intent.
    pub issued: usize,
    /// Events acknowledged.
    pub acked: usize,
    /// Events refused for good.
    pub refused: usize,
    /// Events with unknown outcome.
    pub unknown: usize,
    /// The number of answers by status; `none` if there was no answer.
    pub answers: BTreeMap<String, usize>,
    /// Requests whose client disconnected before the answer.
    pub disconnects: usize,
    /// The first answers that violate the contract, such as a 500 or a refusal without a reason.
    pub unexpected: Vec<String>,
}

/// The maximum number of recorded unexpected answers.
const MAX_UNEXPECTED: usize = 10;
/// The pause before a retry, shorter than that of a real producer.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The clients and their shared state.
#[derive(Debug)]
pub(crate) struct Clients {
    load: LoadProfile,
    writer: LedgerWriter,
    sender: RequestSender,
    target: watch::Sender<Option<String>>,
    /// Read-locked while a request is in flight.
    in_flight: RwLock<()>,
    state: Mutex<LoadState>,
}

#[derive(Debug, Default)]
struct LoadState {
    ledger: Ledger,
    answers: BTreeMap<String, usize>,
    disconnects: usize,
    unexpected: Vec<String>,
    events: usize,
}

/// Events that are sent together, possibly several times.
#[derive(Clone, Debug)]
pub(crate) struct EventRequest {
    pub(crate) rows: Vec<EventRow>,
    pub(crate) body: String,
}

impl Clients {
    /// Starts clients that wait for a target.
    pub(crate) fn start(load: LoadProfile, ledger: &Path) -> io::Result<Arc<Self>> {
        let clients = Arc::new(Self {
            load,
            writer: LedgerWriter::open(ledger)?,
            sender: RequestSender::default(),
            target: watch::Sender::new(None),
            in_flight: RwLock::default(),
            state: Mutex::default(),
        });
        for client in clients.load.clients() {
            tokio::spawn(clients.clone().run(client));
        }
        Ok(clients)
    }

    /// Sends to `url` from now on.
    pub(crate) fn retarget(&self, url: String) {
        self.target.send_replace(Some(url));
    }

    /// Pauses all clients and returns when the outcome of every request is in the ledger.
    pub(crate) async fn pause(&self) {
        self.target.send_replace(None);
        drop(self.in_flight.write().await);
    }

    pub(crate) fn counts(&self) -> LoadCounts {
        let state = self.state();
        LoadCounts {
            issued: state.ledger.entries.len(),
            acked: state.ledger.count(ReportedOutcome::Acked),
            refused: state.ledger.count(ReportedOutcome::Refused),
            unknown: state.ledger.count(ReportedOutcome::Unknown),
            answers: state.answers.clone(),
            disconnects: state.disconnects,
            unexpected: state.unexpected.clone(),
        }
    }

    /// Sends one new event to `url` until it is acknowledged, and returns its id.
    pub(crate) async fn send_fresh(&self, url: &str) -> Uuid {
        let request = self.prepare(vec![EventRow::random(&mut Rng::new(), None)]).await;
        while !self.send(url, &request).await {
            sleep(RETRY_PAUSE).await;
        }
        request.rows[0].id
    }

    async fn run(self: Arc<Self>, client: ClientProfile) {
        let mut rng = Rng::with_seed(client.seed);
        let mut target = self.target.subscribe();
        let repeats = |rng: &mut Rng| self.load.repeat_every > 0 && rng.usize(..self.load.repeat_every) == 0;
        let (mut pending, mut last) = (None, None);
        // The loop ends with the process.
        while target.wait_for(Option::is_some).await.is_ok() {
            let in_flight = self.in_flight.read().await;
            let Some(url) = self.target.borrow().clone() else { continue };
            let request = match (pending.take(), &last) {
                (Some(request), _) => request,
                // A producer that missed the answer repeats an acknowledged request.
                (None, Some(request)) if repeats(&mut rng) => EventRequest::clone(request),
                _ => self.prepare(self.rows(&mut rng, client.events)).await,
            };
            if client.disconnects {
                self.send_and_disconnect(&url, &request, &mut rng).await;
            } else if self.send(&url, &request).await {
                last = Some(request);
            } else if rng.bool() {
                pending = Some(request);
            }
            drop(in_flight);
            let pause = rng.u64(..=self.load.max_pause_ms);
            sleep(Duration::from_millis(pause).max(if pending.is_some() { RETRY_PAUSE } else { Duration::ZERO })).await;
        }
    }

    fn rows(&self, rng: &mut Rng, events: usize) -> Vec<EventRow> {
        let first = {
            let mut state = self.state();
            state.events += events;
            state.events - events
        };
        let every = self.load.refused_every;
        let is_refused = |number: usize| every > 0 && number % every == every / 2;
        (first..first + events).map(|number| EventRow::random(rng, is_refused(number).then_some(REFUSED))).collect()
    }

    /// Writes the intents to the ledger and returns the request.
    async fn prepare(&self, rows: Vec<EventRow>) -> EventRequest {
        let intents: Vec<_> = rows.iter().map(|row| (row.id, row.fingerprint())).collect();
        self.writer.write_intents(&intents).await;
        let mut state = self.state();
        for (id, fingerprint) in intents {
            state.ledger.record_intent(id, fingerprint).expect("ids are unique");
        }
        EventRequest::new(rows)
    }

    /// Sends a request, and returns true if no outcome is unknown.
    async fn send(&self, url: &str, request: &EventRequest) -> bool {
        let RequestResult { status, outcomes, unexpected } = self.sender.send(url, request).await;
        let outcomes: Vec<_> = request.rows.iter().map(|row| row.id).zip(outcomes).collect();
        self.writer.write_outcomes(&outcomes).await;
        let mut state = self.state();
        for (id, outcome) in &outcomes {
            state.ledger.record_outcome(*id, *outcome).expect("the intent was recorded");
        }
        *state.answers.entry(status).or_default() += 1;
        if state.unexpected.len() < MAX_UNEXPECTED {
            state.unexpected.extend(unexpected);
        }
        outcomes.iter().all(|(_, outcome)| *outcome != ReportedOutcome::Unknown)
    }

    async fn send_and_disconnect(&self, url: &str, request: &EventRequest, rng: &mut Rng) {
        let sent = self.sender.send_and_disconnect(url, request, rng).await;
        self.state().disconnects += usize::from(sent);
    }

    fn state(&self) -> MutexGuard<'_, LoadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug)]
struct ClientProfile {
    seed: u64,
    events: usize,
    disconnects: bool,
}

impl LoadProfile {
    fn clients(&self) -> impl Iterator<Item = ClientProfile> {
        let kinds = [(self.singles, 1, false), (self.arrays, self.array_events, false), (self.disconnecting, 1, true)];
        let clients = kinds.into_iter().flat_map(|(clients, events, disconnects)| vec![(events, disconnects); clients]);
        let seed = self.seed;
        clients.zip(0..).map(move |((events, disconnects), number)| ClientProfile {
            seed: seed.wrapping_add(number),
            events,
            disconnects,
        })
    }
}

impl EventRequest {
    fn new(rows: Vec<EventRow>) -> Self {
        let events: Vec<String> = rows.iter().map(EventRow::json).collect();
        let body = if let [event] = events.as_slice() { event.clone() } else { format!("[{}]", events.join(",")) };
        Self { rows, body }
    }
}
