//! The pipeline's part of a configuration file: `[sources.NAME]`, `[transport]`, `[sinks.NAME]` and `[query] sink`.
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
//! `type` selects the plug-in from the [`Registry`]; the plug-in's struct has the other keys. The tables `writer` and
//! `filter` of a sink belong to the pipeline. Without `[transport]` the transport is `memory`. Without `[query] sink`
//! the only sink that can answer queries does; several are a fault.
//! [`PipelineConfig::read`] reports every fault of the file at once, with its position.

use std::collections::HashMap;

use eye_config::{ConfigErrors, Document, Section, TextPosition, did_you_mean, suggestion};
use serde::de::DeserializeOwned;

use crate::filter::SinkFilter;
use crate::registry::{ComponentKind, Configured, Plugin, Plugins, Registry};
use crate::sink::Sink;
use crate::source::Source;
use crate::transport::Transport;
use crate::writer::WriterOverrides;

/// Every component of the pipeline, checked and ready to be built, in the order of the file.
#[derive(Debug)]
pub struct PipelineConfig {
    /// At least one.
    pub sources: Vec<Configured<dyn Source>>,
    /// `memory` unless another one is chosen.
    pub transport: Configured<dyn Transport>,
    /// At least one.
    pub sinks: Vec<ConfiguredSink>,
    /// The [name](Configured::name) of the sink that answers queries; it is one of `sinks` and can.
    pub query_sink: Option<String>,
}

/// A sink with the pipeline's own settings for it, which do not reach its plug-in.
#[derive(Debug)]
pub struct ConfiguredSink {
    /// The plug-in's part.
    pub component: Configured<dyn Sink>,
    /// Overrides of `[writer]`: `[sinks.NAME.writer]`.
    pub writer: WriterOverrides,
    /// The events that the sink gets: `[sinks.NAME.filter]`.
    pub filter: SinkFilter,
}

impl PipelineConfig {
    /// Reads the pipeline from a document whose other keys are read already: the keys that remain are unknown.
    ///
    /// # Errors
    /// All faults of the document.
    pub fn read(mut document: Document<'_>, registry: &Registry) -> Result<Self, ConfigErrors> {
        document.reject_unknown_keys(&["sources", "transport", "sinks"]);
        let source = ComponentReader { key: "sources", noun: "source", plugins: &registry.sources, default_type: None };
        let sources = source.read_each(&mut document, |section| source.read(section));
        report_shared_claims(&mut document, &sources);
        let plugins = &registry.transports;
        let transport = ComponentReader { key: "transport", noun: "transport", plugins, default_type: Some("memory") };
        let mut section = document.take(transport.key);
        section.expect_table("");
        let transport = transport.read(section);
        let sink = ComponentReader { key: "sinks", noun: "sink", plugins: &registry.sinks, default_type: None };
        let sinks = sink.read_each(&mut document, |mut section| {
            let settings = (take(&mut section, "writer"), take(&mut section, "filter"));
            (sink.read(section), settings)
        });
        let (sinks, settings): (Vec<_>, Vec<_>) = sinks.into_iter().unzip();
        let query_sink = choose_query_sink(&mut document, &sinks);
        let sinks = sinks.into_iter().zip(settings).filter_map(|(sink, (writer, filter))| {
            Some(ConfiguredSink { component: sink.configured?, writer, filter })
        });
        let pipeline = transport.configured.map(|transport| Self {
            sources: sources.into_iter().filter_map(|source| source.configured).collect(),
            transport,
            sinks: sinks.collect(),
            query_sink,
        });
        document.finish(pipeline)
    }
}

/// Takes a sub-table out of a component's table. Returns the default where the sub-table is missing or has faults.
fn take<T: DeserializeOwned + Default>(component: &mut Section<'_>, key: &str) -> T {
    component.take(key).and_then(|mut table| table.read()).unwrap_or_default()
}

/// A component that was read, with its faults reported.
struct ReadComponent<C: ComponentKind + ?Sized> {
    name: String,
    at: TextPosition,
    /// `None` where the plug-in is unknown.
    answers_queries: Option<bool>,
    /// `None` where the component has faults.
    configured: Option<Configured<C>>,
}

/// A reader of the components of one kind.
struct ComponentReader<'r, C: ComponentKind + ?Sized> {
    key: &'static str,
    noun: &'static str,
    plugins: &'r Plugins<C>,
    /// Stands for a missing `type`.
    default_type: Option<&'static str>,
}

impl<'r, C: ComponentKind + ?Sized> ComponentReader<'r, C> {
    /// Reads each table below `[key.NAME]`. There must be one.
    fn read_each<T>(&self, document: &mut Document<'_>, read: impl Fn(Section<'_>) -> T) -> Vec<T> {
        let Self { key, noun, .. } = self;
        let hint = format!("; write [{key}.NAME]");
        let mut section = document.take(key);
        if section.is_empty() {
            let types = self.plugins.type_names().join(", ");
            section.report_key(format!("no {noun}; add one as [{key}.NAME] with its `type`; known types: {types}"));
        }
        section.expect_table(&hint);
        let mut components = Vec::new();
        while let Some(mut component) = section.take_first() {
            if !is_name(component.name()) {
                component.report_key("a name is 1 to 64 letters, digits, `_` or `-`".to_owned());
            }
            component.expect_table(&hint);
            components.push(read(component));
        }
        components
    }

    fn read(&self, mut section: Section<'_>) -> ReadComponent<C> {
        let plugin = self.choose_plugin(&mut section);
        let config = plugin.and_then(|plugin| (plugin.read)(&mut section));
        ReadComponent {
            name: section.name().to_owned(),
            at: section.position(),
            answers_queries: plugin.map(|plugin| plugin.answers_queries),
            configured: config.map(|config| Configured::new(section.path(), config)),
        }
    }

    /// Returns the plug-in that the table's `type` names, and takes that key out.
    fn choose_plugin(&self, section: &mut Section<'_>) -> Option<&'r Plugin<C>> {
        let types = self.plugins.type_names();
        let Some(mut chosen) = section.take_or_misspelt("type") else {
            let default = self.default_type.and_then(|name| self.plugins.find(name));
            if default.is_none() {
                section.report_missing("type", &format!("; known types: {}", types.join(", ")));
            }
            return default;
        };
        let name: String = chosen.read_and_check(|name: &String| {
            let nearest = did_you_mean(name, types.iter().copied());
            let meant = nearest.map(|nearest| format!(" did you mean `{nearest}`?")).unwrap_or_default();
            let unknown = format!("no {} type `{name}`;{meant} known types: {}", self.noun, types.join(", "));
            if self.plugins.find(name).is_some() { Vec::new() } else { vec![unknown] }
        })?;
        self.plugins.find(&name)
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Reports each claim that an earlier component has made.
fn report_shared_claims<C: ComponentKind + ?Sized>(document: &mut Document<'_>, components: &[ReadComponent<C>]) {
    let mut owners = HashMap::new();
    for component in components {
        let Some(configured) = &component.configured else { continue };
        for claim in configured.claims() {
            if let Some(owner) = owners.get(&claim) {
                let message = format!("`{claim}` belongs to {owner} already; remove one of the two");
                document.report(component.at, configured.key(), message);
            } else {
                owners.insert(claim, configured.key());
            }
        }
    }
}

/// Returns the name of the sink that `[query] sink` chooses, or of the only one that can answer queries.
fn choose_query_sink(document: &mut Document<'_>, sinks: &[ReadComponent<dyn Sink>]) -> Option<String> {
    let able: Vec<_> = sinks.iter().filter(|sink| sink.answers_queries == Some(true)).collect();
    let able_names = able.iter().map(|sink| sink.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(mut chosen) = document.take("query").take("sink") {
        return chosen.read_and_check(|name: &String| match sinks.iter().find(|sink| sink.name == *name) {
            Some(sink) if sink.answers_queries == Some(false) => {
                let able_names = if able.is_empty() { "none can" } else { &able_names };
                vec![format!("the sink `{name}` cannot answer queries; sinks that can: {able_names}")]
            }
            None if !sinks.is_empty() => {
                let names: Vec<_> = sinks.iter().map(|sink| sink.name.as_str()).collect();
                vec![format!("no sink `{name}`; {}", suggestion(name, &names, "sinks"))]
            }
            _ => Vec::new(),
        });
    }
    if let [_, second, ..] = able.as_slice() {
        let message = format!("several sinks can answer queries; choose one in [query]: {able_names}");
        document.report(second.at, "query.sink", message);
    }
    able.first().map(|sink| sink.name.clone())
}

#[cfg(test)]
mod tests;
