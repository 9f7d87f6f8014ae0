//! The two kinds of error that a scan reports.

use std::fmt;

/// A reason for which a JSON value cannot be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// `\u0000`.
    #[error("Null characters (\\u0000) are not allowed.")]
    NullCharacter,
    /// Half of a surrogate pair.
    #[error("Lone surrogates (\\uD800 to \\uDFFF without their pair) are not allowed.")]
    LoneSurrogate,
    /// A number that is infinite when it is read as a double.
    #[error("Numbers beyond the range of a double (about 1.8e308) are not allowed; send them as strings.")]
    NumberTooLarge,
    /// Bytes that are not UTF-8.
    #[error("The text is not valid UTF-8.")]
    InvalidUtf8,
}

/// The position and cause at which a text is not JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub(super) expected: &'static str,
    pub(super) found: Found,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Character(char),
    InvalidUtf8,
    End,
    NothingAtAll,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, expected, found } = self;
        write!(f, "JSON parse error at line {line} column {column}: expected {expected}, but ")?;
        match found {
            Found::Character(character) if character.is_control() => write!(f, "found {character:?}"),
            Found::Character(character) => write!(f, "found `{character}`"),
            Found::InvalidUtf8 => f.write_str("found a byte that is not UTF-8"),
            Found::End => f.write_str("the text ends here"),
            Found::NothingAtAll => f.write_str("the body is empty"),
        }
    }
}

impl std::error::Error for SyntaxError {}

impl SyntaxError {
    /// Creates the error of an empty body in which `expected` should be.
    pub fn empty_body(expected: &'static str) -> Self {
        Self { line: 1, column: 1, expected, found: Found::NothingAtAll }
    }
}
