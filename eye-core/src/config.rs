//! The configuration: TOML into components, every fault at once with its file, line and column.
//!
//! ```toml
//! [sources.web]
//! type = "http"
//!
//! [sinks.store]
//! type = "sqlite"
//! url = "sqlite://${DATA:-eye-data}/eye.db"
//! ```
//!
//! `type` picks the plug-in from the [`Registry`]; the other keys go to its struct. Without `[transport]` the transport
//! is `memory`. Without `[query] sink` the only sink that can answer queries does; several are a fault, and with none
//! nobody answers. Whatever else the program reads, it reads by [`Document::section`].

mod interpolate;
mod made_up;
mod read;
mod suggest;
mod value;

use std::env::VarError;
use std::fmt;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use crate::error::BuildError;
use crate::filter::SinkFilter;
use crate::registry::{ComponentKind, Configured, Plugin, Plugins, Registry};
use crate::sink::Sink;
use crate::source::Source;
use crate::transport::Transport;
use crate::writer::WriterOverrides;

pub use made_up::field_names;
pub use read::at_least_one;
use suggest::{instead, nearest};
use value::{Entry, Node, Value, join};

/// Every component of the pipeline, checked and ready to be built, in the order of the file.
#[derive(Debug)]
pub struct PipelineConfig {
    /// At least one.
    pub sources: Vec<Configured<dyn Source>>,
    /// `memory` unless another one is chosen.
    pub transport: Configured<dyn Transport>,
    /// At least one.
    pub sinks: Vec<(Configured<dyn Sink>, SinkSettings)>,
    /// The [name](Configured::name) of the sink that answers queries; it is one of `sinks` and can.
    pub query_sink: Option<String>,
}

/// The pipeline's own settings of one sink, which do not reach its plug-in.
#[derive(Clone, Debug, Default)]
pub struct SinkSettings {
    /// Overrides of `[writer]`.
    pub writer: WriterOverrides,
    /// The events that the sink gets.
    pub filter: SinkFilter,
}

/// A configuration that is being read: first its [sections](Self::section) and [values](Self::value), then its
/// [pipeline](Self::into_pipeline), which reports the faults of all.
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
    faults: Faults,
}

/// The keys that [`Document::into_pipeline`] reads.
const PIPELINE_KEYS: [&str; 3] = ["sources", "transport", "sinks"];

impl<'t> Document<'t> {
    /// Parses TOML; `file` is its name in messages. `variable` looks up what `${VAR}` stands for; outside of tests that
    /// is [`std::env::var`].
    ///
    /// # Errors
    /// When the text is not TOML. Everything else is reported by [`Self::into_pipeline`].
    pub fn parse(
        file: &'t str,
        text: &'t str,
        variable: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, ConfigErrors> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let faults = errors.iter().map(|error| Fault {
                at: error.span().map_or(0, |span| span.start),
                key: String::new(),
                message: error.message().to_owned(),
            });
            let mut faults: Faults = faults.collect();
            // What follows in the same line is the parser finding its feet again.
            faults.sort_by_key(|fault| fault.at);
            faults.dedup_by_key(|fault| position(text, fault.at).0);
            return Err(ConfigErrors::new(file, text, faults));
        }
        let mut faults = Faults::new();
        let entries = value::table("", table.into_inner(), &variable, &mut faults);
        Ok(Self { file, text, entries, known: PIPELINE_KEYS.to_vec(), faults })
    }

    /// The table `[key]`; the default when there is none, or when it has faults, which are kept for later.
    pub fn section<T: DeserializeOwned + Default>(&mut self, key: &'static str) -> T {
        self.value(key, T::default())
    }

    /// The value of a top-level key; `default` when there is none, or when it has faults, which are kept for later.
    pub fn value<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.known.push(key);
        // The entry stays: the pipeline looks at `[query] sink` again.
        match self.entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => read::read(key, &mut entry.node, &mut self.faults).unwrap_or(default),
            None => default,
        }
    }

    /// The pipeline. Keys of the top level that nobody has asked for by now are unknown.
    ///
    /// # Errors
    /// Every fault of the whole document.
    pub fn into_pipeline(mut self, registry: &Registry) -> Result<PipelineConfig, ConfigErrors> {
        let misspelt = self.report_unknown_keys();
        let sources = self.components("sources", "source", &registry.sources, &misspelt);
        self.report_second_claim(&sources);
        let transport = self.transport(&registry.transports);
        let sinks = self.components("sinks", "sink", &registry.sinks, &misspelt);
        let query_sink = self.query_sink(&sinks);
        match transport {
            Some(transport) if self.faults.is_empty() => Ok(PipelineConfig {
                sources: sources.into_iter().filter_map(|component| component.configured).collect(),
                transport,
                sinks: sinks
                    .into_iter()
                    .filter_map(|component| Some((component.configured?, SinkSettings::default())))
                    .collect(),
                query_sink,
            }),
            _ => Err(ConfigErrors::new(self.file, self.text, self.faults)),
        }
    }

    /// The known keys that the unknown ones were probably meant to be.
    fn report_unknown_keys(&mut self) -> Vec<&'static str> {
        let unknown = self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str()));
        let mut misspelt = Vec::new();
        for Entry { key, at, .. } in unknown {
            let message = read::unknown_key(key, &self.known);
            self.faults.push(Fault { at: *at, key: join("", key), message });
            misspelt.extend(nearest(key, self.known.iter().copied()));
        }
        misspelt
    }

    /// The components below `[key.NAME]`, with faults or without.
    fn components<C: ComponentKind + ?Sized>(
        &mut self,
        key: &'static str,
        word: &str,
        plugins: &Plugins<C>,
        misspelt: &[&str],
    ) -> Vec<Component<C>> {
        let Some(entry) = self.take(key) else {
            if !misspelt.contains(&key) {
                self.report_none(0, key, word, plugins);
            }
            return Vec::new();
        };
        match entry.node.value {
            Value::Table(entries) if entries.is_empty() => self.report_none(entry.at, key, word, plugins),
            Value::Table(entries) => {
                return entries.into_iter().map(|entry| self.component(key, word, plugins, entry)).collect();
            }
            Value::Reported => {}
            other => {
                let message = format!("expected a table, found {}; write [{key}.NAME]", other.kind());
                self.faults.push(Fault { at: entry.node.at, key: key.to_owned(), message });
            }
        }
        Vec::new()
    }

    fn report_none<C: ComponentKind + ?Sized>(&mut self, at: usize, key: &str, word: &str, plugins: &Plugins<C>) {
        let types = plugins.type_names().join(", ");
        let message = format!("no {word}; add one as [{key}.NAME] with its `type`; known types: {types}");
        self.faults.push(Fault { at, key: key.to_owned(), message });
    }

    fn report_second_claim<C: ComponentKind + ?Sized>(&mut self, components: &[Component<C>]) {
        let mut claimed: Vec<(String, &str)> = Vec::new();
        for component in components {
            let Some(configured) = &component.configured else { continue };
            for claim in configured.claims() {
                if let Some((_, first)) = claimed.iter().find(|(known, _)| *known == claim) {
                    let message = format!("`{first}` has `{claim}` already; remove one of the two");
                    self.faults.push(Fault { at: component.at, key: configured.key().to_owned(), message });
                } else {
                    claimed.push((claim, configured.key()));
                }
            }
        }
    }

    fn component<C: ComponentKind + ?Sized>(
        &mut self,
        kind: &str,
        word: &str,
        plugins: &Plugins<C>,
        entry: Entry,
    ) -> Component<C> {
        let Entry { key: name, at, mut node } = entry;
        let key = join(kind, &name);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let message = "a name is 1 to 64 letters, digits, `_` or `-`".to_owned();
            self.faults.push(Fault { at, key: key.clone(), message });
        }
        if !matches!(node.value, Value::Table(_) | Value::Reported) {
            let message = format!("expected a table, found {}; write [{kind}.NAME]", node.value.kind());
            self.faults.push(Fault { at: node.at, key, message });
            return Component { name, at, serves: None, configured: None };
        }
        let plugin = self.plugin(&key, word, plugins, &mut node, None);
        Component {
            name,
            at,
            serves: plugin.map(|plugin| plugin.answers_queries),
            configured: plugin.and_then(|plugin| self.configure(&key, plugin, node)),
        }
    }

    /// The plug-in that the table's `type` names; takes that key out.
    fn plugin<'p, C: ComponentKind + ?Sized>(
        &mut self,
        key: &str,
        word: &str,
        plugins: &'p Plugins<C>,
        node: &mut Node,
        default: Option<&str>,
    ) -> Option<&'p Plugin<C>> {
        let type_node = match node.take("type") {
            Some(entry) => entry.node,
            None => self.default_type(key, &plugins.type_names(), node, default)?,
        };
        let message = match &type_node.value {
            Value::Text(name) => match plugins.find(name) {
                Some(plugin) => return Some(plugin),
                None => unknown_type(word, name, &plugins.type_names()),
            },
            Value::Reported => return None,
            other => format!("expected a string, found {}", other.kind()),
        };
        self.faults.push(Fault { at: type_node.at, key: join(key, "type"), message });
        None
    }

    /// What stands for a missing `type`; `None` once it is reported.
    fn default_type(&mut self, key: &str, types: &[&str], node: &Node, default: Option<&str>) -> Option<Node> {
        let Value::Table(entries) = &node.value else { return None };
        let slip = entries.iter().find(|entry| nearest(&entry.key, ["type"]).is_some());
        let fault = match (slip, default) {
            (Some(Entry { key: slip, at, .. }), _) => {
                Fault { at: *at, key: join(key, slip), message: read::unknown_key(slip, &["type"]) }
            }
            (None, Some(default)) => return Some(Node { at: node.at, value: Value::Text(default.to_owned()) }),
            (None, None) => {
                let message = format!("this key is required; known types: {}", types.join(", "));
                Fault { at: node.at, key: join(key, "type"), message }
            }
        };
        self.faults.push(fault);
        None
    }

    fn configure<C: ComponentKind + ?Sized>(
        &mut self,
        key: &str,
        plugin: &Plugin<C>,
        node: Node,
    ) -> Option<Configured<C>> {
        let mut section = Section { key, node, faults: &mut self.faults };
        (plugin.read)(&mut section).map(|config| Configured::new(key, config))
    }

    fn transport(&mut self, plugins: &Plugins<dyn Transport>) -> Option<Configured<dyn Transport>> {
        let key = "transport";
        let mut node = match self.take(key) {
            Some(entry) => entry.node,
            None => Node { at: 0, value: Value::Table(Vec::new()) },
        };
        if !matches!(node.value, Value::Table(_) | Value::Reported) {
            let message = format!("expected a table, found {}", node.value.kind());
            self.faults.push(Fault { at: node.at, key: key.to_owned(), message });
            return None;
        }
        let plugin = self.plugin(key, "transport", plugins, &mut node, Some("memory"))?;
        self.configure(key, plugin, node)
    }

    fn query_sink(&mut self, sinks: &[Component<dyn Sink>]) -> Option<String> {
        let key = "query.sink";
        let chosen = self.take("query").and_then(|mut query| query.node.take("sink"));
        let chosen = match chosen.map(|entry| entry.node) {
            Some(Node { at, value: Value::Text(name) }) => Some((name, at)),
            // Whoever reads the section has reported it.
            Some(_) => return None,
            None => None,
        };
        let able: Vec<_> = sinks.iter().filter(|sink| sink.serves == Some(true)).collect();
        let able_names: Vec<_> = able.iter().map(|sink| sink.name.as_str()).collect();
        let (at, message) = match (chosen, able.as_slice()) {
            (Some(_), _) if sinks.is_empty() => return None,
            (Some((name, at)), _) => match sinks.iter().find(|sink| sink.name == name) {
                Some(sink) if sink.serves == Some(false) => {
                    let others = if able.is_empty() { "none can".to_owned() } else { able_names.join(", ") };
                    (at, format!("the sink `{name}` cannot answer queries; sinks that can: {others}"))
                }
                Some(_) => return Some(name),
                None => {
                    let names: Vec<_> = sinks.iter().map(|sink| sink.name.as_str()).collect();
                    (at, format!("no sink `{name}`; {}", instead(&name, &names, "sinks")))
                }
            },
            (None, []) => return None,
            (None, [only]) => return Some(only.name.clone()),
            (None, [_, second, ..]) => {
                let names = able_names.join(", ");
                (second.at, format!("several sinks can answer queries; choose one in [query]: {names}"))
            }
        };
        self.faults.push(Fault { at, key: key.to_owned(), message });
        None
    }

    fn take(&mut self, key: &str) -> Option<Entry> {
        value::take(&mut self.entries, key)
    }
}

fn unknown_type(word: &str, name: &str, types: &[&str]) -> String {
    let nearest = nearest(name, types.iter().copied());
    let meant = nearest.map(|nearest| format!(" did you mean `{nearest}`?")).unwrap_or_default();
    format!("no {word} type `{name}`;{meant} known types: {}", types.join(", "))
}

/// A component that was read, perhaps in vain.
struct Component<C: ComponentKind + ?Sized> {
    name: String,
    at: usize,
    /// `None` when that is not known: no such plug-in.
    serves: Option<bool>,
    configured: Option<Configured<C>>,
}

/// One component's keys, for its plug-in's struct.
pub(crate) struct Section<'d> {
    key: &'d str,
    node: Node,
    faults: &'d mut Faults,
}

impl Section<'_> {
    /// The plug-in's struct, when `check` finds it good; `None` once its faults are reported.
    pub(crate) fn read<T: DeserializeOwned>(&mut self, check: fn(&T) -> Vec<BuildError>) -> Option<T> {
        let config = read::read(self.key, &mut self.node, self.faults)?;
        let wrong = check(&config);
        let is_sound = wrong.is_empty();
        for error in wrong {
            let (at, key) = (self.place_of(error.key()), join(self.key, error.key()));
            self.faults.push(Fault { at, key, message: error.message().to_owned() });
        }
        is_sound.then_some(config)
    }

    /// Where the value of the key stands that the message begins with; the section, if it has none.
    fn place_of(&self, key: &str) -> usize {
        let key = key.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
        let Value::Table(entries) = &self.node.value else { return self.node.at };
        entries.iter().find(|entry| Some(&*entry.key) == key).map_or(self.node.at, |entry| entry.node.at)
    }
}

/// What is wrong, and where.
struct Fault {
    /// Bytes from the start of the text.
    at: usize,
    /// Empty where the text is not TOML.
    key: String,
    message: String,
}

type Faults = Vec<Fault>;

/// Everything that is wrong with a configuration: `FILE:LINE:COLUMN: key: what is wrong`, one per line, in the order of
/// the file.
///
/// No message repeats a string of the configuration other than names and types of components: it may be a secret.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    lines: Vec<String>,
}

impl ConfigErrors {
    fn new(file: &str, text: &str, mut faults: Faults) -> Self {
        faults.sort_by_key(|fault| fault.at);
        let lines = faults
            .iter()
            .map(|Fault { at, key, message }| {
                let (line, column) = position(text, *at);
                let separator = if key.is_empty() { "" } else { ": " };
                format!("{file}:{line}:{column}: {key}{separator}{message}")
            })
            .collect();
        Self { lines }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Line and column, both from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests;
