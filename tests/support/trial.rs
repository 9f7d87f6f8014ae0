//! One program and one database under the oracle's load: something is done to them, then the oracle is asked.
//!
//! A program of tests has this as its module `trial`, beside `support`.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use eye_harness::{Eye, eventually};
use eye_oracle::{Load, Oracle, Verdict};
use fastrand::Rng;
use serde_json::Value;
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::store::Store;
use crate::support::{HANG, PROGRAM, config, readyz};

/// Within this time after a fault is over, a fresh event is stored.
const RECOVERY: Duration = Duration::from_secs(5);

/// Not a test, but the oracle's process: see [`Oracle::start`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the oracle, which other tests start"]
async fn oracle() {
    eye_oracle::serve().await;
}

/// The full name of [`oracle`].
const ORACLE: &str = "trial::oracle";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Memory,
    Disk,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    fn settings(self) -> &'static str {
        match self {
            Self::Memory => "transport.type = \"memory\"",
            Self::Disk => "transport.type = \"disk\"\ntransport.path = \"queue\"",
        }
    }
}

pub(crate) struct Trial {
    /// What is tried, and on what.
    name: String,
    pub(crate) store: Store,
    pub(crate) eye: Eye,
    pub(crate) oracle: Oracle,
    pub(crate) rng: Rng,
    verdict: Verdict,
}

impl Trial {
    /// Starts the program and the oracle. Clients wait for [`load`](Self::load).
    pub(crate) async fn start(what: &str, transport: Transport, store: Store, settings: &str) -> Self {
        Self::start_with(what, transport, store, settings, |_| {}).await
    }

    /// As [`start`](Self::start), with another load.
    pub(crate) async fn start_with(
        what: &str,
        transport: Transport,
        store: Store,
        settings: &str,
        change: impl FnOnce(&mut Load),
    ) -> Self {
        let name = format!("{what} | {transport:?} → {:?}", store.kind);
        let seed = seed();
        println!("{name}: EYE_TEST_SEED={seed}");
        let eye = Eye::start(program(), &config(&store, &format!("{settings}\n{}", transport.settings())));
        // With a durable transport the program is ready before its sink is, and before there is a table.
        eventually("the sink is ready", HANG, async || sink_is_ready(&eye).await).await;
        let mut load = Load::new(seed);
        change(&mut load);
        let oracle = Oracle::start(ORACLE, load).await;
        Self { name, store, eye, oracle, rng: Rng::with_seed(seed), verdict: Verdict::default() }
    }

    /// Lets the clients send to where the program listens now.
    pub(crate) async fn load(&mut self) {
        self.oracle.send_to(&self.eye.url("/api/event/")).await;
    }

    /// Waits until so many more events are acknowledged.
    pub(crate) async fn acked(&mut self, events: usize) {
        let target = self.oracle.counts().await.acked + events;
        let deadline = Instant::now() + HANG;
        loop {
            let counts = self.oracle.counts().await;
            if counts.acked >= target {
                return;
            }
            assert!(Instant::now() < deadline, "{}: too few are acknowledged: {counts:?}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A random moment within `bound`.
    pub(crate) async fn a_moment(&mut self, bound: Duration) {
        tokio::time::sleep(bound.mul_f64(self.rng.f64())).await;
    }

    /// Kills the program and starts it again, under load that goes on.
    pub(crate) async fn kill(&mut self) {
        block_in_place(|| {
            self.eye.kill();
            self.eye.restart();
        });
        self.load().await;
    }

    /// The fault is over: a fresh event is stored within 5 seconds, no producer got an answer that nobody should get,
    /// and when all is delivered that was taken, what producers were told is true of the database. Stops the load.
    pub(crate) async fn check(&mut self) -> Verdict {
        let name = self.name.clone();
        let over = Instant::now();
        let url = self.eye.url("/api/event/");
        let fresh = self.oracle.send_fresh(&url, RECOVERY).await;
        let logs = || self.eye.logs();
        let id = fresh.id.unwrap_or_else(|| panic!("{name}: nothing is acknowledged after 5 s:\n{}", logs()));
        let rest = RECOVERY.saturating_sub(over.elapsed());
        eventually(&format!("{name}: a fresh event is stored"), rest, async || self.store.has(id).await).await;
        let counts = self.oracle.pause().await;
        assert_eq!(counts.unexpected, Vec::<String>::new(), "{name}");
        let mut verdict = Verdict::default();
        let delivered = async || {
            verdict = self.oracle.verify(&self.store.rows().await, &self.dead());
            verdict.lost == 0
        };
        // What is lost shows in the verdict.
        let _ = tokio::time::timeout(HANG, eventually("all is delivered", 2 * HANG, delivered)).await;
        assert!(verdict.holds(), "{name}: {verdict}\n{}", self.eye.logs());
        verdict.assert();
        self.verdict = verdict;
        verdict
    }

    /// The ids of the events that are dead letters.
    fn dead(&self) -> HashSet<Uuid> {
        let folder = self.eye.folder().join("queue/dead-letters");
        let files = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        let files = files.filter(|file| file.extension().is_some_and(|end| end == "ndjson"));
        let lines: String = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
        let ids = lines.lines().map(|line| {
            let letter: Value = serde_json::from_str(line).unwrap();
            letter["event"]["id"].as_str().unwrap().parse().unwrap()
        });
        ids.collect()
    }

    /// Prints the line of a table that `scripts/soak` makes.
    pub(crate) fn report(&self, faults: usize) {
        let Verdict { issued, acked, unknown, refused, stored, dead, lost, duplicated, corrupt, .. } = self.verdict;
        let counts = [faults, issued, acked, unknown, refused, stored, dead, lost, duplicated, corrupt];
        println!("RESULT | {} | {} |", self.name, counts.map(|count| count.to_string()).join(" | "));
    }
}

async fn sink_is_ready(eye: &Eye) -> bool {
    let (_, state) = readyz(eye).await;
    let mut components = state["components"].as_array().into_iter().flatten();
    components.any(|component| component["name"] == "sinks.store" && component["state"] == "ready")
}

/// Where chance begins: anywhere, unless `EYE_TEST_SEED` says.
fn seed() -> u64 {
    let seed = std::env::var("EYE_TEST_SEED").ok();
    seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("EYE_TEST_SEED is a number"))
}

/// The program that was built with the tests, unless `EYE_TEST_PROGRAM` names another.
fn program() -> PathBuf {
    std::env::var_os("EYE_TEST_PROGRAM").unwrap_or_else(|| PROGRAM.into()).into()
}

/// How often a fault is tried: `EYE_TEST_ROUNDS`, 5 unless it is set.
pub(crate) fn rounds() -> usize {
    let rounds = std::env::var("EYE_TEST_ROUNDS").ok();
    rounds.map_or(5, |rounds| rounds.parse().expect("EYE_TEST_ROUNDS is a number"))
}
