//! Which plug-ins there are: type name to factory. Registration is explicit.

use std::fmt;

use async_trait::async_trait;

use crate::config::Section;
use crate::dead_letter::DeadLetters;
use crate::pipeline_config::key_faults;
use crate::sink::{Sink, SinkConfig};
use crate::source::{Source, SourceConfig};
use crate::transport::{Transport, TransportConfig};

/// Why a component could not be made. [`Configured::build`] adds which one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// The plug-ins that a configuration may name by their `type`.
#[derive(Default)]
pub struct Registry {
    pub(crate) sources: Plugins<dyn Source>,
    pub(crate) transports: Plugins<dyn Transport>,
    pub(crate) sinks: Plugins<dyn Sink>,
}

impl Registry {
    /// A registry without plug-ins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source.
    ///
    /// # Panics
    /// When a source of that type name is there already.
    #[must_use]
    pub fn source<C: SourceConfig>(mut self) -> Self {
        self.sources.add(C::TYPE, C::HAS_ROUTES, |section| {
            Some(Box::new(section.read(|config| key_faults(C::check(config)))?))
        });
        self
    }

    /// Adds a transport.
    ///
    /// # Panics
    /// When a transport of that type name is there already.
    #[must_use]
    pub fn transport<C: TransportConfig>(mut self) -> Self {
        self.transports
            .add(C::TYPE, false, |section| Some(Box::new(section.read(|config| key_faults(C::check(config)))?)));
        self
    }

    /// Adds a sink.
    ///
    /// # Panics
    /// When a sink of that type name is there already.
    #[must_use]
    pub fn sink<C: SinkConfig>(mut self) -> Self {
        self.sinks.add(C::TYPE, C::ANSWERS_QUERIES, |section| Some(Box::new(section.read(|_: &C| Vec::new())?)));
        self
    }
}

/// The plug-ins of one kind (`dyn Source`, `dyn Transport` or `dyn Sink`).
pub(crate) struct Plugins<C: ?Sized>(Vec<Plugin<C>>);

/// One plug-in: its name and its factory.
pub(crate) struct Plugin<C: ?Sized> {
    pub(crate) type_name: &'static str,
    /// Whether it has something for the listener: a source its routes, a sink answers to queries.
    pub(crate) serves: bool,
    /// Reads the component's keys into the plug-in's struct; `None` once the faults are reported.
    pub(crate) read: fn(&mut Section<'_>) -> Option<Box<dyn Build<C>>>,
}

impl<C: ?Sized> Default for Plugins<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: ?Sized> Plugins<C> {
    fn add(&mut self, type_name: &'static str, serves: bool, read: fn(&mut Section<'_>) -> Option<Box<dyn Build<C>>>) {
        assert!(self.find(type_name).is_none(), "the plug-in type `{type_name}` is registered twice");
        self.0.push(Plugin { type_name, serves, read });
    }

    pub(crate) fn find(&self, type_name: &str) -> Option<&Plugin<C>> {
        self.0.iter().find(|plugin| plugin.type_name == type_name)
    }

    /// All type names, sorted.
    pub(crate) fn type_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.iter().map(|plugin| plugin.type_name).collect();
        names.sort_unstable();
        names
    }
}

/// What [`SourceConfig`], [`TransportConfig`] and [`SinkConfig`] have in common once it is known which component `C`
/// (`dyn Source`, `dyn Transport` or `dyn Sink`) they make.
#[async_trait]
pub trait Build<C: ?Sized + 'static>: Send {
    /// The `type` that picks the plug-in.
    fn type_name(&self) -> &'static str;

    /// Makes the component.
    async fn build(self: Box<Self>) -> Result<Box<C>, BuildError>;

    /// Where the component keeps dead letters; `None` where it keeps none.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        None
    }
}

#[async_trait]
impl<T: SourceConfig> Build<dyn Source> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>) -> Result<Box<dyn Source>, BuildError> {
        SourceConfig::build(*self).await
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        SourceConfig::dead_letters(self)
    }
}

#[async_trait]
impl<T: TransportConfig> Build<dyn Transport> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>) -> Result<Box<dyn Transport>, BuildError> {
        TransportConfig::build(*self).await
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        TransportConfig::dead_letters(self)
    }
}

#[async_trait]
impl<T: SinkConfig> Build<dyn Sink> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>) -> Result<Box<dyn Sink>, BuildError> {
        SinkConfig::build(*self).await
    }
}

/// One component as configured, checked and ready to be built. `C` is `dyn Source`, `dyn Transport` or `dyn Sink`.
pub struct Configured<C: ?Sized + 'static> {
    key: String,
    config: Box<dyn Build<C>>,
}

impl<C: ?Sized + 'static> Configured<C> {
    /// A component with its key in the configuration, such as `sinks.store` or `transport`.
    pub fn new(key: impl Into<String>, config: Box<dyn Build<C>>) -> Self {
        Self { key: key.into(), config }
    }

    /// The component's key in the configuration, such as `sinks.store` or `transport`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The name that the operator gave, such as `store` of `sinks.store`.
    pub fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or_default()
    }

    /// The `type` that picked the plug-in.
    pub fn type_name(&self) -> &'static str {
        self.config.type_name()
    }

    /// Where the component keeps dead letters; `None` where it keeps none.
    pub fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        self.config.dead_letters()
    }

    /// Makes the component.
    ///
    /// # Errors
    /// The plug-in's error, with the component's key in front.
    pub async fn build(self) -> Result<Box<C>, BuildError> {
        let Self { key, config } = self;
        config.build().await.map_err(|error| BuildError(format!("{key}: {error}")))
    }
}

/// Without the configuration itself: it may hold secrets.
impl<C: ?Sized + 'static> fmt::Debug for Configured<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").field("key", &self.key).field("type", &self.type_name()).finish_non_exhaustive()
    }
}
