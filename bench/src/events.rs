//! Generated events: random, reproducible from a seed, and recognisable by their id.
//!
//! Each connection of a load has an [`EventGenerator`] of its own. It numbers its events, and the number is part of the
//! event's id ([`NumberedId`]). So a stored id tells which run and which connection sent it.

use std::fmt;
use std::sync::LazyLock;
use std::time::SystemTime;

use clap::ValueEnum;
use fastrand::Rng;
use uuid::Uuid;

/// Number of event names; low numbers are more frequent.
const NAMES: u16 = 200;
/// Number of categories. A name has one category, but a quarter of its events have a random one. So few events have a
/// rare pair of both.
const CATEGORIES: u16 = 20;
/// Number of pages that `data` refers to.
const ARTICLES: u32 = 1_000_000;

/// Sessions that are open at the same time, over all connections.
const OPEN_SESSIONS: usize = 1_000;
/// Average number of events in a session.
const EVENTS_PER_SESSION: u32 = 20;
/// Number of sessions of [`SessionPattern::Random`].
const RANDOM_SESSIONS: u64 = 100_000;

/// The sessions that events belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SessionPattern {
    /// 1,000 open sessions; each ends after about 20 events, and a new one begins
    ComeAndGo,
    /// One of 100,000 sessions at random
    Random,
}

impl fmt::Display for SessionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ComeAndGo => "come and go",
            Self::Random => "random",
        })
    }
}

/// One event, without the text that all events share.
#[derive(Clone, Debug)]
pub(crate) struct GeneratedEvent {
    pub(crate) id: Uuid,
    /// Microseconds since 1970.
    pub(crate) timestamp_us: i64,
    pub(crate) session_id: Uuid,
    /// Below [`CATEGORIES`].
    pub(crate) category: u16,
    /// Below [`NAMES`].
    pub(crate) name: u16,
    /// Below [`ARTICLES`].
    pub(crate) article: u32,
}

/// A generator of the events of one connection.
pub(crate) struct EventGenerator {
    run: u32,
    connection: u16,
    next_number: u64,
    pattern: SessionPattern,
    open_sessions: Vec<Uuid>,
    rng: Rng,
}

impl EventGenerator {
    /// Creates the generator of one of the `connections` of a run. `run` must differ between runs into one table.
    pub(crate) fn new(run: u32, connection: u16, connections: usize, pattern: SessionPattern) -> Self {
        let mut rng = Rng::with_seed(u64::from(run) << 16 | u64::from(connection));
        let open_sessions = (0..(OPEN_SESSIONS / connections).max(4)).map(|_| Uuid::from_u128(rng.u128(..))).collect();
        Self { run, connection, next_number: 0, pattern, open_sessions, rng }
    }

    /// Returns the number of the next event.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Generates the next event, with this timestamp in microseconds since 1970.
    pub(crate) fn next_event(&mut self, timestamp_us: i64) -> GeneratedEvent {
        let id = NumberedId { run: self.run, connection: self.connection, number: self.next_number }.to_uuid();
        self.next_number += 1;
        let skewed = self.rng.f32();
        let name = (skewed * skewed * f32::from(NAMES)) as u16;
        let category = if self.rng.u8(..4) == 0 { self.rng.u16(..CATEGORIES) } else { name % CATEGORIES };
        let session_id = self.next_session();
        GeneratedEvent { id, timestamp_us, session_id, category, name, article: self.rng.u32(..ARTICLES) }
    }

    fn next_session(&mut self) -> Uuid {
        match self.pattern {
            SessionPattern::Random => random_session(self.rng.u64(..RANDOM_SESSIONS)),
            SessionPattern::ComeAndGo => {
                let index = self.rng.usize(..self.open_sessions.len());
                let session = self.open_sessions[index];
                if self.rng.u32(..EVENTS_PER_SESSION) == 0 {
                    self.open_sessions[index] = Uuid::from_u128(self.rng.u128(..));
                }
                session
            }
        }
    }
}

/// Returns a session of [`SessionPattern::Random`], the same in every run.
fn random_session(number: u64) -> Uuid {
    Uuid::from_u128(Rng::with_seed(number).u128(..))
}

/// The content of an event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberedId {
    pub(crate) run: u32,
    pub(crate) connection: u16,
    /// Below 2^48.
    pub(crate) number: u64,
}

impl NumberedId {
    /// Version and variant bits of a random UUID; they lie between connection and number.
    const FIXED_BITS: u128 = 0x4000_8000 << 48;

    fn to_uuid(self) -> Uuid {
        let number = u128::from(self.number);
        Uuid::from_u128(u128::from(self.run) << 96 | u128::from(self.connection) << 80 | Self::FIXED_BITS | number)
    }

    pub(crate) fn from_uuid(id: Uuid) -> Self {
        let bits = id.as_u128();
        Self { run: (bits >> 96) as u32, connection: (bits >> 80) as u16, number: (bits as u64) & 0xffff_ffff_ffff }
    }
}

impl GeneratedEvent {
    pub(crate) fn category(&self) -> &'static str {
        static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| (0..CATEGORIES).map(category_text).collect());
        &TEXTS[usize::from(self.category)]
    }

    pub(crate) fn name(&self) -> &'static str {
        static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| (0..NAMES).map(name_text).collect());
        &TEXTS[usize::from(self.name)]
    }

    /// Returns the JSON text of `data`.
    pub(crate) fn data(&self) -> String {
        data_text(self.article)
    }
}

/// Returns the text of a category. All categories have the same length.
pub(crate) fn category_text(number: u16) -> String {
    format!("page interaction {number:02}")
}

/// Returns the text of a name. All names have the same length.
pub(crate) fn name_text(number: u16) -> String {
    format!("cta click {number:03}")
}

/// Returns the text of `data`. It always has the same length.
pub(crate) fn data_text(article: u32) -> String {
    format!(
        r#"{{"host":"www.example.com","path":"/articles/{article:06}","element":"chat bubble","viewport":[1280,720],"referrer":"https://search.example/"}}"#
    )
}

/// Returns the current time in microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    now.as_micros() as i64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn quarter_of_events_has_a_random_category() {
        let mut generator = EventGenerator::new(7, 0, 1, SessionPattern::ComeAndGo);
        let events = (0..10_000).map(|_| generator.next_event(0));
        let others = events.filter(|event| event.category != event.name % CATEGORIES).count();
        assert!((2_000..3_000).contains(&others), "{others}");
    }

    #[test]
    fn numbered_id_survives_a_round_trip() {
        let id = NumberedId { run: 0xdead_beef, connection: 0x1234, number: (1 << 48) - 2 };
        assert_eq!(NumberedId::from_uuid(id.to_uuid()), id);
        assert_eq!(id.to_uuid().get_version_num(), 4);
    }

    #[test]
    fn session_patterns_differ_in_distinct_sessions() {
        let distinct = |pattern| {
            let mut generator = EventGenerator::new(7, 0, 16, pattern);
            (0..10_000).map(|_| generator.next_event(0).session_id).collect::<HashSet<_>>().len()
        };
        let come_and_go = distinct(SessionPattern::ComeAndGo);
        assert!((400..700).contains(&come_and_go), "{come_and_go}");
        assert!(distinct(SessionPattern::Random) > 9_000);
    }
}
