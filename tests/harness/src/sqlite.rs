//! SQLite: a running program has two files, and a test reads both.

/// Returns SQL by which a connection to `file` sees staged events in `event`, too. After a clean shutdown there is no
/// staging file, and the SQL does nothing.
pub fn sqlite_with_staging(file: &str) -> String {
    if !std::path::Path::new(&format!("{file}-staging")).exists() {
        return String::new();
    }
    let columns = "timestamp, id, session_id, category, name, origin, data, received_at";
    format!(
        "ATTACH '{file}-staging' AS staging;
        CREATE TEMP VIEW event AS
            SELECT {columns} FROM main.event
            UNION ALL
            SELECT {columns} FROM event_staging WHERE number > COALESCE(
                (SELECT number FROM event_staging_flushed WHERE staging = (SELECT id FROM event_staging_id)), 0)"
    )
}
