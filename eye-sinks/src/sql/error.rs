//! The one place that decides what a database's error means.

use std::borrow::Cow;
use std::time::Duration;

use eye_core::sink::WriteError;
use eye_core::store::StoreError;
use sea_orm::{DbErr, RuntimeErr};
use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::sqlite::SqliteError;

/// What an error says of trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The database is away, busy or not fit to work; the events are not at fault.
    Retry,
    /// An event is at fault.
    Reject,
    /// Neither is certain.
    Unknown,
}

/// The error of a write that took too long.
pub(super) fn timed_out(doing: &str, after: Duration) -> sqlx::Error {
    let message = format!("{doing} took longer than {} s", after.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}

/// SQLite found no room on the disk for the file of shared memory beside a database. Its message is "disk I/O error".
const SQLITE_IOERR_SHMSIZE: i32 = 4874;

/// Whether a SQLite file that could not be opened may be open to us later, without anybody changing the configuration: another
/// process holds it, or the disk is full.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    // BUSY, LOCKED, FULL.
    sqlite_code(error).is_some_and(|code| matches!(code & 0xff, 5 | 6 | 13) || code == SQLITE_IOERR_SHMSIZE)
}

fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<SqliteError>()?;
    error.code()?.parse().ok()
}

/// Whether the events may be at fault: so the database says, or what checks them before it.
pub(super) fn may_be_refusal(error: &sqlx::Error) -> bool {
    match meaning(error) {
        Meaning::Retry => false,
        Meaning::Reject => true,
        Meaning::Unknown => matches!(error, sqlx::Error::Database(_)),
    }
}

/// Whether an event is there already.
pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(DatabaseError::is_unique_violation)
}

/// What a failed write means.
pub(super) fn write_error(error: &sqlx::Error) -> WriteError {
    let reason = reason(error).into_owned();
    match meaning(error) {
        Meaning::Retry => WriteError::retry(reason),
        Meaning::Reject => WriteError::reject(reason),
        Meaning::Unknown => WriteError::Unknown { reason },
    }
}

/// What a failed connect means: no event is at fault, whatever the code.
pub(super) fn connect_error(error: &sqlx::Error) -> WriteError {
    WriteError::retry(reason(error))
}

/// What a failed preparation means: nothing is refused for good but a schema from the future.
pub(super) fn prepare_error(error: &DbErr) -> WriteError {
    match error {
        DbErr::Migration(reason) => WriteError::reject(reason),
        _ => WriteError::retry(orm_reason(error)),
    }
}

/// What a failed query means.
pub(super) fn store_error(error: &DbErr) -> StoreError {
    let reason = orm_reason(error);
    let is_away = match (error, sqlx_error(error)) {
        (_, Some(error)) => meaning(error) == Meaning::Retry,
        (DbErr::ConnectionAcquire(_) | DbErr::Conn(_), None) => true,
        _ => false,
    };
    if is_away { StoreError::Unavailable { reason } } else { StoreError::Failed { reason } }
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

fn orm_reason(error: &DbErr) -> String {
    sqlx_error(error).map_or_else(|| error.to_string(), |error| reason(error).into_owned())
}

/// The message alone: PostgreSQL's details quote the row.
pub(super) fn reason(error: &sqlx::Error) -> Cow<'_, str> {
    match error {
        error if sqlite_code(error) == Some(SQLITE_IOERR_SHMSIZE) => "database or disk is full".into(),
        sqlx::Error::Database(error) => error.message().into(),
        sqlx::Error::Io(error) => error.to_string().into(),
        sqlx::Error::PoolTimedOut => "no connection within the time allowed".into(),
        // sqlx names a feature of its own that would encrypt the password alone.
        sqlx::Error::Configuration(error) if error.to_string().starts_with("RSA auth backend disabled") => {
            "the server takes this user's password only over TLS (caching_sha2_password): let it offer TLS, and remove \
             ssl-mode=DISABLED from the URL if it is there"
                .into()
        }
        other => other.to_string().into(),
    }
}

fn meaning(error: &sqlx::Error) -> Meaning {
    match error {
        sqlx::Error::Database(error) => database_meaning(&**error),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Configuration(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => Meaning::Retry,
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Meaning::Reject,
        _ => Meaning::Unknown,
    }
}

fn database_meaning(error: &dyn DatabaseError) -> Meaning {
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<SqliteError>().is_some() {
        return code.parse().map_or(Meaning::Unknown, |code| sqlite_meaning(code, error.message()));
    }
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return mysql_meaning(error.number(), &code);
    }
    sqlstate_meaning(&code)
}

/// PostgreSQL, and what MySQL shares with it.
fn sqlstate_meaning(code: &str) -> Meaning {
    match code {
        // A missing right or table, or a standby that takes no writes: the operator or a migration repairs it.
        "42501" | "42P01" | "25006" => return Meaning::Retry,
        // Raised by a trigger that the operator wrote (PostgreSQL's RAISE, MySQL's SIGNAL): as final as a constraint.
        "P0001" | "45000" => return Meaning::Reject,
        _ => {}
    }
    match code.get(..2).unwrap_or_default() {
        // Connection, authorization, database or schema name, rollback, resources, state, intervention, system.
        "08" | "28" | "3D" | "3F" | "40" | "53" | "55" | "57" | "58" => Meaning::Retry,
        // Data, constraints, limits of the program.
        "22" | "23" | "54" => Meaning::Reject,
        _ => Meaning::Unknown,
    }
}

/// MySQL and MariaDB lump most errors together under `HY000`, so the number comes first.
fn mysql_meaning(number: u16, sqlstate: &str) -> Meaning {
    match number {
        // Too many connections, out of memory, disk or table space, the engine's and the log's own errors.
        1021 | 1026 | 1028 | 1030 | 1037 | 1038 | 1040 | 1041 | 1114 | 1180 | 1181 | 1203 | 1206 | 1226 => {
            Meaning::Retry
        }
        // Access denied, no such database or table, host blocked, password expired, account locked: the operator or a
        // migration repairs it.
        1044 | 1045 | 1049 | 1129 | 1130 | 1142 | 1143 | 1146 | 1227 | 1698 | 1820 | 1862 | 3118 | 4151 => {
            Meaning::Retry
        }
        // Shutdown, network trouble, interrupted, killed, too slow.
        1053 | 1152 | 1154..=1161 | 1184 | 1317 | 1927 | 1969 | 2006 | 2013 | 3024 | 4031 => Meaning::Retry,
        // Lock wait, deadlock, read-only.
        1205 | 1213 | 1290 | 1792 | 1836 | 1874 => Meaning::Retry,
        // Packet or row too large, bad value, CHECK constraint (MariaDB, MySQL).
        1118 | 1139 | 1153 | 1366 | 3819 | 4025 => Meaning::Reject,
        _ => sqlstate_meaning(sqlstate),
    }
}

/// By the primary code, which is the low byte of the extended one.
fn sqlite_meaning(code: i32, message: &str) -> Meaning {
    match code & 0xff {
        // ERROR, the catch-all: the schema is gone.
        1 if message.starts_with("no such table") => Meaning::Retry,
        // PERM, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, SCHEMA, NOTADB:
        // the file or its surroundings, never an event.
        3 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 13 | 14 | 15 | 17 | 26 => Meaning::Retry,
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => Meaning::Reject,
        _ => Meaning::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_mean_what_their_class_says() {
        for code in ["08006", "28P01", "3D000", "40001", "40P01", "53100", "53300", "55P03", "57P01", "58030"] {
            assert_eq!(sqlstate_meaning(code), Meaning::Retry, "{code}");
        }
        for code in ["42501", "42P01", "25006"] {
            assert_eq!(sqlstate_meaning(code), Meaning::Retry, "{code}");
        }
        for code in ["22001", "22P05", "23502", "23505", "23514", "54000", "P0001", "45000"] {
            assert_eq!(sqlstate_meaning(code), Meaning::Reject, "{code}");
        }
        for code in ["", "4", "21000", "42601", "42703", "XX000", "é2"] {
            assert_eq!(sqlstate_meaning(code), Meaning::Unknown, "{code}");
        }
    }

    #[test]
    fn mysql_numbers_come_before_the_sqlstate() {
        for (number, sqlstate, meaning) in [
            (1213, "40001", Meaning::Retry),
            (1205, "HY000", Meaning::Retry),
            (1040, "08004", Meaning::Retry),
            (1114, "HY000", Meaning::Retry),
            (1146, "42S02", Meaning::Retry),
            (1045, "28000", Meaning::Retry),
            (4151, "HY000", Meaning::Retry),
            (1153, "08S01", Meaning::Reject),
            (1366, "HY000", Meaning::Reject),
            (1406, "22001", Meaning::Reject),
            (3819, "HY000", Meaning::Reject),
            (4025, "23000", Meaning::Reject),
            (1105, "HY000", Meaning::Unknown),
            (1064, "42000", Meaning::Unknown),
        ] {
            assert_eq!(mysql_meaning(number, sqlstate), meaning, "{number}");
        }
    }

    #[test]
    fn a_server_without_tls_that_wants_it_for_the_password_is_away() {
        let error = sqlx::Error::Configuration("RSA auth backend disabled; enable feature `mysql-rsa`".into());
        assert!(reason(&error).contains("let it offer TLS"), "{}", reason(&error));
        assert!(matches!(
            store_error(&DbErr::Conn(RuntimeErr::SqlxError(error.into()))),
            StoreError::Unavailable { .. }
        ));
    }

    #[test]
    fn sqlite_codes_count_by_their_low_byte() {
        for (code, meaning) in [
            (5, Meaning::Retry),
            (5 | 2 << 8, Meaning::Retry),
            (13, Meaning::Retry),
            (10 | 12 << 8, Meaning::Retry),
            (19 | 1 << 8, Meaning::Reject),
            (18, Meaning::Reject),
            (20, Meaning::Reject),
            (1, Meaning::Unknown),
            (21, Meaning::Unknown),
        ] {
            assert_eq!(sqlite_meaning(code, ""), meaning, "{code}");
        }
        assert_eq!(sqlite_meaning(1, "no such table: event"), Meaning::Retry);
    }

    #[test]
    fn what_is_no_answer_of_the_database_is_a_retry() {
        let reset = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        for error in
            [reset(), sqlx::Error::PoolTimedOut, sqlx::Error::WorkerCrashed, timed_out("writing", Duration::MAX)]
        {
            assert!(matches!(write_error(&error), WriteError::Retry { .. }), "{error}");
        }
        assert!(matches!(
            store_error(&DbErr::Conn(RuntimeErr::SqlxError(reset().into()))),
            StoreError::Unavailable { .. }
        ));
        assert!(matches!(store_error(&DbErr::Type("odd".into())), StoreError::Failed { .. }));
    }
}
