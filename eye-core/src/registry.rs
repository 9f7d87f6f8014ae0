//! The plug-ins that a configuration may name: from a type name to a factory. Registration is explicit.
//!
//! [`Registry`] holds one list for each kind of component (`dyn Source`, `dyn Transport`, `dyn Sink`). Reading a
//! component's table with its plug-in gives a [`Configured`] component, which is checked and ready to be built.

use std::fmt;

use async_trait::async_trait;
use eye_config::Section;

use crate::context::BuildContext;
use crate::dead_letter::DeadLetterStore;
use crate::error::BuildError;
use crate::sink::{BuiltSink, Sink, SinkConfig};
use crate::source::{Source, SourceConfig, SourceContext};
use crate::transport::{Transport, TransportConfig};

/// The plug-ins that a configuration may name by their `type`.
#[derive(Default)]
pub struct Registry {
    pub(crate) sources: Plugins<dyn Source>,
    pub(crate) transports: Plugins<dyn Transport>,
    pub(crate) sinks: Plugins<dyn Sink>,
}

impl Registry {
    /// Creates a registry without plug-ins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source.
    ///
    /// # Panics
    /// If a source of that type name is registered already.
    #[must_use]
    pub fn source<C: SourceConfig>(mut self) -> Self {
        self.sources.add(C::TYPE, false, |section| Some(Box::new(section.read_and_check(C::check)?)));
        self
    }

    /// Adds a transport.
    ///
    /// # Panics
    /// If a transport of that type name is registered already.
    #[must_use]
    pub fn transport<C: TransportConfig>(mut self) -> Self {
        self.transports.add(C::TYPE, false, |section| Some(Box::new(section.read_and_check(C::check)?)));
        self
    }

    /// Adds a sink.
    ///
    /// # Panics
    /// If a sink of that type name is registered already.
    #[must_use]
    pub fn sink<C: SinkConfig>(mut self) -> Self {
        self.sinks.add(C::TYPE, C::ANSWERS_QUERIES, |section| Some(Box::new(section.read::<C>()?)));
        self
    }
}

/// A kind of component: `dyn Source`, `dyn Transport` or `dyn Sink`.
pub trait ComponentKind: 'static {
    /// The environment that such a component is built in.
    type Context: Sync;
    /// The result of building one.
    type Built;
}

impl ComponentKind for dyn Source {
    type Context = SourceContext;
    type Built = Box<dyn Source>;
}

impl ComponentKind for dyn Transport {
    type Context = BuildContext;
    type Built = Box<dyn Transport>;
}

impl ComponentKind for dyn Sink {
    type Context = BuildContext;
    type Built = BuiltSink;
}

/// The plug-ins of one kind.
pub(crate) struct Plugins<C: ComponentKind + ?Sized>(Vec<Plugin<C>>);

/// One plug-in: its name and its factory.
pub(crate) struct Plugin<C: ComponentKind + ?Sized> {
    pub(crate) type_name: &'static str,
    /// True for a sink that can answer queries.
    pub(crate) answers_queries: bool,
    /// Reads the component's keys into the plug-in's struct; `None` once the faults are reported.
    pub(crate) read: ReadConfig<C>,
}

type ReadConfig<C> = fn(&mut Section<'_>) -> Option<Box<dyn Build<C>>>;

impl<C: ComponentKind + ?Sized> Default for Plugins<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: ComponentKind + ?Sized> Plugins<C> {
    fn add(&mut self, type_name: &'static str, answers_queries: bool, read: ReadConfig<C>) {
        assert!(self.find(type_name).is_none(), "the plug-in type `{type_name}` is registered twice");
        self.0.push(Plugin { type_name, answers_queries, read });
    }

    pub(crate) fn find(&self, type_name: &str) -> Option<&Plugin<C>> {
        self.0.iter().find(|plugin| plugin.type_name == type_name)
    }

    /// Returns all type names, sorted.
    pub(crate) fn type_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.iter().map(|plugin| plugin.type_name).collect();
        names.sort_unstable();
        names
    }
}

/// The settings of any plug-in of one kind: what [`SourceConfig`], [`TransportConfig`] and [`SinkConfig`] have in
/// common.
#[async_trait]
pub trait Build<C: ComponentKind + ?Sized>: Send {
    /// Returns the `type` that selects the plug-in.
    fn type_name(&self) -> &'static str;

    /// Builds the component.
    async fn build(self: Box<Self>, context: &C::Context) -> Result<C::Built, BuildError>;

    /// Returns the component's dead letters; `None` where it keeps none.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        None
    }

    /// Returns what only one component of this kind may have.
    fn claims(&self) -> Vec<String> {
        Vec::new()
    }
}

#[async_trait]
impl<T: SourceConfig> Build<dyn Source> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>, context: &SourceContext) -> Result<Box<dyn Source>, BuildError> {
        SourceConfig::build(*self, context).await
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        SourceConfig::dead_letters(self)
    }

    fn claims(&self) -> Vec<String> {
        SourceConfig::claims(self)
    }
}

#[async_trait]
impl<T: TransportConfig> Build<dyn Transport> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>, context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        TransportConfig::build(*self, context).await
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        TransportConfig::dead_letters(self)
    }
}

#[async_trait]
impl<T: SinkConfig> Build<dyn Sink> for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    async fn build(self: Box<Self>, context: &BuildContext) -> Result<BuiltSink, BuildError> {
        SinkConfig::build(*self, context).await
    }
}

/// One component as configured: checked, and ready to be built.
pub struct Configured<C: ComponentKind + ?Sized> {
    key: String,
    config: Box<dyn Build<C>>,
}

impl<C: ComponentKind + ?Sized> Configured<C> {
    /// Creates a component with its key in the configuration, such as `sinks.store` or `transport`.
    pub fn new(key: impl Into<String>, config: Box<dyn Build<C>>) -> Self {
        Self { key: key.into(), config }
    }

    /// Returns the component's key in the configuration, such as `sinks.store` or `transport`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the name that the operator gave, such as `store` of `sinks.store`.
    pub fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or_default()
    }

    /// Returns the `type` that selected the plug-in.
    pub fn type_name(&self) -> &'static str {
        self.config.type_name()
    }

    /// Returns the component's dead letters; `None` where it keeps none.
    pub fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        self.config.dead_letters()
    }

    /// Returns what only one component of this kind may have.
    pub(crate) fn claims(&self) -> Vec<String> {
        self.config.claims()
    }

    /// Builds the component.
    ///
    /// # Errors
    /// The plug-in's error, with the component's key in front.
    pub async fn build(self, context: &C::Context) -> Result<C::Built, BuildError> {
        let Self { key, config } = self;
        config.build(context).await.map_err(|error| error.within(&key))
    }
}

/// Shows no settings: they may hold secrets.
impl<C: ComponentKind + ?Sized> fmt::Debug for Configured<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").field("key", &self.key).field("type", &self.type_name()).finish_non_exhaustive()
    }
}
