//! What must be there, on the server, is not always as it must be.

/// Why what must be there is not.
#[derive(Debug)]
pub enum Missing {
    /// It may be there later.
    Yet(String),
    /// Somebody must do something about it.
    ForGood(String),
}

/// The name of a setting, and its value.
pub(crate) type Setting = (&'static str, String);

/// The settings that are not as `wanted`, in words; empty where all are. Both lists name the same settings.
pub(crate) fn differences(found: &[Setting], wanted: &[Setting]) -> String {
    let different = found.iter().zip(wanted).filter(|(found, wanted)| found != wanted);
    let words: Vec<String> =
        different.map(|((name, found), (_, wanted))| format!("{name} is {found}, not {wanted}")).collect();
    words.join(", ")
}
