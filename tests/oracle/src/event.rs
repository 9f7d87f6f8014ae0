//! Random events that vary in every field: [`EventRow`].

use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::DateTime;
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

/// The name of the events that the database refuses.
pub const REFUSED: &str = "refused";

/// 2021-01-01T00:00:00Z, the start of the year of all events.
const START_MICROS: u64 = 1_609_459_200_000_000;
const YEAR_MICROS: u64 = 365 * 86_400 * 1_000_000;

/// An event as the database stores it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventRow {
    /// The id.
    pub id: Uuid,
    /// `session_id`.
    pub session_id: String,
    /// `category`.
    pub category: String,
    /// `name`.
    pub name: String,
    /// The JSON text.
    pub data: String,
    /// Microseconds since 1970-01-01T00:00:00Z.
    pub timestamp_micros: i64,
}

impl EventRow {
    /// Creates a random event, with this `name` if there is one.
    pub(crate) fn random(rng: &mut Rng, name: Option<&str>) -> Self {
        const NAMES: [&str; 4] = ["cta click", "CTA click ", "клик 鍵 🔑", "quote ' \" \\ percent % zero 0"];
        let micros = START_MICROS + rng.u64(..YEAR_MICROS);
        Self {
            id: uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid(),
            session_id: format!("session {}", rng.u16(..)),
            category: format!("category {}", rng.u8(..8)),
            name: name.unwrap_or_else(|| rng.choice(NAMES).unwrap_or_default()).to_owned(),
            data: data(rng).to_string(),
            timestamp_micros: i64::try_from(micros).expect("the year is 2021"),
        }
    }

    /// Returns the event as JSON for `POST /api/event/`.
    pub fn json(&self) -> String {
        let instant = DateTime::from_timestamp_micros(self.timestamp_micros).expect("the year is 2021");
        let fields = json!({
            "id": self.id,
            "session_id": self.session_id,
            "category": self.category,
            "name": self.name,
            "timestamp": instant.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        });
        let fields = fields.to_string();
        // The text of `data` is inserted as it is, since it is part of the fingerprint.
        format!("{},\"data\":{}}}", fields.strip_suffix('}').expect("the text is an object"), self.data)
    }

    /// Returns a hash of all fields, which differs for different events.
    pub fn fingerprint(&self) -> u64 {
        // Its keys are constant, so that all processes of one test program agree.
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

fn data(rng: &mut Rng) -> Value {
    match rng.u8(..8) {
        0 => json!(rng.i64(..)),
        1 => json!(rng.bool()),
        2 => json!("x".repeat(rng.usize(..4000))),
        3 => json!([null, "\u{1}\t\n", "ключ 鍵 🔑", rng.f64()]),
        _ => {
            json!({"host": "www.example.com", "path": format!("/{}", rng.u32(..)), "element": {"n": [rng.u8(..), {}]}})
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_fields_of_the_row() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..100 {
            let row = EventRow::random(&mut rng, None);
            let sent: Value = serde_json::from_str(&row.json()).unwrap();
            assert_eq!((&sent["session_id"], &sent["name"]), (&json!(row.session_id), &json!(row.name)));
            assert!(row.json().ends_with(&format!("\"data\":{}}}", row.data)));
            let instant = DateTime::parse_from_rfc3339(sent["timestamp"].as_str().unwrap()).unwrap();
            assert_eq!(instant.timestamp_micros(), row.timestamp_micros);
        }
    }

    #[test]
    fn every_field_changes_the_fingerprint() {
        let row = EventRow::random(&mut Rng::with_seed(1), None);
        let others = [
            EventRow { id: Uuid::nil(), ..row.clone() },
            EventRow { session_id: row.session_id.clone() + " ", ..row.clone() },
            EventRow { category: row.category.clone() + "é", ..row.clone() },
            EventRow { name: row.name.to_uppercase() + "!", ..row.clone() },
            EventRow { data: row.data.clone() + " ", ..row.clone() },
            EventRow { timestamp_micros: row.timestamp_micros + 1, ..row.clone() },
            // The same characters in other fields.
            EventRow { session_id: String::new(), category: row.session_id.clone() + &row.category, ..row.clone() },
        ];
        for other in others {
            assert_ne!(other.fingerprint(), row.fingerprint(), "{other:?}");
        }
    }
}
