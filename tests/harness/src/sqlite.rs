//! SQLite: who looks at a database without the program has two files to look at.

/// SQL by which a connection to `file` sees the events of the inbox, too, in `event`. The program must have made both files.
pub fn sqlite_with_inbox(file: &str) -> String {
    let columns = "timestamp, id, session_id, category, name, data, received_at";
    format!(
        "ATTACH '{file}-inbox' AS inbox;
        CREATE TEMP VIEW event AS
            SELECT {columns} FROM main.event
            UNION ALL
            SELECT {columns} FROM event_inbox WHERE number > COALESCE(
                (SELECT number FROM event_inbox_flushed WHERE inbox = (SELECT id FROM event_inbox_id)), 0)"
    )
}
