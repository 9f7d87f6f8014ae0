//! One program and one database under the oracle's load: [`Trial`]. A test starts a trial, causes a fault, and calls
//! [`Trial::check`], which reconciles producers, database, dead letters and event accounting.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use eye_harness::{Eye, NatsServer, eventually};
use eye_oracle::{LoadCounts, LoadProfile, Oracle, Reconciliation};
use fastrand::Rng;
use serde_json::Value;
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::store::{Kind, Store};
use crate::support::{self, DISK, HANG, config, program, until_sink_is};

/// The time limit after a fault for an acknowledgement, and with an empty queue for storing an event.
const RECOVERY: Duration = Duration::from_secs(5);
/// The time limit for the delivery of a backlog from one minute without the database.
const DELIVERY: Duration = Duration::from_secs(120);

/// The entry point of the oracle's process; see [`Oracle::start`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process of the oracle"]
async fn oracle() {
    eye_oracle::serve().await;
}

/// The full name of [`oracle`].
const ORACLE: &str = "reliability::trial::oracle";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Memory,
    Disk,
    /// A stream on a nats-server of its own.
    JetStream,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::JetStream];

    /// Combines every transport with every database of `kinds`.
    pub(crate) fn all_with<const N: usize>(kinds: [Kind; N]) -> impl Iterator<Item = (Self, Kind)> {
        Self::ALL.into_iter().flat_map(move |transport| kinds.map(|kind| (transport, kind)))
    }

    fn settings(self, nats: Option<&NatsServer>) -> String {
        match (self, nats) {
            (Self::Disk, _) => DISK.to_owned(),
            (Self::JetStream, Some(nats)) => format!(
                "transport = {{ type = \"jetstream\", url = \"{}\", stream = \"EYE\", max_bytes = {}, \
                 ack_wait_ms = 1000 }}",
                nats.url(),
                1 << 30,
            ),
            _ => "transport.type = \"memory\"".to_owned(),
        }
    }
}

/// The deviations from the usual setup.
pub(crate) struct Setup<'a> {
    /// More lines of the configuration.
    pub(crate) settings: &'a str,
    /// The URL of a proxy between the program and the database.
    pub(crate) proxy_url: Option<&'a str>,
    pub(crate) change_load: fn(&mut LoadProfile),
    /// The target of the clients, if it is not the HTTP source of the program.
    pub(crate) publish_to: Option<String>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { settings: "", proxy_url: None, change_load: |_| {}, publish_to: None }
    }
}

pub(crate) struct Trial {
    /// The fault, the transport and the database.
    name: String,
    pub(crate) store: Store,
    /// The server of the JetStream transport.
    pub(crate) nats: Option<NatsServer>,
    pub(crate) eye: Eye,
    pub(crate) oracle: Oracle,
    pub(crate) rng: Rng,
    publish_to: Option<String>,
    report: Reconciliation,
}

impl Trial {
    /// Starts the program and the oracle. The clients wait for [`load`](Self::load).
    pub(crate) async fn start(what: &str, transport: Transport, store: Store, settings: &str) -> Self {
        let setup = Setup { settings, ..Setup::default() };
        Self::start_with(what, transport, store, setup).await
    }

    /// Starts a trial as [`start`](Self::start) does, with an unusual setup.
    pub(crate) async fn start_with(what: &str, transport: Transport, store: Store, setup: Setup<'_>) -> Self {
        let name = format!("{what} | {transport:?} → {:?}", store.kind);
        let seed = seed();
        println!("{name}: EYE_TEST_SEED={seed}");
        let nats = (transport == Transport::JetStream).then(|| block_in_place(NatsServer::start));
        let mut config = config(&store, &format!("{}\n{}", setup.settings, transport.settings(nats.as_ref())));
        if let Some(url) = setup.proxy_url {
            config = config.replace(&store.url, url);
        }
        let eye = Eye::start(program(), &config);
        // With a durable transport the program is ready before its sink is, and before the table exists.
        until_sink_is(&eye, "ready").await;
        let mut load = LoadProfile::new(seed);
        (setup.change_load)(&mut load);
        let oracle = Oracle::start(ORACLE, load).await;
        let (rng, publish_to) = (Rng::with_seed(seed), setup.publish_to);
        Self { name, store, nats, eye, oracle, rng, publish_to, report: Reconciliation::default() }
    }

    /// Makes the clients send to the current address of the program.
    pub(crate) async fn load(&mut self) {
        let url = self.target();
        self.oracle.send_to(&url).await;
    }

    fn target(&self) -> String {
        self.publish_to.clone().unwrap_or_else(|| self.eye.url("/api/event/"))
    }

    /// Waits until this many more events are acknowledged.
    pub(crate) async fn acked(&mut self, events: usize) {
        let target = self.oracle.counts().await.acked + events;
        self.until("more events are acknowledged", |counts| counts.acked >= target).await;
    }

    /// Waits until this many more requests are answered with `status`.
    pub(crate) async fn answered(&mut self, status: &str, requests: usize) {
        let count = |counts: &LoadCounts| counts.answers.get(status).copied().unwrap_or_default();
        let target = count(&self.oracle.counts().await) + requests;
        self.until(&format!("more requests are answered with {status}"), |counts| count(counts) >= target).await;
    }

    /// Waits until the counts of the load satisfy a condition.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&LoadCounts) -> bool) {
        let deadline = Instant::now() + HANG;
        loop {
            let counts = self.oracle.counts().await;
            if holds(&counts) {
                return;
            }
            assert!(Instant::now() < deadline, "{}: not in time: {what}: {counts:?}\n{}", self.name, self.eye.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a random time up to `bound`.
    pub(crate) async fn random_pause(&mut self, bound: Duration) {
        tokio::time::sleep(bound.mul_f64(self.rng.f64())).await;
    }

    /// Kills the program and starts it again while the load continues.
    pub(crate) async fn kill_and_restart(&mut self) {
        block_in_place(|| {
            self.eye.kill();
            self.eye.restart();
        });
        self.load().await;
    }

    /// Checks the state after a fault, and stops the load. An event is acknowledged within 5 seconds, the backlog is
    /// delivered, and then an event is stored within 5 seconds. No answer violates the contract. The ledger agrees with
    /// the database, the queue is empty, and the event accounting balances.
    pub(crate) async fn check(&mut self) -> Reconciliation {
        let name = self.name.clone();
        self.send_fresh().await;
        let counts = self.oracle.pause().await;
        assert_eq!(counts.unexpected, Vec::<String>::new(), "{name}");
        self.delivered().await;
        let sent = Instant::now();
        let id = self.send_fresh().await;
        let rest = RECOVERY.saturating_sub(sent.elapsed());
        eventually(&format!("{name}: a new event is stored"), rest, async || self.store.has(id).await).await;
        self.report = self.delivered().await;
        assert!(self.report.is_consistent(), "{name}: {}\n{}", self.report, self.eye.logs());
        self.report.assert_consistent();
        support::audit(&name, &self.eye).await;
        if let Some(nats) = &self.nats {
            support::audit_stream(&name, nats).await;
        }
        self.report
    }

    async fn send_fresh(&mut self) -> Uuid {
        let url = self.target();
        let fresh = self.oracle.send_fresh(&url, RECOVERY).await;
        fresh.id.unwrap_or_else(|| panic!("{}: no event is acknowledged within 5 s:\n{}", self.name, self.eye.logs()))
    }

    /// Waits until no acknowledged event is missing, or until the deadline. The load must be paused.
    async fn delivered(&self) -> Reconciliation {
        let deadline = Instant::now() + DELIVERY;
        loop {
            let stored = self.store.fingerprints().await;
            let mut report = self.oracle.reconcile(&stored, &HashSet::new());
            if report.lost > 0 {
                report = self.oracle.reconcile(&stored, &self.dead_letter_ids());
            }
            if report.lost == 0 || Instant::now() > deadline {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the event ids of the dead letters.
    fn dead_letter_ids(&self) -> HashSet<Uuid> {
        let listed = self.dead_letters(&["list"]);
        let ids: Vec<&str> = listed.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
        if ids.is_empty() {
            return HashSet::new();
        }
        let letters = self.dead_letters(&[&["show"], ids.as_slice()].concat());
        letters.iter().map(|letter| letter["payload"]["id"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Returns the output of `eye dead-letters`.
    fn dead_letters(&self, arguments: &[&str]) -> Vec<Value> {
        let arguments = [&["dead-letters", "--config", "eye.toml"], arguments].concat();
        let output = block_in_place(|| support::command(self.eye.folder(), &arguments).output().unwrap());
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Prints the row of this trial for `scripts/soak`.
    pub(crate) fn report(&self, faults: usize) {
        support::print_result(&self.name, faults, &self.report);
    }
}

/// Returns the seed of all random choices: `EYE_TEST_SEED`, or a random one.
fn seed() -> u64 {
    let seed = std::env::var("EYE_TEST_SEED").ok();
    seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("EYE_TEST_SEED is a number"))
}

/// Returns the number of repetitions of a fault.
pub(crate) fn rounds() -> usize {
    support::rounds(5)
}
