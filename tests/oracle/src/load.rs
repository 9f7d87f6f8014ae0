//! Clients that send events, each with an id, and note what they are told.

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

use crate::event::{REFUSED, Row};
use crate::ledger::{Fate, Ledger, Writer};
use crate::send::{Answer, Sender};

/// Who sends, and what.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Load {
    /// Clients that send one event a request.
    pub singles: usize,
    /// Clients that send `array_events` events a request.
    pub arrays: usize,
    /// Events in an array.
    pub array_events: usize,
    /// Clients that send a part of a request, or all of it, and leave without an answer. HTTP only.
    pub leavers: usize,
    /// One event in so many has the name [`REFUSED`]; 0: none.
    pub refused_every: usize,
    /// One request in so many is one that was acknowledged already; 0: none.
    pub repeat_every: usize,
    /// A client pauses for 0 to so many milliseconds after each request.
    pub max_pause_ms: u64,
    /// Where chance begins.
    pub seed: u64,
}

impl Load {
    /// Three clients with single events and three with arrays of ten.
    pub fn new(seed: u64) -> Self {
        Self {
            singles: 3,
            arrays: 3,
            array_events: 10,
            leavers: 0,
            refused_every: 0,
            repeat_every: 8,
            max_pause_ms: 10,
            seed,
        }
    }
}

/// How far the load is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    /// Events that were to be sent.
    pub issued: usize,
    /// Events taken for good.
    pub acked: usize,
    /// Events refused for good.
    pub refused: usize,
    /// Events of which nothing is known.
    pub unknown: usize,
    /// How often each answer came: the status, or `none`.
    pub answers: BTreeMap<String, usize>,
    /// Clients that have left before the answer.
    pub left: usize,
    /// The first answers that nobody should ever get, such as a 500, or a refusal without a reason.
    pub unexpected: Vec<String>,
}

/// How many unexpected answers are kept.
const MAX_UNEXPECTED: usize = 10;
/// After an answer that means "try again": as a producer would, but sooner.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What the clients share.
#[derive(Debug)]
pub(crate) struct Clients {
    load: Load,
    writer: Writer,
    sender: Sender,
    target: watch::Sender<Option<String>>,
    /// Held for reading while a request is on its way.
    on_the_way: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    answers: BTreeMap<String, usize>,
    left: usize,
    unexpected: Vec<String>,
    numbered: usize,
}

/// Events that are sent together, as often as need be.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) rows: Vec<Row>,
    pub(crate) body: String,
}

impl Clients {
    /// Clients that wait for a target.
    pub(crate) fn start(load: Load, ledger: &Path) -> io::Result<Arc<Self>> {
        let clients = Arc::new(Self {
            load,
            writer: Writer::open(ledger)?,
            sender: Sender::default(),
            target: watch::Sender::new(None),
            on_the_way: RwLock::default(),
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

    /// Sends no more, and returns when every request has its answer and the ledger knows it.
    pub(crate) async fn pause(&self) {
        self.target.send_replace(None);
        drop(self.on_the_way.write().await);
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            issued: state.ledger.entries.len(),
            acked: state.ledger.count(Fate::Acked),
            refused: state.ledger.count(Fate::Refused),
            unknown: state.ledger.count(Fate::Unknown),
            answers: state.answers.clone(),
            left: state.left,
            unexpected: state.unexpected.clone(),
        }
    }

    /// One event of its own, sent to `url` until it is acknowledged; its id.
    pub(crate) async fn send_fresh(&self, url: &str) -> Uuid {
        let request = self.issue(vec![Row::random(&mut Rng::new(), None)]).await;
        while !self.send(url, &request).await {
            sleep(RETRY_PAUSE).await;
        }
        request.rows[0].id
    }

    async fn run(self: Arc<Self>, client: Client) {
        let mut rng = Rng::with_seed(client.seed);
        let mut target = self.target.subscribe();
        let repeats = |rng: &mut Rng| self.load.repeat_every > 0 && rng.usize(..self.load.repeat_every) == 0;
        let (mut pending, mut last) = (None, None);
        // Ends with the process.
        while target.wait_for(Option::is_some).await.is_ok() {
            let on_the_way = self.on_the_way.read().await;
            let Some(url) = self.target.borrow().clone() else { continue };
            let request = match (pending.take(), &last) {
                (Some(request), _) => request,
                // What was acknowledged already, as a producer sends it that has not heard the answer.
                (None, Some(request)) if repeats(&mut rng) => Request::clone(request),
                _ => self.issue(self.rows(&mut rng, client.events)).await,
            };
            if client.leaves {
                self.leave(&url, &request, &mut rng).await;
            } else if self.send(&url, &request).await {
                last = Some(request);
            } else if rng.bool() {
                pending = Some(request);
            }
            drop(on_the_way);
            let pause = rng.u64(..=self.load.max_pause_ms);
            sleep(Duration::from_millis(pause).max(if pending.is_some() { RETRY_PAUSE } else { Duration::ZERO })).await;
        }
    }

    fn rows(&self, rng: &mut Rng, events: usize) -> Vec<Row> {
        let first = {
            let mut state = self.state();
            state.numbered += events;
            state.numbered - events
        };
        let every = self.load.refused_every;
        let is_refused = |number: usize| every > 0 && number % every == every / 2;
        (first..first + events).map(|number| Row::random(rng, is_refused(number).then_some(REFUSED))).collect()
    }

    /// Returns when the ledger has the intent on the disk.
    async fn issue(&self, rows: Vec<Row>) -> Request {
        let intents: Vec<_> = rows.iter().map(|row| (row.id, row.hash())).collect();
        self.writer.intend(&intents).await;
        let mut state = self.state();
        for (id, hash) in intents {
            state.ledger.issue(id, hash).expect("no two ids are the same");
        }
        Request::new(rows)
    }

    /// Whether there is a last word on every event.
    async fn send(&self, url: &str, request: &Request) -> bool {
        let Answer { status, fates, unexpected } = self.sender.send(url, request).await;
        let settled: Vec<_> = request.rows.iter().map(|row| row.id).zip(fates).collect();
        self.writer.settle(&settled).await;
        let mut state = self.state();
        for (id, fate) in &settled {
            state.ledger.settle(*id, *fate).expect("it was issued");
        }
        *state.answers.entry(status).or_default() += 1;
        if state.unexpected.len() < MAX_UNEXPECTED {
            state.unexpected.extend(unexpected);
        }
        settled.iter().all(|(_, fate)| *fate != Fate::Unknown)
    }

    async fn leave(&self, url: &str, request: &Request, rng: &mut Rng) {
        let left = self.sender.leave(url, request, rng).await;
        self.state().left += usize::from(left);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug)]
struct Client {
    seed: u64,
    events: usize,
    leaves: bool,
}

impl Load {
    fn clients(&self) -> impl Iterator<Item = Client> {
        let kinds = [(self.singles, 1, false), (self.arrays, self.array_events, false), (self.leavers, 1, true)];
        let clients = kinds.into_iter().flat_map(|(clients, events, leaves)| vec![(events, leaves); clients]);
        let seed = self.seed;
        clients.zip(0..).map(move |((events, leaves), number)| Client {
            seed: seed.wrapping_add(number),
            events,
            leaves,
        })
    }
}

impl Request {
    fn new(rows: Vec<Row>) -> Self {
        let events: Vec<String> = rows.iter().map(Row::json).collect();
        let body = if let [event] = events.as_slice() { event.clone() } else { format!("[{}]", events.join(",")) };
        Self { rows, body }
    }
}
