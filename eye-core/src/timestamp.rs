//! Points in time with microseconds: the accepted text forms, and the one form that is written.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::{Serialize, Serializer};

const MINUTES_PER_DAY: i64 = 1_440;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// A point in time from 1970 to 9999, in UTC, to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    micros: i64,
}

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const MIN: Self = Self { micros: 0 };
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self { micros: 253_402_300_799_999_999 };

    /// Returns the current time.
    pub fn now() -> Self {
        Self { micros: Utc::now().timestamp_micros().clamp(Self::MIN.micros, Self::MAX.micros) }
    }

    /// Parses a date, or a date and a time, as producers and queries write them.
    ///
    /// `2021-01-01`, `2021-01-01 09:15`, `2021-01-01T09:15:27.243860Z`, `2021-1-1 9:5:7,5 +0200`: UTC unless there is an
    /// offset, a bare date is its midnight in UTC, and digits after the microseconds are cut. A leap second, `23:59:60` in
    /// UTC, counts as the last microsecond before it.
    ///
    /// # Errors
    /// [`InvalidTimestamp`], whose text tells the producer what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let mut parser = TimestampParser { rest: text.as_bytes() };
        let (year, month, day) = parser.date()?;
        let micros_of_day = if parser.rest.is_empty() { 0 } else { parser.time_and_offset()? };
        let date = NaiveDate::from_ymd_opt(year as i32, month as u32, day as u32).ok_or(InvalidTimestamp::Date)?;
        let days = i64::from(date.to_epoch_days());
        Self::from_micros(days * SECONDS_PER_DAY * MICROS_PER_SECOND + micros_of_day).ok_or(InvalidTimestamp::Year)
    }

    /// Parses a JSON number: the time since 1970-01-01T00:00:00Z in seconds below 10^11, in milliseconds below 10^14, else
    /// in microseconds. The number is read as a decimal, so no digit is rounded; digits after the microseconds are cut.
    ///
    /// # Errors
    /// [`InvalidTimestamp`] for negative numbers and for years after 9999.
    pub fn parse_number(number: &str) -> Result<Self, InvalidTimestamp> {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() {
            return Ok(Self::MIN);
        }
        if is_negative {
            return Err(InvalidTimestamp::Negative);
        }
        // An exponent of more digits than an i64 has is out of range on either side.
        let exponent =
            exponent.parse::<i64>().unwrap_or(if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 });
        // The number is `0.SIGNIFICANT` times 10 to the power of `magnitude`.
        let magnitude = exponent.saturating_add(whole.len() as i64 - (digits.len() - significant.len()) as i64);
        let unit_digits = match magnitude {
            ..=11 => 6,
            12..=14 => 3,
            15..=18 => 0,
            _ => return Err(InvalidTimestamp::Year),
        };
        // At most 18 digits, which fit into an i64. None if the number is below a microsecond.
        let length = usize::try_from(magnitude + unit_digits).unwrap_or(0);
        let micros = significant.bytes().chain(std::iter::repeat(b'0')).take(length);
        let micros = micros.fold(0_i64, |micros, digit| micros * 10 + i64::from(digit - b'0'));
        Self::from_micros(micros).ok_or(InvalidTimestamp::Year)
    }

    /// Creates a timestamp from microseconds since 1970-01-01T00:00:00Z; `None` outside of the years 1970 to 9999.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.micros..=Self::MAX.micros).contains(&micros).then_some(Self { micros })
    }

    /// Returns the microseconds since 1970-01-01T00:00:00Z.
    pub fn as_micros(self) -> i64 {
        self.micros
    }

    /// Converts the timestamp for libraries that use `chrono`.
    pub fn to_chrono(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.micros).expect("the years 1970 to 9999 are within chrono's range")
    }

    /// Writes the text of [`Display`](fmt::Display) into `buffer`, without an allocation for each event and row.
    fn write(self, buffer: &mut [u8; 27]) -> &str {
        let (seconds, fraction) = (self.micros / MICROS_PER_SECOND, self.micros % MICROS_PER_SECOND);
        let second_of_day = seconds % SECONDS_PER_DAY;
        let date = self.to_chrono().date_naive();
        *buffer = *b"0000-00-00T00:00:00.000000Z";
        write_digits(&mut buffer[0..4], date.year().into());
        write_digits(&mut buffer[5..7], date.month().into());
        write_digits(&mut buffer[8..10], date.day().into());
        write_digits(&mut buffer[11..13], second_of_day / 3600);
        write_digits(&mut buffer[14..16], second_of_day / 60 % 60);
        write_digits(&mut buffer[17..19], second_of_day % 60);
        let length = if fraction == 0 {
            buffer[19] = b'Z';
            20
        } else {
            write_digits(&mut buffer[20..26], fraction);
            27
        };
        std::str::from_utf8(&buffer[..length]).expect("digits and signs are ASCII")
    }
}

/// Writes RFC 3339 in UTC with 6 digits of fraction, or none when it is zero.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.write(&mut [0; 27]))
    }
}

/// Serialises as the text of [`Display`](fmt::Display).
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.write(&mut [0; 27]))
    }
}

/// A text that is not a timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimestamp {
    /// The text has none of the accepted forms.
    #[error(
        "Datetime has wrong format. Use one of these formats instead: \
         YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z], YYYY-MM-DD."
    )]
    Format,
    /// The calendar has no such day.
    #[error("Datetime has a date that does not exist.")]
    Date,
    /// The clock has no such time.
    #[error("Datetime has a time that does not exist: it goes from 00:00:00 to 23:59:59.")]
    Time,
    /// An offset of 24 hours or more.
    #[error("Datetime has an offset that does not exist: it goes from -23:59 to +23:59.")]
    Offset,
    /// A number below zero.
    #[error("Datetime has a negative number: it must be 0 or more, counted from 1970-01-01T00:00:00Z.")]
    Negative,
    /// Too early or too late for the databases.
    #[error("Datetime is out of range: in UTC it must be within the years 1970 to 9999.")]
    Year,
}

/// A parser over the rest of a text.
struct TimestampParser<'a> {
    rest: &'a [u8],
}

impl TimestampParser<'_> {
    /// Reads year, month and day, which the calendar may not have.
    fn date(&mut self) -> Result<(i64, i64, i64), InvalidTimestamp> {
        let year = self.number(4, 4)?;
        self.expect(b"-")?;
        let month = self.number(1, 2)?;
        self.expect(b"-")?;
        let day = self.number(1, 2)?;
        Ok((year, month, day))
    }

    /// Reads the microseconds since the date's midnight in UTC: negative, or more than a day, where the offset moves the date.
    fn time_and_offset(&mut self) -> Result<i64, InvalidTimestamp> {
        self.expect(b"Tt ")?;
        let hour = self.number(1, 2)?;
        self.expect(b":")?;
        let minute = self.number(1, 2)?;
        let (mut second, mut micros) = (0, 0);
        if self.eat(b":").is_some() {
            second = self.number(1, 2)?;
            if self.eat(b".,").is_some() {
                micros = self.fraction()?;
            }
        }
        let utc_minute = hour * 60 + minute - self.offset_minutes()?;
        if second == 60 && (utc_minute + 1).rem_euclid(MINUTES_PER_DAY) == 0 {
            (second, micros) = (59, MICROS_PER_SECOND - 1);
        }
        if hour > 23 || minute > 59 || second > 59 {
            return Err(InvalidTimestamp::Time);
        }
        let seconds = utc_minute * 60 + second;
        Ok(seconds * MICROS_PER_SECOND + micros)
    }

    /// Reads the fraction's first 6 digits as microseconds; the others are cut, not rounded.
    fn fraction(&mut self) -> Result<i64, InvalidTimestamp> {
        let length = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let kept = length.min(6);
        let digits = self.number(kept.max(1), kept)?;
        self.rest = &self.rest[length - kept..];
        Ok(digits * 10_i64.pow(6 - kept as u32))
    }

    /// Reads the minutes east of UTC, at the end of the text.
    fn offset_minutes(&mut self) -> Result<i64, InvalidTimestamp> {
        if self.rest.len() > 1 {
            self.eat(b" ");
        }
        let Some(sign) = self.eat(b"Zz+-") else { return self.end(0) };
        if sign.eq_ignore_ascii_case(&b'Z') {
            return self.end(0);
        }
        let hours = self.number(2, 2)?;
        let minutes = if self.rest.is_empty() {
            0
        } else {
            self.eat(b":");
            self.number(2, 2)?
        };
        if hours > 23 || minutes > 59 {
            return Err(InvalidTimestamp::Offset);
        }
        let offset = hours * 60 + minutes;
        self.end(if sign == b'-' { -offset } else { offset })
    }

    fn end(&self, value: i64) -> Result<i64, InvalidTimestamp> {
        if self.rest.is_empty() { Ok(value) } else { Err(InvalidTimestamp::Format) }
    }

    /// Reads a number of `min` to `max` digits.
    fn number(&mut self, min: usize, max: usize) -> Result<i64, InvalidTimestamp> {
        let (mut value, mut length) = (0, 0);
        while length < max
            && let Some(digit) = self.rest.get(length).filter(|byte| byte.is_ascii_digit())
        {
            value = value * 10 + i64::from(digit - b'0');
            length += 1;
        }
        self.rest = &self.rest[length..];
        if length < min { Err(InvalidTimestamp::Format) } else { Ok(value) }
    }

    /// Takes the next byte if it is one of these.
    fn eat(&mut self, bytes: &[u8]) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        if !bytes.contains(&first) {
            return None;
        }
        self.rest = rest;
        Some(first)
    }

    fn expect(&mut self, bytes: &[u8]) -> Result<(), InvalidTimestamp> {
        self.eat(bytes).map(|_| ()).ok_or(InvalidTimestamp::Format)
    }
}

fn write_digits(place: &mut [u8], mut number: i64) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted_forms_are_read_to_the_microsecond_in_utc() {
        let table = [
            ("2021-01-01 09:15:27.243860", "2021-01-01T09:15:27.243860Z"),
            ("2021-01-01T09:15:27.243860", "2021-01-01T09:15:27.243860Z"),
            ("2021-01-01T09:15:27.243860Z", "2021-01-01T09:15:27.243860Z"),
            ("2021-01-01T09:15:27,243860Z", "2021-01-01T09:15:27.243860Z"),
            ("2021-01-01T09:15:27.2Z", "2021-01-01T09:15:27.200000Z"),
            ("2021-01-01T09:15:27.24", "2021-01-01T09:15:27.240000Z"),
            ("2021-01-01T09:15:27.243", "2021-01-01T09:15:27.243000Z"),
            ("2021-01-01T09:15:27.2438", "2021-01-01T09:15:27.243800Z"),
            ("2021-01-01T09:15:27.24386", "2021-01-01T09:15:27.243860Z"),
            ("2021-01-01T09:15:27.0000019", "2021-01-01T09:15:27.000001Z"),
            ("2021-01-01T09:15:27.99999999", "2021-01-01T09:15:27.999999Z"),
            ("2021-01-01T09:15:27.999999999Z", "2021-01-01T09:15:27.999999Z"),
            ("2021-01-01T09:15:27.9999999999999999999999999999+00:00", "2021-01-01T09:15:27.999999Z"),
            ("2021-01-01T09:15:27.000000", "2021-01-01T09:15:27Z"),
            ("2021-01-01T09:15:27", "2021-01-01T09:15:27Z"),
            ("2021-01-01 09:15", "2021-01-01T09:15:00Z"),
            ("2021-01-01T09:15Z", "2021-01-01T09:15:00Z"),
            ("2021-01-01T09:15+02:00", "2021-01-01T07:15:00Z"),
            ("2021-01-01T09:15:27.5+02:00", "2021-01-01T07:15:27.500000Z"),
            ("2021-01-01T09:15:27+0200", "2021-01-01T07:15:27Z"),
            ("2021-01-01T09:15:27+02", "2021-01-01T07:15:27Z"),
            ("2021-01-01T09:15:27-05:30", "2021-01-01T14:45:27Z"),
            ("2021-01-01T09:15:27-0530", "2021-01-01T14:45:27Z"),
            ("2021-01-01T09:15:27-00:00", "2021-01-01T09:15:27Z"),
            ("2021-01-01T00:00:00+23:59", "2020-12-31T00:01:00Z"),
            ("2021-01-01T23:59:59-23:59", "2021-01-02T23:58:59Z"),
            ("2021-1-1 9:15:27", "2021-01-01T09:15:27Z"),
            ("2021-1-01", "2021-01-01T00:00:00Z"),
            ("2021-1-1 9:5:7", "2021-01-01T09:05:07Z"),
            ("2021-01-01T09:1", "2021-01-01T09:01:00Z"),
            ("2021-01-01t09:15:27z", "2021-01-01T09:15:27Z"),
            ("2021-01-01 09:15:27 +02:00", "2021-01-01T07:15:27Z"),
            ("2021-01-01T09:15:27.5 Z", "2021-01-01T09:15:27.500000Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
            ("2017-01-01T00:59:60.5+01:00", "2016-12-31T23:59:59.999999Z"),
            ("2016-12-31T18:59:60 -0500", "2016-12-31T23:59:59.999999Z"),
            ("2021-12-31", "2021-12-31T00:00:00Z"),
            ("2021-01-01T00:00:00", "2021-01-01T00:00:00Z"),
            ("2021-01-01T23:59:59.999999", "2021-01-01T23:59:59.999999Z"),
            ("2020-02-29", "2020-02-29T00:00:00Z"),
            ("2000-02-29", "2000-02-29T00:00:00Z"),
            ("2400-02-29", "2400-02-29T00:00:00Z"),
            ("1970-01-01", "1970-01-01T00:00:00Z"),
            ("1970-01-01T02:00:00+02:00", "1970-01-01T00:00:00Z"),
            ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.9999999", "9999-12-31T23:59:59.999999Z"),
        ];
        for (text, expected) in table {
            assert_eq!(Timestamp::parse(text).map(|read| read.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn refused_forms_say_why() {
        use InvalidTimestamp::*;
        let table = [
            ("", Format),
            (" 2021-01-01", Format),
            ("2021-01-01 ", Format),
            ("now", Format),
            ("1609492527", Format),
            ("1609492527.243", Format),
            ("2021", Format),
            ("2021-01", Format),
            ("2021-001", Format),
            ("2021-W01-1", Format),
            ("20210101", Format),
            ("20210101T091527Z", Format),
            ("21-01-01", Format),
            ("02021-01-01", Format),
            ("-2021-01-01", Format),
            ("+2021-01-01", Format),
            ("10000-01-01", Format),
            ("2021-001-01", Format),
            ("2021-01-001", Format),
            ("2021/01/01", Format),
            ("01.01.2021", Format),
            ("2021-01-01Z", Format),
            ("2021-01-01+02:00", Format),
            ("2021-01-01T", Format),
            ("2021-01-01T09", Format),
            ("2021-01-01T09:", Format),
            ("2021-01-01T009:15", Format),
            ("2021-01-01T09:15:", Format),
            ("2021-01-01T09:15:027", Format),
            ("2021-01-01T09:15.5", Format),
            ("2021-01-01T09:15:27.", Format),
            ("2021-01-01T09:15:27.Z", Format),
            ("2021-01-01T09:15:27.5.5", Format),
            ("2021-01-01T09:15:27  Z", Format),
            ("2021-01-01T09:15:27 ", Format),
            ("2021-01-01T09:15:27ZZ", Format),
            ("2021-01-01T09:15:27+", Format),
            ("2021-01-01T09:15:27+2", Format),
            ("2021-01-01T09:15:27+020", Format),
            ("2021-01-01T09:15:27+02:", Format),
            ("2021-01-01T09:15:27+02:0", Format),
            ("2021-01-01T09:15:27+02:000", Format),
            ("2021-01-01T09:15:27+02:00Z", Format),
            ("2021-01-01T09:15:27 CET", Format),
            ("2021-01-01T09:15:27 Europe/Berlin", Format),
            ("2021-01-01T09:15:27[Europe/Berlin]", Format),
            ("2021-01-01T09:15:27Z[UTC]", Format),
            ("2021-01-01T09:15:27 PM", Format),
            ("2021-01-01_09:15:27", Format),
            ("2021-01-01  09:15:27", Format),
            ("Fri, 01 Jan 2021 09:15:27 GMT", Format),
            ("٢٠٢١-٠١-٠١", Format),
            ("2021-01-01T09:15:27\0", Format),
            ("2021-00-01", Date),
            ("2021-13-01", Date),
            ("2021-01-00", Date),
            ("2021-01-32", Date),
            ("2021-02-29", Date),
            ("2021-04-31", Date),
            ("2100-02-29", Date),
            ("2200-02-29", Date),
            ("2021-01-01T24:00:00", Time),
            ("2021-01-01T24:00", Time),
            ("2021-01-01T09:60:00", Time),
            ("2021-01-01T09:15:60", Time),
            ("2021-01-01T23:59:61", Time),
            ("2021-01-01T23:59:60+01:00", Time),
            ("2021-01-01T09:15:27+24:00", Offset),
            ("2021-01-01T09:15:27-24", Offset),
            ("2021-01-01T09:15:27+9999", Offset),
            ("2021-01-01T09:15:27+02:60", Offset),
            ("1969-12-31T23:59:59.999999Z", Year),
            ("1970-01-01T00:00:00+00:01", Year),
            ("0000-01-01", Year),
            ("9999-12-31T23:59:59-00:01", Year),
        ];
        for (text, expected) in table {
            assert_eq!(Timestamp::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn number_is_seconds_milliseconds_or_microseconds() {
        let table = [
            ("0", "1970-01-01T00:00:00Z"),
            ("-0", "1970-01-01T00:00:00Z"),
            ("-0.0e5", "1970-01-01T00:00:00Z"),
            ("0.0000019", "1970-01-01T00:00:00.000001Z"),
            ("1609492527", "2021-01-01T09:15:27Z"),
            ("1609492527.24386", "2021-01-01T09:15:27.243860Z"),
            ("1609492527.2438609999", "2021-01-01T09:15:27.243860Z"),
            ("1.60949252724386e9", "2021-01-01T09:15:27.243860Z"),
            ("1609492527243860e-6", "2021-01-01T09:15:27.243860Z"),
            ("1609492527243", "2021-01-01T09:15:27.243000Z"),
            ("1609492527243.8601", "2021-01-01T09:15:27.243860Z"),
            ("1609492527243860", "2021-01-01T09:15:27.243860Z"),
            ("1609492527243860.9", "2021-01-01T09:15:27.243860Z"),
            ("99999999999", "5138-11-16T09:46:39Z"),
            ("100000000000", "1973-03-03T09:46:40Z"),
            ("99999999999999.999", "5138-11-16T09:46:39.999999Z"),
            ("100000000000000", "1973-03-03T09:46:40Z"),
            ("253402300799999999", "9999-12-31T23:59:59.999999Z"),
            ("1e-400", "1970-01-01T00:00:00Z"),
        ];
        for (number, expected) in table {
            assert_eq!(
                Timestamp::parse_number(number).map(|time| time.to_string()),
                Ok(expected.to_owned()),
                "{number}"
            );
        }
        for number in ["253402300800000000", "1e300", "999999999999999999999", "1e9999999999999999999999"] {
            assert_eq!(Timestamp::parse_number(number), Err(InvalidTimestamp::Year), "{number}");
        }
        for number in ["-1", "-0.1", "-1e-9"] {
            assert_eq!(Timestamp::parse_number(number), Err(InvalidTimestamp::Negative), "{number}");
        }
    }

    #[test]
    fn the_bounds_are_the_years_1970_and_9999() {
        assert_eq!(Timestamp::parse("1970-01-01T00:00:00Z"), Ok(Timestamp::MIN));
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59.999999Z"), Ok(Timestamp::MAX));
        assert_eq!(Timestamp::from_micros(Timestamp::MIN.micros - 1), None);
        assert_eq!(Timestamp::from_micros(Timestamp::MAX.micros + 1), None);
    }

    #[test]
    fn display_can_be_padded() {
        assert_eq!(format!("{:>22}|", Timestamp::MIN), "  1970-01-01T00:00:00Z|");
    }

    #[test]
    fn serialises_as_its_text() {
        let json = serde_json::to_string(&Timestamp::MAX).expect("a string");
        assert_eq!(json, "\"9999-12-31T23:59:59.999999Z\"");
    }

    proptest! {
        #[test]
        fn reads_and_writes_as_chrono_does(micros in Timestamp::MIN.micros..=Timestamp::MAX.micros) {
            let timestamp = Timestamp { micros };
            let format = if micros % MICROS_PER_SECOND == 0 { "%FT%TZ" } else { "%FT%T%.6fZ" };
            let text = timestamp.to_string();
            prop_assert_eq!(&text, &timestamp.to_chrono().format(format).to_string());
            prop_assert_eq!(Timestamp::parse(&text), Ok(timestamp));
        }

        /// A number with a fraction and an exponent, against integer arithmetic.
        #[test]
        fn number_is_cut_to_microseconds_in_its_unit(
            digits in "[1-9][0-9]{0,17}",
            fraction in "[0-9]{0,9}",
            shift in 0..30_usize,
        ) {
            let whole: i128 = digits.parse().expect("digits");
            let micros_of_unit: i128 = match digits.len() {
                ..=11 => 1_000_000,
                12..=14 => 1_000,
                _ => 1,
            };
            let nanos: i128 = format!("{fraction:0<9}").parse().expect("digits");
            let micros = whole * micros_of_unit + nanos * micros_of_unit / 1_000_000_000;
            let expected = i64::try_from(micros).ok().and_then(Timestamp::from_micros).ok_or(InvalidTimestamp::Year);
            let point = if fraction.is_empty() { "" } else { "." };
            let zeros = "0".repeat(shift);
            for number in [
                format!("{digits}{point}{fraction}"),
                format!("{digits}{fraction}e-{}", fraction.len()),
                format!("0.{zeros}{digits}{fraction}E+{}", digits.len() + shift),
                format!("{digits}{fraction}{zeros}.0e-{}", fraction.len() + shift),
            ] {
                prop_assert_eq!(Timestamp::parse_number(&number), expected, "{}", number);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>(), near in "[0-9TZ:.,+ -]{0,40}") {
            for text in [text, near] {
                if let Ok(timestamp) = Timestamp::parse(&text) {
                    prop_assert!(Timestamp::from_micros(timestamp.as_micros()).is_some());
                }
            }
        }
    }
}
