//! One program and one database under the oracle's load: something is done to them, then the oracle is asked.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use eye_harness::{Eye, NatsServer, eventually};
use eye_oracle::{Counts, Load, Oracle, Verdict};
use fastrand::Rng;
use serde_json::Value;
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::store::{Kind, Store};
use crate::support::{self, HANG, config, program, readyz};

/// Within this time after a fault is over, events are acknowledged; when the queue is empty, they are stored.
const RECOVERY: Duration = Duration::from_secs(5);
/// For what has gathered in a queue while the database was away for a minute.
const DELIVERY: Duration = Duration::from_secs(120);

/// Not a test, but the oracle's process: see [`Oracle::start`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the oracle, which other tests start"]
async fn oracle() {
    eye_oracle::serve().await;
}

/// The full name of [`oracle`].
const ORACLE: &str = "reliability::trial::oracle";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Memory,
    Disk,
    /// With a nats-server of its own.
    JetStream,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::JetStream];

    /// With each database of `kinds`.
    pub(crate) fn all_with<const N: usize>(kinds: [Kind; N]) -> impl Iterator<Item = (Self, Kind)> {
        Self::ALL.into_iter().flat_map(move |transport| kinds.map(|kind| (transport, kind)))
    }

    fn settings(self, nats: Option<&NatsServer>) -> String {
        match (self, nats) {
            (Self::Disk, _) => "transport = { type = \"disk\", path = \"queue\" }".to_owned(),
            (Self::JetStream, Some(nats)) => format!(
                "transport = {{ type = \"jetstream\", url = \"{}\", stream = \"EYE\", max_bytes = {}, \
                 ack_wait_ms = 1000 }}",
                nats.url(),
                1 << 30,
            ),
            _ => "transport = { type = \"memory\" }".to_owned(),
        }
    }
}

/// What is not as usual.
pub(crate) struct Setup<'a> {
    /// Further lines of the configuration.
    pub(crate) settings: &'a str,
    /// Where the program finds the database, where it does not find it directly.
    pub(crate) through: Option<&'a str>,
    pub(crate) change_load: fn(&mut Load),
    /// Where the clients send to, where not by HTTP to the program.
    pub(crate) publish_to: Option<String>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { settings: "", through: None, change_load: |_| {}, publish_to: None }
    }
}

pub(crate) struct Trial {
    /// What is tried, and on what.
    name: String,
    pub(crate) store: Store,
    /// What the transport is, where it is JetStream.
    pub(crate) nats: Option<NatsServer>,
    pub(crate) eye: Eye,
    pub(crate) oracle: Oracle,
    pub(crate) rng: Rng,
    publish_to: Option<String>,
    verdict: Verdict,
}

impl Trial {
    /// Starts the program and the oracle. Clients wait for [`load`](Self::load).
    pub(crate) async fn start(what: &str, transport: Transport, store: Store, settings: &str) -> Self {
        let setup = Setup { settings, ..Setup::default() };
        Self::start_with(what, transport, store, setup).await
    }

    /// As [`start`](Self::start).
    pub(crate) async fn start_with(what: &str, transport: Transport, store: Store, setup: Setup<'_>) -> Self {
        let name = format!("{what} | {transport:?} → {:?}", store.kind);
        let seed = seed();
        println!("{name}: EYE_TEST_SEED={seed}");
        let nats = (transport == Transport::JetStream).then(|| block_in_place(NatsServer::start));
        let mut config = config(&store, &format!("{}\n{}", setup.settings, transport.settings(nats.as_ref())));
        if let Some(url) = setup.through {
            config = config.replace(&store.url, url);
        }
        let eye = Eye::start(program(), &config);
        // With a durable transport the program is ready before its sink is, and before there is a table.
        eventually("the sink is ready", HANG, async || sink_is_ready(&eye).await).await;
        let mut load = Load::new(seed);
        (setup.change_load)(&mut load);
        let oracle = Oracle::start(ORACLE, load).await;
        let (rng, publish_to) = (Rng::with_seed(seed), setup.publish_to);
        Self { name, store, nats, eye, oracle, rng, publish_to, verdict: Verdict::default() }
    }

    /// Lets the clients send to where the program listens now.
    pub(crate) async fn load(&mut self) {
        let url = self.target();
        self.oracle.send_to(&url).await;
    }

    fn target(&self) -> String {
        self.publish_to.clone().unwrap_or_else(|| self.eye.url("/api/event/"))
    }

    /// Waits until so many more events are acknowledged.
    pub(crate) async fn acked(&mut self, events: usize) {
        let target = self.oracle.counts().await.acked + events;
        self.until("more are acknowledged", |counts| counts.acked >= target).await;
    }

    /// Waits until so many more requests were answered with `status`.
    pub(crate) async fn answered(&mut self, status: &str, requests: usize) {
        let count = |counts: &Counts| counts.answers.get(status).copied().unwrap_or_default();
        let target = count(&self.oracle.counts().await) + requests;
        self.until(&format!("answered {status}"), |counts| count(counts) >= target).await;
    }

    /// Waits until the load is so far.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Counts) -> bool) {
        let deadline = Instant::now() + HANG;
        loop {
            let counts = self.oracle.counts().await;
            if is_so(&counts) {
                return;
            }
            assert!(Instant::now() < deadline, "{}: never {what}: {counts:?}\n{}", self.name, self.eye.logs());
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

    /// The fault is over: an event is acknowledged within 5 seconds; all is delivered that was taken, and then an event
    /// is stored within 5 seconds; no producer got an answer that nobody should get, what producers were told is true of
    /// the database, the queue is drained, and the program's books balance. Stops the load.
    pub(crate) async fn check(&mut self) -> Verdict {
        let name = self.name.clone();
        self.send_fresh().await;
        let counts = self.oracle.pause().await;
        assert_eq!(counts.unexpected, Vec::<String>::new(), "{name}");
        self.delivered().await;
        let sent = Instant::now();
        let id = self.send_fresh().await;
        let rest = RECOVERY.saturating_sub(sent.elapsed());
        eventually(&format!("{name}: a fresh event is stored"), rest, async || self.store.has(id).await).await;
        self.verdict = self.delivered().await;
        assert!(self.verdict.holds(), "{name}: {}\n{}", self.verdict, self.eye.logs());
        self.verdict.assert();
        support::audit(&name, &self.eye).await;
        if let Some(nats) = &self.nats {
            support::audit_stream(&name, nats).await;
        }
        self.verdict
    }

    async fn send_fresh(&mut self) -> Uuid {
        let url = self.target();
        let fresh = self.oracle.send_fresh(&url, RECOVERY).await;
        fresh.id.unwrap_or_else(|| panic!("{}: nothing is acknowledged in 5 s:\n{}", self.name, self.eye.logs()))
    }

    /// Waits until all that was acknowledged is delivered, or seems to be lost. While the load is paused.
    pub(crate) async fn delivered(&self) -> Verdict {
        let deadline = Instant::now() + DELIVERY;
        loop {
            let rows = self.store.rows().await;
            let mut verdict = self.oracle.verify(&rows, &HashSet::new());
            if verdict.lost > 0 {
                verdict = self.oracle.verify(&rows, &self.dead());
            }
            if verdict.lost == 0 || Instant::now() > deadline {
                return verdict;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The ids of the events that are dead letters.
    fn dead(&self) -> HashSet<Uuid> {
        let listed = self.dead_letters(&["list"]);
        let ids: Vec<&str> = listed.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
        if ids.is_empty() {
            return HashSet::new();
        }
        let letters = self.dead_letters(&[&["show"], ids.as_slice()].concat());
        letters.iter().map(|letter| letter["payload"]["id"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// What `eye dead-letters` prints.
    fn dead_letters(&self, arguments: &[&str]) -> Vec<Value> {
        let mut command = Command::new(program());
        command.arg("dead-letters").args(arguments).args(["--config", "eye.toml"]).current_dir(self.eye.folder());
        let output = block_in_place(|| command.env_remove("RUST_LOG").output().unwrap());
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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

/// How often a fault is tried.
pub(crate) fn rounds() -> usize {
    support::rounds(5)
}
