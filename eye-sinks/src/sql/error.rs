//! Classification of database errors: retry, reject or unknown. All other modules ask this one.

use std::borrow::Cow;
use std::time::Duration;

use eye_core::sink::WriteError;
use eye_core::store::StoreError;
use sea_orm::{DbErr, RuntimeErr};
use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::sqlite::SqliteError;

/// The consequence of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorClass {
    /// The database is unavailable, busy or broken; no event is at fault.
    Retry,
    /// An event is at fault.
    Reject,
    /// Either of both.
    Unknown,
}

/// Returns the error of an action that took too long.
pub(super) fn timed_out(doing: &str, after: Duration) -> sqlx::Error {
    let message = format!("{doing} took longer than {} s", after.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}

/// SQLite's code when the disk has no space for the shared-memory file. Its message is "disk I/O error".
const SQLITE_IOERR_SHMSIZE: i32 = 4874;

/// Returns true for a SQLite error that may pass by itself: another process holds the file, or the disk is full.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    // BUSY, LOCKED, FULL.
    sqlite_code(error).is_some_and(|code| matches!(code & 0xff, 5 | 6 | 13) || code == SQLITE_IOERR_SHMSIZE)
}

fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<SqliteError>()?;
    error.code()?.parse().ok()
}

/// Returns true when the events may be at fault, by the database or by a check before it.
pub(super) fn may_be_refusal(error: &sqlx::Error) -> bool {
    match classify(error) {
        ErrorClass::Retry => false,
        ErrorClass::Reject => true,
        ErrorClass::Unknown => matches!(error, sqlx::Error::Database(_)),
    }
}

/// Returns true when an event is stored already.
pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(DatabaseError::is_unique_violation)
}

/// Classifies the error of a write.
pub(super) fn write_error(error: &sqlx::Error) -> WriteError {
    let reason = reason(error).into_owned();
    match classify(error) {
        ErrorClass::Retry => WriteError::retry(reason),
        ErrorClass::Reject => WriteError::reject(reason),
        ErrorClass::Unknown => WriteError::Unknown { reason },
    }
}

/// Classifies the error of a connect: no event is at fault, whatever the code.
pub(super) fn connect_error(error: &sqlx::Error) -> WriteError {
    WriteError::retry(reason(error))
}

/// Classifies the error of a preparation: only a schema from a newer version is final.
pub(super) fn prepare_error(error: &DbErr) -> WriteError {
    match error {
        DbErr::Migration(reason) => WriteError::reject(reason),
        _ => WriteError::retry(orm_reason(error)),
    }
}

/// Classifies the error of a query.
pub(super) fn store_error(error: &DbErr) -> StoreError {
    let reason = orm_reason(error);
    let is_unavailable = match (error, sqlx_error(error)) {
        (_, Some(error)) => classify(error) == ErrorClass::Retry,
        (DbErr::ConnectionAcquire(_) | DbErr::Conn(_), None) => true,
        _ => false,
    };
    if is_unavailable { StoreError::Unavailable { reason } } else { StoreError::Failed { reason } }
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

/// Returns the message alone: PostgreSQL's details quote the row.
pub(super) fn reason(error: &sqlx::Error) -> Cow<'_, str> {
    match error {
        error if sqlite_code(error) == Some(SQLITE_IOERR_SHMSIZE) => "database or disk is full".into(),
        sqlx::Error::Database(error) => error.message().into(),
        sqlx::Error::Io(error) => error.to_string().into(),
        sqlx::Error::PoolTimedOut => "no connection became free in time".into(),
        // sqlx's message names one of its features, which would encrypt the password alone.
        sqlx::Error::Configuration(error) if error.to_string().starts_with("RSA auth backend disabled") => {
            "the server takes this user's password only over TLS (caching_sha2_password): let it offer TLS, and remove \
             ssl-mode=DISABLED from the URL"
                .into()
        }
        other => other.to_string().into(),
    }
}

fn classify(error: &sqlx::Error) -> ErrorClass {
    match error {
        sqlx::Error::Database(error) => database_class(&**error),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Configuration(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => ErrorClass::Retry,
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => ErrorClass::Reject,
        _ => ErrorClass::Unknown,
    }
}

fn database_class(error: &dyn DatabaseError) -> ErrorClass {
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<SqliteError>().is_some() {
        return code.parse().map_or(ErrorClass::Unknown, |code| sqlite_class(code, error.message()));
    }
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return mysql_class(error.number(), &code);
    }
    sqlstate_class(&code)
}

/// Classifies the codes of PostgreSQL, and those that MySQL shares with it.
fn sqlstate_class(code: &str) -> ErrorClass {
    match code {
        // A missing right or table, or a read-only standby: the operator or a migration repairs it.
        "42501" | "42P01" | "25006" => return ErrorClass::Retry,
        // An operator's trigger (PostgreSQL's RAISE, MySQL's SIGNAL) is as final as a constraint.
        "P0001" | "45000" => return ErrorClass::Reject,
        _ => {}
    }
    match code.get(..2).unwrap_or_default() {
        // Connection, authorization, database or schema name, rollback, resources, state, intervention, system.
        "08" | "28" | "3D" | "3F" | "40" | "53" | "55" | "57" | "58" => ErrorClass::Retry,
        // Data, constraints, limits of the program.
        "22" | "23" | "54" => ErrorClass::Reject,
        _ => ErrorClass::Unknown,
    }
}

/// Classifies by number, then by SQLSTATE: MySQL and MariaDB give most errors the state `HY000`.
fn mysql_class(number: u16, sqlstate: &str) -> ErrorClass {
    match number {
        // Too many connections, out of memory, disk or table space, the engine's and the log's own errors.
        1021 | 1026 | 1028 | 1030 | 1037 | 1038 | 1040 | 1041 | 1114 | 1180 | 1181 | 1203 | 1206 | 1226 => {
            ErrorClass::Retry
        }
        // Access denied, no such database or table, host blocked, password expired, account locked: the operator or a
        // migration repairs it.
        1044 | 1045 | 1049 | 1129 | 1130 | 1142 | 1143 | 1146 | 1227 | 1698 | 1820 | 1862 | 3118 | 4151 => {
            ErrorClass::Retry
        }
        // Shutdown, network trouble, interrupted, killed, too slow.
        1053 | 1152 | 1154..=1161 | 1184 | 1317 | 1927 | 1969 | 2006 | 2013 | 3024 | 4031 => ErrorClass::Retry,
        // Lock wait, deadlock, read-only.
        1205 | 1213 | 1290 | 1792 | 1836 | 1874 => ErrorClass::Retry,
        // Packet or row too large, bad value, CHECK constraint (MariaDB, MySQL).
        1118 | 1139 | 1153 | 1366 | 3819 | 4025 => ErrorClass::Reject,
        _ => sqlstate_class(sqlstate),
    }
}

/// Classifies by the primary code, which is the low byte of the extended one.
fn sqlite_class(code: i32, message: &str) -> ErrorClass {
    match code & 0xff {
        // ERROR, the code of all that has no other: the schema is gone.
        1 if message.starts_with("no such table") => ErrorClass::Retry,
        // PERM, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, SCHEMA, NOTADB:
        // trouble of the file, never of an event.
        3 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 13 | 14 | 15 | 17 | 26 => ErrorClass::Retry,
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => ErrorClass::Reject,
        _ => ErrorClass::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_classified_by_prefix() {
        for code in ["08006", "28P01", "3D000", "40001", "40P01", "53100", "53300", "55P03", "57P01", "58030"] {
            assert_eq!(sqlstate_class(code), ErrorClass::Retry, "{code}");
        }
        for code in ["42501", "42P01", "25006"] {
            assert_eq!(sqlstate_class(code), ErrorClass::Retry, "{code}");
        }
        for code in ["22001", "22P05", "23502", "23505", "23514", "54000", "P0001", "45000"] {
            assert_eq!(sqlstate_class(code), ErrorClass::Reject, "{code}");
        }
        for code in ["", "4", "21000", "42601", "42703", "XX000", "é2"] {
            assert_eq!(sqlstate_class(code), ErrorClass::Unknown, "{code}");
        }
    }

    #[test]
    fn mysql_number_precedes_the_sqlstate() {
        for (number, sqlstate, class) in [
            (1213, "40001", ErrorClass::Retry),
            (1205, "HY000", ErrorClass::Retry),
            (1040, "08004", ErrorClass::Retry),
            (1114, "HY000", ErrorClass::Retry),
            (1146, "42S02", ErrorClass::Retry),
            (1045, "28000", ErrorClass::Retry),
            (4151, "HY000", ErrorClass::Retry),
            (1153, "08S01", ErrorClass::Reject),
            (1366, "HY000", ErrorClass::Reject),
            (1406, "22001", ErrorClass::Reject),
            (3819, "HY000", ErrorClass::Reject),
            (4025, "23000", ErrorClass::Reject),
            (1105, "HY000", ErrorClass::Unknown),
            (1064, "42000", ErrorClass::Unknown),
        ] {
            assert_eq!(mysql_class(number, sqlstate), class, "{number}");
        }
    }

    #[test]
    fn password_that_needs_tls_makes_the_store_unavailable() {
        let error = sqlx::Error::Configuration("RSA auth backend disabled; enable feature `mysql-rsa`".into());
        assert!(reason(&error).contains("let it offer TLS"), "{}", reason(&error));
        assert!(matches!(
            store_error(&DbErr::Conn(RuntimeErr::SqlxError(error.into()))),
            StoreError::Unavailable { .. }
        ));
    }

    #[test]
    fn sqlite_codes_are_classified_by_low_byte() {
        for (code, class) in [
            (5, ErrorClass::Retry),
            (5 | 2 << 8, ErrorClass::Retry),
            (13, ErrorClass::Retry),
            (10 | 12 << 8, ErrorClass::Retry),
            (19 | 1 << 8, ErrorClass::Reject),
            (18, ErrorClass::Reject),
            (20, ErrorClass::Reject),
            (1, ErrorClass::Unknown),
            (21, ErrorClass::Unknown),
        ] {
            assert_eq!(sqlite_class(code, ""), class, "{code}");
        }
        assert_eq!(sqlite_class(1, "no such table: event"), ErrorClass::Retry);
    }

    #[test]
    fn error_without_an_answer_is_a_retry() {
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
