//! Events that differ in all that an event can differ in.

use chrono::DateTime;
use fastrand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The name of events that the database is set up to refuse.
pub const REFUSED: &str = "refused";

/// 2021-01-01T00:00:00Z; events are of the year after it.
const START_MICROS: u64 = 1_609_459_200_000_000;
const YEAR_MICROS: u64 = 365 * 86_400 * 1_000_000;

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
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

impl Row {
    /// A new event; `name` is left to chance unless it is given.
    pub(crate) fn random(rng: &mut Rng, name: Option<&str>) -> Self {
        const NAMES: [&str; 4] = ["cta click", "CTA click ", "клик 鍵 🔑", "quote ' \" \\ percent % zero 0"];
        let micros = START_MICROS + rng.u64(..YEAR_MICROS);
        Self {
            id: uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid(),
            session_id: format!("session {}", rng.u16(..)),
            category: format!("category {}", rng.u8(..8)),
            name: name.unwrap_or_else(|| rng.choice(NAMES).unwrap_or_default()).to_owned(),
            data: data(rng).to_string(),
            timestamp_micros: i64::try_from(micros).expect("it is near 2021"),
        }
    }

    /// As `POST /api/event/` takes it.
    pub(crate) fn json(&self) -> String {
        let instant = DateTime::from_timestamp_micros(self.timestamp_micros).expect("it is near 2021");
        let fields = json!({
            "id": self.id,
            "session_id": self.session_id,
            "category": self.category,
            "name": self.name,
            "timestamp": instant.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        });
        let fields = fields.to_string();
        // As text, so that it is hashed as it is sent.
        format!("{},\"data\":{}}}", fields.strip_suffix('}').expect("it is an object"), self.data)
    }

    /// What tells two different events apart, ids included.
    pub(crate) fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.id);
        hasher.update(self.timestamp_micros.to_be_bytes());
        for text in [&self.session_id, &self.category, &self.name, &self.data] {
            hasher.update(text.len().to_be_bytes());
            hasher.update(text);
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
    fn what_is_sent_is_what_is_hashed() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..100 {
            let row = Row::random(&mut rng, None);
            let sent: Value = serde_json::from_str(&row.json()).unwrap();
            assert_eq!((&sent["session_id"], &sent["name"]), (&json!(row.session_id), &json!(row.name)));
            assert!(row.json().ends_with(&format!("\"data\":{}}}", row.data)));
            let instant = DateTime::parse_from_rfc3339(sent["timestamp"].as_str().unwrap()).unwrap();
            assert_eq!(instant.timestamp_micros(), row.timestamp_micros);
        }
    }

    #[test]
    fn whatever_differs_changes_the_hash() {
        let row = Row::random(&mut Rng::with_seed(1), None);
        let others = [
            Row { id: Uuid::nil(), ..row.clone() },
            Row { session_id: row.session_id.clone() + " ", ..row.clone() },
            Row { category: row.category.clone() + "é", ..row.clone() },
            Row { name: row.name.to_uppercase() + "!", ..row.clone() },
            Row { data: row.data.clone() + " ", ..row.clone() },
            Row { timestamp_micros: row.timestamp_micros + 1, ..row.clone() },
            // The same characters, in other fields.
            Row { session_id: String::new(), category: row.session_id.clone() + &row.category, ..row.clone() },
        ];
        for other in others {
            assert_ne!(other.hash(), row.hash(), "{other:?}");
        }
    }
}
