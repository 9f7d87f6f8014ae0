//! Configuration files: TOML with positions, environment variables and suggestions.
//!
//! A [`Document`] is a parsed file, a [`Section`] one value in it. [`Section::read`] fills any `Deserialize` type and
//! finds every fault, not only serde's first. [`Document::finish`] returns all faults of the file as [`ConfigErrors`].
//! No message of this crate repeats a string value of the file or a variable's value: any of them may be a secret.

mod deserialize;
mod document;
mod error;
mod interpolate;
mod suggest;
mod value;

pub use deserialize::{at_least_one, field_names};
pub use document::{Document, Section};
pub use error::{ConfigErrors, KeyFault, TextPosition};
pub use suggest::{did_you_mean, suggestion};

#[cfg(test)]
mod tests;
