//! A configuration file while it is read.

use std::env::VarError;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use crate::deserialize::read;
use crate::error::{ConfigErrors, Fault, KeyFault, Position};
use crate::suggest::did_you_mean;
use crate::value::{self, Entry, Node, Value, join, reject_unknown_keys};

/// A parsed configuration file, and the faults found in it so far.
///
/// The program reads its keys with [`Self::section`], [`Self::value`] and [`Self::take`], which never fail.
/// [`Self::finish`] returns the faults of all.
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
    root: Node,
    known: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl<'t> Document<'t> {
    /// Parses TOML and replaces `${VAR}` in strings. `file` is its name in messages; `variable` looks up a variable,
    /// outside of tests by [`std::env::var`].
    ///
    /// # Errors
    /// When the text is not TOML. [`Self::finish`] reports all other faults.
    pub fn parse(
        file: &'t str,
        text: &'t str,
        variable: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, ConfigErrors> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults: Vec<Fault> = errors
            .iter()
            .map(|error| Fault {
                at: Position(error.span().map_or(0, |span| span.start)),
                key: String::new(),
                message: error.message().to_owned(),
            })
            .collect();
        if !faults.is_empty() {
            // Further errors of a line are mostly about the parser's recovery from the first.
            faults.sort_by_key(|fault| fault.at);
            faults.dedup_by_key(|fault| fault.at.line_and_column(text).0);
            return Err(ConfigErrors::new(file, text, faults));
        }
        let entries = value::table("", table.into_inner(), &variable, &mut faults);
        let root = Node { at: Position::default(), value: Value::Table(entries) };
        Ok(Self { file, text, root, known: Vec::new(), faults })
    }

    /// Reads the table `[key]`. Returns the default where the table is missing or has faults.
    pub fn section<T: DeserializeOwned + Default>(&mut self, key: &'static str) -> T {
        self.value(key, T::default())
    }

    /// Reads the value of a top-level key. Returns `default` where the value is missing or has faults.
    pub fn value<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.known.push(key);
        let Value::Table(entries) = &mut self.root.value else { return default };
        // The entry stays for a later `take`.
        let entry = entries.iter_mut().find(|entry| entry.key == key);
        entry.and_then(|entry| read(key, &mut entry.node, &mut self.faults)).unwrap_or(default)
    }

    /// Takes the value of a top-level key out; where it is missing, an empty table at the start of the file.
    pub fn take(&mut self, key: &str) -> Section<'_> {
        let at = Position::default();
        let missing = || Entry { key: key.to_owned(), at, node: Node { at, value: Value::Table(Vec::new()) } };
        let entry = self.root.take(key).unwrap_or_else(missing);
        Section { path: join("", key), entry, faults: &mut self.faults }
    }

    /// Reports all top-level keys except `also_known` and the keys read so far.
    ///
    /// A key that an unknown one was probably meant to be is taken to be there, with a reported fault.
    pub fn reject_unknown_keys(&mut self, also_known: &[&'static str]) {
        let known = [also_known, &self.known].concat();
        if let Value::Table(entries) = &mut self.root.value {
            reject_unknown_keys("", entries, &known, |_| true, &mut self.faults);
        }
    }

    /// Reports a fault of `key`.
    pub fn report(&mut self, at: Position, key: &str, message: String) {
        self.faults.push(Fault { at, key: key.to_owned(), message });
    }

    /// Returns what was read from the document, unless it has faults.
    ///
    /// # Errors
    /// All faults of the document. `None` must have its fault reported.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(ConfigErrors::new(self.file, self.text, self.faults)),
        }
    }
}

/// A value of a document with its key, to be [read](Self::read) as a whole or taken apart.
pub struct Section<'d> {
    path: String,
    entry: Entry,
    faults: &'d mut Vec<Fault>,
}

impl Section<'_> {
    /// The full key, such as `sinks.store`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last part of the key, such as `store`.
    pub fn name(&self) -> &str {
        &self.entry.key
    }

    /// The position of the key.
    pub fn position(&self) -> Position {
        self.entry.at
    }

    /// Whether this is a table without keys.
    pub fn is_empty(&self) -> bool {
        matches!(&self.entry.node.value, Value::Table(entries) if entries.is_empty())
    }

    /// Reports a value that is not a table, with `hint` at the end of the message.
    pub fn expect_table(&mut self, hint: &str) {
        let Node { at, value } = &mut self.entry.node;
        if !matches!(value, Value::Table(_) | Value::Placeholder) {
            let message = format!("expected a table, found {}{hint}", value.kind());
            self.faults.push(Fault { at: *at, key: self.path.clone(), message });
            *value = Value::Placeholder;
        }
    }

    /// Takes the value of a key out of a table.
    pub fn take(&mut self, key: &str) -> Option<Section<'_>> {
        let entry = self.entry.node.take(key)?;
        Some(Section { path: join(&self.path, key), entry, faults: self.faults })
    }

    /// Takes the value of a key out of a table, as [`Self::take`]. A misspelt key is reported, and counts as the key.
    pub fn take_or_misspelt(&mut self, key: &'static str) -> Option<Section<'_>> {
        let at = self.entry.node.at;
        match &mut self.entry.node.value {
            Value::Table(entries) if entries.iter().all(|entry| entry.key != key) => {
                let is_misspelt = |written: &str| did_you_mean(written, [key]).is_some();
                reject_unknown_keys(&self.path, entries, &[key], is_misspelt, self.faults);
            }
            // The key may be anywhere in a value that is wrong, so it is not missing.
            value @ Value::Placeholder => *value = Value::Table(vec![Entry::placeholder(key, at)]),
            _ => {}
        }
        self.take(key)
    }

    /// Takes the first remaining value out of a table.
    pub fn take_first(&mut self) -> Option<Section<'_>> {
        let key = self.entry.node.entries().first()?.key.clone();
        self.take(&key)
    }

    /// Reports a fault of the key itself.
    pub fn report_key(&mut self, message: &str) {
        self.faults.push(Fault { at: self.entry.at, key: self.path.clone(), message: message.to_owned() });
    }

    /// Reports a key that is missing in this table.
    pub fn report_missing(&mut self, key: &str, hint: &str) {
        let message = format!("this key is required{hint}");
        self.faults.push(Fault { at: self.entry.node.at, key: join(&self.path, key), message });
    }

    /// Reads the value, and has `check` look at it if it has no fault.
    ///
    /// Returns `None` when the value or its check has faults. They are reported.
    pub fn read<T: DeserializeOwned>(&mut self, check: impl FnOnce(&T) -> Vec<KeyFault>) -> Option<T> {
        let value = read(&self.path, &mut self.entry.node, self.faults)?;
        let faults = check(&value);
        let is_sound = faults.is_empty();
        for KeyFault { key, message } in faults {
            let at = self.entry.node.position_of(&key);
            let key = if key.is_empty() { self.path.clone() } else { format!("{}.{key}", self.path) };
            self.faults.push(Fault { at, key, message });
        }
        is_sound.then_some(value)
    }
}
