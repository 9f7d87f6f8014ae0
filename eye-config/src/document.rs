//! A configuration file while the program reads it.
//!
//! [`Document`] has the top-level keys, [`Section`] any value below them. Reading never fails: faults are collected, so
//! that the operator sees all of them after one run.

use std::env::VarError;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use crate::deserialize::read;
use crate::error::{ConfigErrors, Fault, KeyFault, TextPosition};
use crate::suggest::did_you_mean;
use crate::value::{Converter, Node, NodeValue};

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
    /// Text that is not TOML. [`Self::finish`] reports all other faults.
    pub fn parse(
        file: &'t str,
        text: &'t str,
        variable: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, ConfigErrors> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults: Vec<Fault> = errors
            .iter()
            .map(|error| Fault {
                at: TextPosition(error.span().map_or(0, |span| span.start)),
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
        let mut converter = Converter { variables: &variable, faults };
        let at = TextPosition::default();
        let value = converter.table("", table.into_inner());
        let root = Node { path: String::new(), key: String::new(), key_at: at, at, value };
        Ok(Self { file, text, root, known: Vec::new(), faults: converter.faults })
    }

    /// Reads the table `[key]`. Returns the default where the table is missing or has faults.
    pub fn section<T: DeserializeOwned + Default>(&mut self, key: &'static str) -> T {
        self.value(key, T::default())
    }

    /// Reads the value of a top-level key. Returns `default` where the value is missing or has faults.
    pub fn value<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.known.push(key);
        // The node stays for a later `take`.
        self.root.get_mut(key).and_then(|node| read(node, &mut self.faults)).unwrap_or(default)
    }

    /// Takes the value of a top-level key out; where it is missing, an empty table at the start of the file.
    pub fn take(&mut self, key: &str) -> Section<'_> {
        let missing = || Node::new("", key, TextPosition::default(), NodeValue::Table(Vec::new()));
        Section { node: self.root.take(key).unwrap_or_else(missing), faults: &mut self.faults }
    }

    /// Reports all top-level keys but `also_known` and those read so far.
    ///
    /// A known key near an unknown one counts as present, with a reported fault.
    pub fn reject_unknown_keys(&mut self, also_known: &[&'static str]) {
        let known = [also_known, &self.known].concat();
        self.root.reject_unknown_keys(&known, |_| true, &mut self.faults);
    }

    /// Reports a fault of `key`.
    pub fn report(&mut self, at: TextPosition, key: &str, message: String) {
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
    node: Node,
    faults: &'d mut Vec<Fault>,
}

impl Section<'_> {
    /// Returns the full key, such as `sinks.store`.
    pub fn path(&self) -> &str {
        &self.node.path
    }

    /// Returns the last part of the key, such as `store`.
    pub fn name(&self) -> &str {
        &self.node.key
    }

    /// Returns the position of the key.
    pub fn position(&self) -> TextPosition {
        self.node.key_at
    }

    /// Returns whether this is a table without keys.
    pub fn is_empty(&self) -> bool {
        matches!(&self.node.value, NodeValue::Table(nodes) if nodes.is_empty())
    }

    /// Reports a value that is not a table, with `hint` at the end of the message.
    pub fn expect_table(&mut self, hint: &str) {
        if !matches!(self.node.value, NodeValue::Table(_) | NodeValue::Placeholder) {
            let message = format!("expected a table, found {}{hint}", self.node.value.kind());
            self.faults.push(self.node.fault(message));
            self.node.value = NodeValue::Placeholder;
        }
    }

    /// Takes the value of a key out of a table.
    pub fn take(&mut self, key: &str) -> Option<Section<'_>> {
        Some(Section { node: self.node.take(key)?, faults: self.faults })
    }

    /// Takes the value of a key out of a table, as [`Self::take`]. A misspelt key is reported, and counts as the key.
    pub fn take_or_misspelt(&mut self, key: &'static str) -> Option<Section<'_>> {
        if let NodeValue::Placeholder = self.node.value {
            // The key may be anywhere in a value that is wrong, so it is not missing.
            let node = Node::new(&self.node.path, key, self.node.at, NodeValue::Placeholder);
            return Some(Section { node, faults: self.faults });
        }
        if self.node.children().iter().all(|node| node.key != key) {
            let is_misspelt = |written: &str| did_you_mean(written, [key]).is_some();
            self.node.reject_unknown_keys(&[key], is_misspelt, self.faults);
        }
        self.take(key)
    }

    /// Takes the first remaining value out of a table.
    pub fn take_first(&mut self) -> Option<Section<'_>> {
        let key = self.node.children().first()?.key.clone();
        self.take(&key)
    }

    /// Reports a fault of the key itself.
    pub fn report_key(&mut self, message: String) {
        let Node { path, key_at, .. } = &self.node;
        self.faults.push(Fault { at: *key_at, key: path.clone(), message });
    }

    /// Reports a key that is missing in this table.
    pub fn report_missing(&mut self, key: &str, hint: &str) {
        let missing = Node::new(&self.node.path, key, self.node.at, NodeValue::Placeholder);
        self.faults.push(missing.fault(format!("this key is required{hint}")));
    }

    /// Reads the value. Returns `None` when it has faults, which are reported.
    pub fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        read(&mut self.node, self.faults)
    }

    /// Reads the value as [`Self::read`], and reports the faults that `check` finds in it.
    pub fn read_and_check<T: DeserializeOwned, F: Into<KeyFault>>(
        &mut self,
        check: impl FnOnce(&T) -> Vec<F>,
    ) -> Option<T> {
        let value = self.read()?;
        let faults = check(&value);
        let is_sound = faults.is_empty();
        for KeyFault { key, message } in faults.into_iter().map(F::into) {
            let separator = if key.is_empty() { "" } else { "." };
            let key = format!("{}{separator}{key}", self.node.path);
            self.faults.push(Fault { at: self.node.position_of(&key), key, message });
        }
        is_sound.then_some(value)
    }
}
