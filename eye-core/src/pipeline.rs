//! The pipeline: builds all components, starts them from the sinks up and stops them from the sources down.
//!
//! [`Pipeline::build`] wires everything and runs nothing. [`Pipeline::start`] gives a [`RunningPipeline`], which ends
//! when it is stopped or when a component fails for good.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::accounting::Accounting;
use crate::context::{BuildContext, Extensions};
use crate::counters::SinkCounters;
use crate::error::BuildError;
use crate::filter::SinkFilter;
use crate::health::{Health, HealthBoard};
use crate::pipeline_config::{ConfiguredSink, PipelineConfig};
use crate::refusals::Refusals;
use crate::sink::{BuiltSink, Sink};
use crate::source::{Outlet, Source, SourceContext, SourceError};
use crate::store::EventStore;
use crate::transport::{Subscription, Transport, TransportError};
use crate::writer::{Writer, WriterConfig, WriterError};

/// Every component, built and wired; nothing runs yet.
pub struct Pipeline {
    sources: Vec<(String, Box<dyn Source>)>,
    transport: Arc<dyn Transport>,
    transport_health: Health,
    writers: Vec<(String, Writer, Box<dyn Subscription>)>,
    store: Option<Arc<dyn EventStore>>,
    accounting: Accounting,
    shutdown: CancellationToken,
}

impl Pipeline {
    /// Builds every component. Permanent failures appear here; unavailable servers are tried again later.
    ///
    /// # Errors
    /// The first component that cannot be built, by its key in the configuration.
    pub async fn build(
        config: PipelineConfig,
        writer: &WriterConfig,
        board: &HealthBoard,
        extensions: &Extensions,
    ) -> Result<Self, PipelineError> {
        let shutdown = CancellationToken::new();
        let context = |health: &Health| BuildContext::new(health.clone(), shutdown.clone(), extensions.clone());

        let transport_health = board.component(config.transport.key());
        let transport: Arc<dyn Transport> = Arc::from(config.transport.build(&context(&transport_health)).await?);
        let mut pipeline = Self {
            sources: Vec::new(),
            accounting: Accounting::new(transport.clone()),
            transport,
            transport_health,
            writers: Vec::new(),
            store: None,
            shutdown: shutdown.clone(),
        };
        for ConfiguredSink { component, writer: overrides, filter } in config.sinks {
            let health = match pipeline.transport.is_durable() {
                true => board.optional_component(component.key()),
                false => board.component(component.key()),
            };
            let name = component.name().to_owned();
            let BuiltSink { sink, store } = component.build(&context(&health)).await?;
            if config.query_sink.as_ref() == Some(&name) {
                pipeline.store = store;
            }
            pipeline.add_writer(name, sink, health, &writer.with(&overrides), filter).await?;
        }
        for configured in config.sources {
            let health = board.component(configured.key());
            let outlet = Outlet::new(pipeline.transport.clone(), health.clone());
            let counters = outlet.counters().clone();
            pipeline.accounting.sources.push((configured.name().to_owned(), counters));
            let context = SourceContext { component: context(&health), outlet };
            let key = configured.key().to_owned();
            pipeline.sources.push((key, configured.build(&context).await?));
        }
        Ok(pipeline)
    }

    async fn add_writer(
        &mut self,
        name: String,
        sink: Arc<dyn Sink>,
        health: Health,
        config: &WriterConfig,
        filter: SinkFilter,
    ) -> Result<(), PipelineError> {
        let subscription = self.transport.subscribe(&name).await.map_err(PipelineError::Transport)?;
        let counters = Arc::new(SinkCounters::default());
        self.accounting.sinks.push((name, counters.clone()));
        let key = health.name().to_owned();
        let writer = Writer {
            sink,
            refusals: Refusals::new(&*key),
            health,
            counters,
            filter,
            limits: config.batch_limits(self.transport.default_max_wait()),
            retry_for: config.retry_for(),
            dead_letters: self.transport.dead_letters(),
            shutdown: self.shutdown.clone(),
        };
        self.writers.push((key, writer, subscription));
        Ok(())
    }

    /// Returns the store that answers queries.
    pub fn store(&self) -> Option<Arc<dyn EventStore>> {
        self.store.clone()
    }

    /// Returns the accounting of all components.
    pub fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    /// Starts the writers, then the sources.
    pub fn start(self) -> RunningPipeline {
        let mut writers = JoinSet::new();
        for (key, writer, subscription) in self.writers {
            writers.spawn(async move {
                let ended = writer.run(subscription).await;
                ended.map_err(|error| PipelineError::Writer { key, error })
            });
        }
        let mut sources = JoinSet::new();
        for (key, source) in self.sources {
            let shutdown = self.shutdown.clone();
            sources
                .spawn(async move { source.run(shutdown).await.map_err(|error| PipelineError::Source { key, error }) });
        }
        let (transport, health) = (self.transport, self.transport_health);
        let watched = transport.clone();
        let watch = tokio::spawn(async move { watched.watch(health).await });
        RunningPipeline { sources, transport, watch, writers, accounting: self.accounting, shutdown: self.shutdown }
    }
}

/// A pipeline at work.
pub struct RunningPipeline {
    sources: JoinSet<Result<(), PipelineError>>,
    transport: Arc<dyn Transport>,
    // Ends only when the transport is broken.
    watch: JoinHandle<TransportError>,
    writers: JoinSet<Result<(), PipelineError>>,
    accounting: Accounting,
    shutdown: CancellationToken,
}

impl RunningPipeline {
    /// Returns the token that is cancelled when the pipeline stops, for whatever must stop with its sources.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Waits until a component ends that should not: for ever, as long as all is well. Cancel-safe.
    pub async fn failed(&mut self) -> PipelineError {
        loop {
            let ended = tokio::select! {
                ended = &mut self.watch => ended.map(|error| Err(PipelineError::Transport(error))),
                Some(ended) = self.writers.join_next() => ended,
                Some(ended) = self.sources.join_next() => ended,
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(panic) => return panic.into(),
            }
        }
    }

    /// Stops the sources, waits for them and for `listener`, which owes answers too, then lets the writers finish.
    ///
    /// Takes as long as the sinks need; the caller sets the bound. Dropped before its end, it leaves events unwritten
    /// that were not acknowledged.
    ///
    /// # Errors
    /// The first component that did not end well.
    pub async fn stop(mut self, listener: impl Future<Output = ()>) -> Result<(), PipelineError> {
        self.shutdown.cancel();
        self.watch.abort();
        let (sources, ()) = tokio::join!(join_all(&mut self.sources), listener);
        self.transport.close();
        let writers = join_all(&mut self.writers).await;
        self.accounting.report_refusals();
        sources.and(writers)
    }
}

async fn join_all(tasks: &mut JoinSet<Result<(), PipelineError>>) -> Result<(), PipelineError> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        result = result.and(ended.unwrap_or_else(|panic| Err(panic.into())));
    }
    result
}

/// A pipeline that could not be built, or that stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A component could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A sink could not subscribe to the transport, or the transport broke.
    #[error("transport: {0}")]
    Transport(TransportError),
    /// A source ended by itself.
    #[error("{key}: {error}")]
    Source {
        /// The source's key in the configuration.
        key: String,
        /// The cause.
        error: SourceError,
    },
    /// A sink will never be ready.
    #[error("{key}: {error}")]
    Writer {
        /// The sink's key in the configuration.
        key: String,
        /// The cause.
        error: WriterError,
    },
    /// A component panicked, which is a fault of the program or of a plug-in.
    #[error("a component panicked: {0}")]
    Panicked(#[from] JoinError),
}
