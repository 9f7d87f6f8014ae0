//! Instants with microseconds: what is accepted, and how they are written.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};

/// An instant from 1970 to 9999, in UTC, to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    micros: i64,
}

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const MIN: Self = Self { micros: 0 };
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self { micros: 253_402_300_799_999_999 };

    /// The current time.
    pub fn now() -> Self {
        Self { micros: Utc::now().timestamp_micros().clamp(Self::MIN.micros, Self::MAX.micros) }
    }

    /// Microseconds since 1970-01-01T00:00:00Z; `None` outside of the years 1970 to 9999.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.micros..=Self::MAX.micros).contains(&micros).then_some(Self { micros })
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub fn as_micros(self) -> i64 {
        self.micros
    }

    /// The same instant for the libraries that speak `chrono`.
    pub fn to_chrono(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.micros).expect("the years 1970 to 9999 are within chrono's range")
    }
}

/// RFC 3339 in UTC with 6 digits of fraction, or none when it is zero.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = if self.micros % 1_000_000 == 0 { SecondsFormat::Secs } else { SecondsFormat::Micros };
        f.write_str(&self.to_chrono().to_rfc3339_opts(format, true))
    }
}
