//! Faults of a configuration and their positions.
//!
//! A [`Fault`] has a byte offset and a full key. [`ConfigErrors`] shows all faults of a file with lines and columns.

use std::fmt;

/// A position in the text of a document. The default is the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextPosition(
    /// Bytes from the start of the text.
    pub(crate) usize,
);

impl TextPosition {
    /// Line and column, both from 1; the column counts characters.
    pub(crate) fn line_and_column(self, text: &str) -> (usize, usize) {
        let before = &text[..text.floor_char_boundary(self.0)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// A fault that a check finds in a value which was read without faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFault {
    /// The key, relative to the checked value, at whose value the fault is reported: `path`, `tls.cert` or
    /// `subjects[2]`. Empty for the checked value itself.
    pub key: String,
    /// The cause and the way out, without the key and without secrets.
    pub message: String,
}

/// A fault of the checked value itself.
impl From<String> for KeyFault {
    fn from(message: String) -> Self {
        Self { key: String::new(), message }
    }
}

/// A fault of a document.
pub(crate) struct Fault {
    pub(crate) at: TextPosition,
    /// Full key. Empty where the text is not TOML.
    pub(crate) key: String,
    pub(crate) message: String,
}

/// All faults of a configuration, one `FILE:LINE:COLUMN: key: message` per line, in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    lines: Vec<String>,
}

impl ConfigErrors {
    pub(crate) fn new(file: &str, text: &str, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| fault.at);
        let line = |Fault { at, key, message }: &Fault| {
            let (line, column) = at.line_and_column(text);
            let separator = if key.is_empty() { "" } else { ": " };
            format!("{file}:{line}:{column}: {key}{separator}{message}")
        };
        Self { lines: faults.iter().map(line).collect() }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}
