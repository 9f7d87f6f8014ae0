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
//! `type` picks the plug-in from the [`Registry`]; the plug-in's struct has the other keys, but for the tables `writer`
//! and `filter` of a sink, which are the pipeline's. Without `[transport]` the
//! transport is `memory`. Without `[query] sink` the only sink that can answer queries does; several are a fault.
//! [`PipelineConfig::read`] reports every fault of the file at once, with its position.

use std::collections::HashMap;

use eye_config::{ConfigErrors, Document, KeyFault, Position, Section, did_you_mean, suggestion};
use serde::de::DeserializeOwned;

use crate::error::BuildError;
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
        let Registry { sources, transports, sinks } = registry;
        document.reject_unknown_keys(&["sources", "transport", "sinks"]);
        let sources = read_each(&mut document, "sources", SOURCE, sources, |mut section| {
            read_component(&mut section, SOURCE, sources, None)
        });
        let transport = read_transport(&mut document, transports);
        let mut settings = Vec::new();
        let sinks = read_each(&mut document, "sinks", SINK, sinks, |mut section| {
            settings.push((read_part(&mut section, "writer"), read_part(&mut section, "filter")));
            read_component(&mut section, SINK, sinks, None)
        });
        report_shared_claims(&mut document, &sources);
        let query_sink = choose_query_sink(&mut document, &sinks);
        let pipeline = transport.configured.map(|transport| Self {
            sources: sources.into_iter().filter_map(|component| component.configured).collect(),
            transport,
            sinks: sinks
                .into_iter()
                .zip(settings)
                .filter_map(|(sink, (writer, filter))| {
                    Some(ConfiguredSink { component: sink.configured?, writer, filter })
                })
                .collect(),
            query_sink,
        });
        document.finish(pipeline)
    }
}

/// Reads a table of the section that the pipeline takes for itself; the default where it is missing or has faults.
fn read_part<T: DeserializeOwned + Default>(section: &mut Section<'_>, key: &str) -> T {
    section.take(key).and_then(|mut part| part.read(|_| Vec::new())).unwrap_or_default()
}

const SOURCE: &str = "source";
const SINK: &str = "sink";

/// A component that was read, with its faults reported.
struct Component<C: ComponentKind + ?Sized> {
    path: String,
    name: String,
    at: Position,
    /// `None` where the plug-in is unknown.
    answers_queries: Option<bool>,
    /// `None` where the component has faults.
    configured: Option<Configured<C>>,
}

/// Reads each table below `[key.NAME]`, of which there must be one.
fn read_each<C: ComponentKind + ?Sized, T>(
    document: &mut Document<'_>,
    key: &str,
    noun: &str,
    plugins: &Plugins<C>,
    mut read: impl FnMut(Section<'_>) -> T,
) -> Vec<T> {
    let hint = format!("; write [{key}.NAME]");
    let mut section = document.take(key);
    if section.is_empty() {
        let types = plugins.type_names().join(", ");
        section.report_key(&format!("no {noun}; add one as [{key}.NAME] with its `type`; known types: {types}"));
    }
    section.expect_table(&hint);
    let mut all = Vec::new();
    while let Some(mut component) = section.take_first() {
        if !is_name(component.name()) {
            component.report_key("a name is 1 to 64 letters, digits, `_` or `-`");
        }
        component.expect_table(&hint);
        all.push(read(component));
    }
    all
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn read_transport(document: &mut Document<'_>, plugins: &Plugins<dyn Transport>) -> Component<dyn Transport> {
    let mut section = document.take("transport");
    section.expect_table("");
    read_component(&mut section, "transport", plugins, Some("memory"))
}

fn read_component<C: ComponentKind + ?Sized>(
    section: &mut Section<'_>,
    noun: &str,
    plugins: &Plugins<C>,
    default_type: Option<&str>,
) -> Component<C> {
    let plugin = choose_plugin(section, noun, plugins, default_type);
    let config = plugin.and_then(|plugin| (plugin.read)(section));
    Component {
        path: section.path().to_owned(),
        name: section.name().to_owned(),
        at: section.position(),
        answers_queries: plugin.map(|plugin| plugin.answers_queries),
        configured: config.map(|config| Configured::new(section.path(), config)),
    }
}

/// Returns the plug-in that the table's `type` names, and takes that key out.
fn choose_plugin<'p, C: ComponentKind + ?Sized>(
    section: &mut Section<'_>,
    noun: &str,
    plugins: &'p Plugins<C>,
    default_type: Option<&str>,
) -> Option<&'p Plugin<C>> {
    let types = plugins.type_names();
    let Some(mut chosen) = section.take_or_misspelt("type") else {
        let default = default_type.and_then(|name| plugins.find(name));
        if default.is_none() {
            section.report_missing("type", &format!("; known types: {}", types.join(", ")));
        }
        return default;
    };
    let name: String = chosen.read(|name: &String| match plugins.find(name) {
        Some(_) => Vec::new(),
        None => fault(unknown_type(noun, name, &types)),
    })?;
    plugins.find(&name)
}

fn unknown_type(noun: &str, name: &str, types: &[&str]) -> String {
    let nearest = did_you_mean(name, types.iter().copied());
    let meant = nearest.map(|nearest| format!(" did you mean `{nearest}`?")).unwrap_or_default();
    format!("no {noun} type `{name}`;{meant} known types: {}", types.join(", "))
}

/// A fault of the checked value itself.
fn fault(message: String) -> Vec<KeyFault> {
    vec![KeyFault { key: String::new(), message }]
}

/// Reports each claim of a source that another source has already made.
fn report_shared_claims(document: &mut Document<'_>, sources: &[Component<dyn Source>]) {
    let mut owners = HashMap::new();
    for source in sources {
        for claim in source.configured.iter().flat_map(Configured::claims) {
            let owner = *owners.entry(claim.clone()).or_insert(&source.path);
            if *owner != source.path {
                let message = format!("`{claim}` belongs to {owner} already; remove one of the two");
                document.report(source.at, &source.path, message);
            }
        }
    }
}

/// Returns the name of the sink that `[query] sink` chooses, or of the only one that can answer queries.
fn choose_query_sink(document: &mut Document<'_>, sinks: &[Component<dyn Sink>]) -> Option<String> {
    let able: Vec<_> = sinks.iter().filter(|sink| sink.answers_queries == Some(true)).collect();
    let names = |sinks: &mut dyn Iterator<Item = &Component<dyn Sink>>| {
        sinks.map(|sink| sink.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    if let Some(mut chosen) = document.take("query").take("sink") {
        return chosen.read(|name: &String| match sinks.iter().find(|sink| sink.name == *name) {
            Some(sink) if sink.answers_queries == Some(false) => {
                let others = if able.is_empty() { "none can".to_owned() } else { names(&mut able.iter().copied()) };
                fault(format!("the sink `{name}` cannot answer queries; sinks that can: {others}"))
            }
            None if !sinks.is_empty() => {
                let names: Vec<_> = sinks.iter().map(|sink| sink.name.as_str()).collect();
                fault(format!("no sink `{name}`; {}", suggestion(name, &names, "sinks")))
            }
            _ => Vec::new(),
        });
    }
    if let [_, second, ..] = able.as_slice() {
        let names = names(&mut able.iter().copied());
        let message = format!("several sinks can answer queries; choose one in [query]: {names}");
        document.report(second.at, "query.sink", message);
    }
    able.first().map(|sink| sink.name.clone())
}

/// Turns the faults that a plug-in found into faults with positions.
pub(crate) fn key_faults(errors: Vec<BuildError>) -> Vec<KeyFault> {
    let fault = |error: BuildError| KeyFault { key: error.key().to_owned(), message: error.message().to_owned() };
    errors.into_iter().map(fault).collect()
}

#[cfg(test)]
mod tests;
