//! Wires the components together: starts from the sinks up, stops from the sources down.

use std::sync::Arc;

use axum::Router;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::accounts::{Accounts, SinkAccount};
use crate::health::{Health, HealthBoard};
use crate::pipeline_config::PipelineConfig;
use crate::registry::BuildError;
use crate::sink::Sink;
use crate::source::{Outlet, Source, SourceError};
use crate::transport::{Subscription, Transport, TransportError};
use crate::writer::{Writer, WriterConfig, WriterError};

/// Every component, made and wired, nothing running yet.
pub struct Pipeline {
    sources: Vec<(Box<dyn Source>, Outlet)>,
    transport: Arc<dyn Transport>,
    transport_health: Health,
    writers: Vec<(Health, Writer, Box<dyn Subscription>)>,
    query_sink: Option<Arc<dyn Sink>>,
    accounts: Accounts,
    shutdown: CancellationToken,
}

impl Pipeline {
    /// Makes every component. What can fail for good fails here; servers that are away are tried again later.
    ///
    /// # Errors
    /// The first component that cannot be made, by its key in the configuration.
    pub async fn build(
        config: PipelineConfig,
        writer: WriterConfig,
        board: &HealthBoard,
    ) -> Result<Self, PipelineError> {
        let shutdown = CancellationToken::new();
        let transport_health = board.component(config.transport.key());
        let transport: Arc<dyn Transport> = Arc::from(config.transport.build().await?);
        let mut writers = Vec::new();
        let mut query_sink = None;
        let mut accounts = Accounts { sources: Vec::new(), transport: transport.clone(), sinks: Vec::new() };
        for configured in config.sinks {
            let health = match transport.is_durable() {
                true => board.component_that_may_be_away(configured.key()),
                false => board.component(configured.key()),
            };
            let name = configured.name().to_owned();
            let sink: Arc<dyn Sink> = Arc::from(configured.build().await?);
            if config.query_sink.as_ref() == Some(&name) {
                query_sink = Some(sink.clone());
            }
            let subscription = transport.subscribe(&name).await.map_err(PipelineError::Transport)?;
            let account = Arc::new(SinkAccount::default());
            accounts.sinks.push((name, account.clone()));
            let writer = Writer::new(sink, health.clone(), account, writer.clone(), shutdown.clone());
            writers.push((health, writer, subscription));
        }
        let mut sources = Vec::new();
        for configured in config.sources {
            let outlet = Outlet::new(transport.clone(), board.component(configured.key()));
            accounts.sources.push((configured.name().to_owned(), outlet.account().clone()));
            sources.push((configured.build().await?, outlet));
        }
        Ok(Self { sources, transport, transport_health, writers, query_sink, accounts, shutdown })
    }

    /// The HTTP routes of the sources that have any.
    pub fn routes(&self) -> Vec<Router> {
        self.sources.iter().filter_map(|(source, outlet)| source.routes(outlet)).collect()
    }

    /// The sink that answers queries.
    pub fn query_sink(&self) -> Option<Arc<dyn Sink>> {
        self.query_sink.clone()
    }

    /// What its components count.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Starts the writers, then the sources.
    pub fn start(self) -> RunningPipeline {
        let mut writers = JoinSet::new();
        for (health, writer, subscription) in self.writers {
            writers.spawn(async move {
                let ended = writer.run(subscription).await;
                ended.map_err(|error| PipelineError::Writer { key: health.name().to_owned(), error })
            });
        }
        let mut sources = JoinSet::new();
        for (source, outlet) in self.sources {
            let shutdown = self.shutdown.clone();
            sources.spawn(async move {
                let key = outlet.health().name().to_owned();
                source.run(outlet, shutdown).await.map_err(|error| PipelineError::Source { key, error })
            });
        }
        let (transport, health) = (self.transport, self.transport_health);
        let watched = transport.clone();
        let watch = tokio::spawn(async move { watched.watch(health).await });
        RunningPipeline { sources, transport, watch, writers, accounts: self.accounts, shutdown: self.shutdown }
    }
}

/// A pipeline at work.
pub struct RunningPipeline {
    sources: JoinSet<Result<(), PipelineError>>,
    transport: Arc<dyn Transport>,
    // Ends only when the transport is broken.
    watch: JoinHandle<TransportError>,
    writers: JoinSet<Result<(), PipelineError>>,
    accounts: Accounts,
    shutdown: CancellationToken,
}

impl RunningPipeline {
    /// Cancelled when the pipeline stops: whoever shares its sources, such as the listener, stops with them.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Waits until a component ends that should not: as long as all is well, for ever. Cancel-safe.
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
        self.accounts.report_refusals();
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

/// Why a pipeline could not be built, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A component could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A sink could not subscribe to the transport, or the transport broke.
    #[error("transport: {0}")]
    Transport(TransportError),
    /// A source ended.
    #[error("{key}: {error}")]
    Source {
        /// Its key in the configuration.
        key: String,
        /// Why.
        error: SourceError,
    },
    /// A sink said that it will never be ready.
    #[error("{key}: {error}")]
    Writer {
        /// Its key in the configuration.
        key: String,
        /// Why.
        error: WriterError,
    },
    /// A component panicked, which is a fault of the program or of a plug-in.
    #[error("a component panicked: {0}")]
    Panicked(#[from] JoinError),
}
