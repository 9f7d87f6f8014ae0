//! Errors that components report to the operator.

use std::error::Error;
use std::fmt;

use eye_config::KeyFault;

/// A component that could not be built, or settings that do not fit together.
///
/// The key names the setting at fault, relative to the component (`url`) until [`BuildError::within`] adds the
/// component's own key (`sinks.store.url`). It is empty where no single setting is at fault. Messages hold no secrets.
#[derive(Debug)]
pub struct BuildError {
    key: String,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BuildError {
    /// Creates an error of the whole component.
    pub fn new(message: impl Into<String>) -> Self {
        Self::at("", message)
    }

    /// Creates an error of one setting, such as `url` or `subjects[2]`.
    pub fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), source: None }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts the key of the component in front of the setting's.
    #[must_use]
    pub fn within(mut self, component: &str) -> Self {
        self.key = if self.key.is_empty() { component.to_owned() } else { format!("{component}.{}", self.key) };
        self
    }

    /// Returns the key of the setting at fault; empty if there is no single one.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the fault and its cure, without the key.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<BuildError> for KeyFault {
    fn from(error: BuildError) -> Self {
        Self { key: error.key, message: error.message }
    }
}
