//! The numbers under which `event_count` keeps hours, days and months in one column.
//!
//! An hour is the number of hours since 1970-01-01T00:00:00Z, at least 0. Days and months are negative: they are
//! numbers of days and of months since 1970 above [`FIRST_DAY`] and [`FIRST_MONTH`]. The years 1970 to 9999 need
//! 70,389,528 hours, 2,932,897 days and 96,360 months, so no two periods share a number. Both constants fit into 3
//! bytes, which is what SQLite stores an hour of this century in.

/// The period of 1970-01-01.
pub const FIRST_DAY: i32 = -4_000_000;

/// The period of January 1970.
pub const FIRST_MONTH: i32 = -5_000_000;
