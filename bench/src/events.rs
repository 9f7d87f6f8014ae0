//! The events that are sent: 338 bytes of JSON each, written once and patched in place.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::LazyLock;
use std::time::SystemTime;

use chrono::DateTime;
use clap::ValueEnum;
use fastrand::Rng;
use uuid::Uuid;

/// Names that events have; the first ones are more frequent.
pub(crate) const NAMES: u16 = 200;
/// Categories. A name has one of its own, and in a quarter of its events any: then few events have both.
pub(crate) const CATEGORIES: u16 = 20;

/// Sessions that are open at once, over all connections.
const OPEN_SESSIONS: usize = 1000;
/// Events that a session has on average before it ends and another begins.
const EVENTS_A_SESSION: u32 = 20;
/// How many sessions there are when they are drawn at random.
const RANDOM_SESSIONS: u64 = 100_000;
/// Pages that `data` speaks of.
const ARTICLES: u32 = 1_000_000;

/// Which sessions events belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sessions {
    /// 1,000 open at once, each ends after about 20 events.
    ComeAndGo,
    /// Any of 100,000, at random.
    Random,
}

impl fmt::Display for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ComeAndGo => "come and go",
            Self::Random => "random",
        })
    }
}

/// One event, less what all events have in common.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: Uuid,
    /// Microseconds since 1970.
    pub(crate) timestamp_us: i64,
    pub(crate) session_id: Uuid,
    /// Below [`CATEGORIES`].
    category: u16,
    /// Below [`NAMES`].
    name: u16,
    /// Below [`ARTICLES`].
    article: u32,
}

/// Makes the events of one connection, each with a number of its own in its id.
pub(crate) struct Maker {
    run: u32,
    connection: u16,
    next: u64,
    sessions: Sessions,
    open: Vec<Uuid>,
    rng: Rng,
}

impl Maker {
    /// `run` tells its ids from those of other runs; `connection` from those of the `connections` of this one.
    pub(crate) fn new(run: u32, connection: u16, connections: usize, sessions: Sessions) -> Self {
        let mut rng = Rng::with_seed(u64::from(run) << 16 | u64::from(connection));
        let open = (0..(OPEN_SESSIONS / connections).max(4)).map(|_| Uuid::from_u128(rng.u128(..))).collect();
        Self { run, connection, next: 0, sessions, open, rng }
    }

    /// The number of the next event.
    pub(crate) fn next_number(&self) -> u64 {
        self.next
    }

    /// The next event, which happened at this time.
    pub(crate) fn make(&mut self, timestamp_us: i64) -> Event {
        let id = EventId { run: self.run, connection: self.connection, number: self.next }.uuid();
        self.next += 1;
        let skewed = self.rng.f32();
        let name = (skewed * skewed * f32::from(NAMES)) as u16;
        let category = if self.rng.u8(..4) == 0 { self.rng.u16(..CATEGORIES) } else { name % CATEGORIES };
        Event { id, timestamp_us, session_id: self.session(), category, name, article: self.rng.u32(..ARTICLES) }
    }

    fn session(&mut self) -> Uuid {
        match self.sessions {
            Sessions::Random => random_session(self.rng.u64(..RANDOM_SESSIONS)),
            Sessions::ComeAndGo => {
                let place = self.rng.usize(..self.open.len());
                let session = self.open[place];
                if self.rng.u32(..EVENTS_A_SESSION) == 0 {
                    self.open[place] = Uuid::from_u128(self.rng.u128(..));
                }
                session
            }
        }
    }
}

/// One of the sessions drawn at random: the same in every run.
fn random_session(number: u64) -> Uuid {
    let mut rng = Rng::with_seed(number);
    Uuid::from_u128(rng.u128(..))
}

/// What an id says: whose event it is, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventId {
    pub(crate) run: u32,
    pub(crate) connection: u16,
    /// Below 2^48.
    pub(crate) number: u64,
}

impl EventId {
    /// What version and variant of a random UUID take, between connection and number.
    const FIXED: u128 = 0x4000_8000 << 48;

    fn uuid(self) -> Uuid {
        let number = u128::from(self.number);
        Uuid::from_u128(u128::from(self.run) << 96 | u128::from(self.connection) << 80 | Self::FIXED | number)
    }

    pub(crate) fn from_uuid(id: Uuid) -> Self {
        let bits = id.as_u128();
        Self { run: (bits >> 96) as u32, connection: (bits >> 80) as u16, number: (bits as u64) & 0xffff_ffff_ffff }
    }
}

impl Event {
    pub(crate) fn category(&self) -> &'static str {
        static ALL: LazyLock<Vec<String>> = LazyLock::new(|| (0..CATEGORIES).map(category).collect());
        &ALL[usize::from(self.category)]
    }

    pub(crate) fn name(&self) -> &'static str {
        static ALL: LazyLock<Vec<String>> = LazyLock::new(|| (0..NAMES).map(name).collect());
        &ALL[usize::from(self.name)]
    }

    /// The text of `data`.
    pub(crate) fn data(&self) -> String {
        let mut data = String::with_capacity(DATA_START.len() + 6 + DATA_END.len());
        // Writing to a string does not fail.
        let _ = write!(data, "{DATA_START}{:06}{DATA_END}", self.article);
        data
    }
}

/// One of [`CATEGORIES`]; all are of the same length.
pub(crate) fn category(number: u16) -> String {
    format!("page interaction {number:02}")
}

/// One of [`NAMES`]; all are of the same length.
pub(crate) fn name(number: u16) -> String {
    format!("cta click {number:03}")
}

const DATA_START: &str = r#"{"host":"www.example.com","path":"/articles/"#;
const DATA_END: &str = r#"","element":"chat bubble","viewport":[1280,720],"referrer":"https://search.example/"}"#;

/// Bytes of the JSON of an event.
pub(crate) const JSON_BYTES: usize = 338;

/// Where the parts that differ lie in the JSON of an event.
struct Form {
    text: String,
    id: usize,
    session_id: usize,
    category: usize,
    name: usize,
    timestamp: usize,
    article: usize,
}

static FORM: LazyLock<Form> = LazyLock::new(|| {
    let (nobody, time) = (Uuid::nil(), "2026-01-01T00:00:00.000000Z");
    let (category, name) = (category(0), name(0));
    let head = format!(
        r#"{{"id":"{nobody}","session_id":"{nobody}","category":"{category}","name":"{name}","timestamp":"{time}","data":"#
    );
    let text = format!("{head}{DATA_START}000000{DATA_END}}}");
    let after = |key: &str| text.find(key).expect("the form has every key") + key.len();
    Form {
        id: after(r#""id":""#),
        session_id: after(r#""session_id":""#),
        category: after(r#""category":"page interaction "#),
        name: after(r#""name":"cta click "#),
        timestamp: after(r#""timestamp":""#),
        article: after("/articles/"),
        text,
    }
});

/// The JSON of one or more events, always of the same length, so that the next ones are written over the last.
pub(crate) struct Body {
    bytes: Vec<u8>,
    /// Where each event starts.
    starts: Vec<usize>,
    clock: Clock,
}

impl Body {
    /// An object for one event, an array for several.
    pub(crate) fn new(events: usize) -> Self {
        let text = FORM.text.as_str();
        let (open, close) = if events == 1 { ("", "") } else { ("[", "]") };
        let bytes = format!("{open}{}{close}", vec![text; events].join(",")).into_bytes();
        let starts = (0..events).map(|place| open.len() + place * (text.len() + 1)).collect();
        Self { bytes, starts, clock: Clock::default() }
    }

    /// Makes the next events and writes them over the last ones. Returns their numbers.
    pub(crate) fn fill(&mut self, maker: &mut Maker) -> Range<u64> {
        let first = maker.next_number();
        let now = now_us();
        for &start in &self.starts {
            write(&mut self.bytes[start..], &maker.make(now), &mut self.clock);
        }
        first..maker.next_number()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn write(text: &mut [u8], event: &Event, clock: &mut Clock) {
    let form = &*FORM;
    let mut uuid = |place: usize, value: Uuid| {
        let hyphenated = value.as_hyphenated();
        hyphenated.encode_lower(&mut text[place..place + 36]);
    };
    uuid(form.id, event.id);
    uuid(form.session_id, event.session_id);
    digits(&mut text[form.category..][..2], u64::from(event.category));
    digits(&mut text[form.name..][..3], u64::from(event.name));
    digits(&mut text[form.article..][..6], u64::from(event.article));
    clock.write(&mut text[form.timestamp..][..27], event.timestamp_us);
}

/// Fills the place with the last digits of the number.
fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Writes instants; what is the same for a whole second is worked out once.
#[derive(Default)]
struct Clock {
    second: i64,
    text: Vec<u8>,
}

impl Clock {
    fn write(&mut self, place: &mut [u8], timestamp_us: i64) {
        let second = timestamp_us.div_euclid(1_000_000);
        if second != self.second || self.text.is_empty() {
            let instant = DateTime::from_timestamp(second, 0).expect("of this age");
            self.second = second;
            self.text = instant.format("%Y-%m-%dT%H:%M:%S.000000Z").to_string().into_bytes();
        }
        place.copy_from_slice(&self.text);
        digits(&mut place[20..26], timestamp_us.rem_euclid(1_000_000) as u64);
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    now.as_micros() as i64
}

/// What became of the events of a run, by their numbers. Numbers are given in order; all that were sent count as
/// acknowledged, less what is said not to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) run: u32,
    /// When the run began, in microseconds since 1970: none of its events is older.
    pub(crate) since_us: i64,
    /// For each connection: how many events were sent, and those of them that were not acknowledged.
    pub(crate) connections: Vec<(u64, Vec<Range<u64>>)>,
}

impl Ledger {
    pub(crate) fn acked(&self) -> u64 {
        let not = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        self.connections.iter().map(|(sent, failed)| sent - not(failed)).sum()
    }

    /// Compares with the ids that are stored.
    pub(crate) fn audit(&self) -> Audit<'_> {
        let seen = self.connections.iter().map(|(sent, _)| vec![false; *sent as usize]).collect();
        Audit { ledger: self, seen, twice: 0, foreign: 0 }
    }
}

/// A comparison under way.
pub(crate) struct Audit<'a> {
    ledger: &'a Ledger,
    seen: Vec<Vec<bool>>,
    twice: u64,
    foreign: u64,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Events stored that were sent.
    pub(crate) stored: u64,
    /// Acknowledged, but not stored.
    pub(crate) lost: u64,
    /// Stored more than once.
    pub(crate) twice: u64,
    /// Stored, but not sent in this run.
    pub(crate) foreign: u64,
}

impl Audit<'_> {
    /// Notes an id that is stored.
    pub(crate) fn see(&mut self, id: Uuid) {
        let EventId { run, connection, number } = EventId::from_uuid(id);
        let connection = self.seen.get_mut(usize::from(connection)).filter(|_| run == self.ledger.run);
        match connection.and_then(|numbers| numbers.get_mut(number as usize)) {
            None => self.foreign += 1,
            Some(seen) if *seen => self.twice += 1,
            Some(seen) => *seen = true,
        }
    }

    pub(crate) fn verdict(self) -> Verdict {
        let mut verdict = Verdict { twice: self.twice, foreign: self.foreign, ..Verdict::default() };
        for (mut seen, (_, failed)) in self.seen.into_iter().zip(&self.ledger.connections) {
            verdict.stored += seen.iter().filter(|&&seen| seen).count() as u64;
            // Not acknowledged: it may be stored or not.
            failed.iter().for_each(|range| seen[range.start as usize..range.end as usize].fill(true));
            verdict.lost += seen.iter().filter(|&&seen| !seen).count() as u64;
        }
        verdict
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_body_has_what_the_rows_have() {
        let (mut to_send, mut to_write) = (maker(), maker());
        let mut body = Body::new(3);
        for _ in 0..2 {
            body.fill(&mut to_send);
        }
        to_write.make(0);
        to_write.make(0);
        to_write.make(0);
        let sent: Vec<Value> = serde_json::from_slice(body.bytes()).unwrap();
        assert_eq!(sent.len(), 3);
        for sent in sent {
            let written = to_write.make(0);
            let data: Value = serde_json::from_str(&written.data()).unwrap();
            let (id, session) = (written.id.to_string(), written.session_id.to_string());
            assert_eq!((&sent["id"], &sent["session_id"]), (&json!(id), &json!(session)));
            assert_eq!((&sent["category"], &sent["name"]), (&json!(written.category()), &json!(written.name())));
            assert_eq!(sent["data"], data);
            let timestamp = DateTime::parse_from_rfc3339(sent["timestamp"].as_str().unwrap()).unwrap();
            assert!((now_us() - timestamp.timestamp_micros()).abs() < 60_000_000);
        }
    }

    #[test]
    fn an_event_is_as_long_as_we_say() {
        assert_eq!(Body::new(1).bytes().len(), JSON_BYTES);
    }

    #[test]
    fn some_events_have_another_category_than_their_name() {
        let mut maker = maker();
        let others = (0..10_000).map(|_| maker.make(0)).filter(|event| event.category != event.name % CATEGORIES);
        let others = others.count();
        assert!((2000..3000).contains(&others), "{others}");
    }

    #[test]
    fn an_instant_is_written_to_the_microsecond() {
        let mut clock = Clock::default();
        let mut place = [0; 27];
        for (us, text) in [(0, "1970-01-01T00:00:00.000000Z"), (1_609_492_527_243_860, "2021-01-01T09:15:27.243860Z")] {
            clock.write(&mut place, us);
            assert_eq!(std::str::from_utf8(&place).unwrap(), text);
        }
    }

    #[test]
    fn an_id_says_whose_it_is() {
        let id = EventId { run: 0xdead_beef, connection: 0x1234, number: (1 << 48) - 2 };
        assert_eq!(EventId::from_uuid(id.uuid()), id);
        assert_eq!(id.uuid().get_version_num(), 4);
    }

    #[test]
    fn an_audit_finds_what_is_lost_doubled_and_not_ours() {
        let mut maker = maker();
        let ids: Vec<Uuid> = (0..10).map(|_| maker.make(0).id).collect();
        // Of ten, 1, 4 and 5 were not acknowledged.
        let ledger = Ledger { run: 7, since_us: 0, connections: vec![(10, vec![1..2, 4..6])] };
        assert_eq!(ledger.acked(), 7);
        let mut audit = ledger.audit();
        ids.iter().filter(|&&id| id != ids[3] && id != ids[4]).for_each(|&id| audit.see(id));
        audit.see(ids[9]);
        audit.see(Uuid::nil());
        assert_eq!(audit.verdict(), Verdict { stored: 8, lost: 1, twice: 1, foreign: 1 });
    }

    #[test]
    fn sessions_come_and_go_or_are_among_a_hundred_thousand() {
        let sessions = |sessions| {
            let mut maker = Maker::new(7, 0, 16, sessions);
            (0..10_000).map(|_| maker.make(0).session_id).collect::<std::collections::HashSet<_>>().len()
        };
        let come_and_go = sessions(Sessions::ComeAndGo);
        assert!((400..700).contains(&come_and_go), "{come_and_go}");
        assert!(sessions(Sessions::Random) > 9000);
    }

    fn maker() -> Maker {
        Maker::new(7, 0, 1, Sessions::ComeAndGo)
    }
}
