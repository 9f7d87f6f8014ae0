//! `eye run` and `eye migrate`: the program from startup to shutdown.
//!
//! [`run`] wires listener and pipeline together and shuts them down in order: first clients, then the pipeline.

use std::io::{self, Write};
use std::process;
use std::time::Instant;

use anyhow::{Context, bail};
use eye_api::events::QueryConfig;
use eye_api::{audit, events, health, index, metrics};
use eye_core::context::{BuildContext, Extensions};
use eye_core::health::HealthBoard;
use eye_core::pipeline::Pipeline;
use eye_core::sink::BuiltSink;
use eye_http::mount::{MountError, Mounts};
use eye_http::server::Server;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::telemetry;

/// The share of the shutdown's time that slow clients may use. The rest is for the writers.
const CLIENTS_SHARE: f64 = 0.75;

/// Runs `work` to its end on a runtime. Tasks that still run then are dropped; none of their events was acknowledged.
pub(crate) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Runs pipeline and listener until a signal arrives or a component fails.
///
/// # Errors
/// Fails if a component cannot be started or fails, or the shutdown exceeds its time limit.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let built_in = config.is_built_in();
    let summary = config.to_string();
    let server = Server::bind(config.server.clone()).await?;
    let board = HealthBoard::default();
    let (mounts, extensions) = (Mounts::default(), Extensions::default());
    extensions.insert(mounts.clone());
    let pipeline = Pipeline::build(config.pipeline, &config.writer, &board, &extensions).await?;
    add_endpoints(&mounts, &pipeline, &config.query, config.server.trust_proxy, board)?;
    let app = mounts.router("Events are at /api/event/.");

    let address = server.local_addr();
    let mut pipeline = pipeline.start();
    let listener = tokio::spawn(server.serve(app, pipeline.shutdown().clone()));
    let started_ms = started.elapsed().as_millis() as u64;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), pipeline = summary, started_ms, "listening");
    if built_in {
        greet(&address.to_string());
    }

    let failure = tokio::select! {
        failure = pipeline.failed() => Some(failure),
        name = signals.next() => {
            tracing::info!(signal = name, "stopping");
            None
        }
    };
    exit_at_next_signal(signals);
    let for_clients = config.shutdown_timeout.mul_f64(CLIENTS_SHARE);
    let stopping = pipeline.stop(async {
        // The listener does not panic: it catches and logs panics of its connections.
        if tokio::time::timeout(for_clients, listener).await.is_err() {
            tracing::warn!("requests are still open; the shutdown no longer waits for them");
        }
    });
    let stopped = tokio::time::timeout(config.shutdown_timeout, stopping).await;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    match stopped {
        Ok(result) => result?,
        Err(_elapsed) => bail!(
            "not stopped within shutdown_timeout_s = {}: events in flight were not acknowledged",
            config.shutdown_timeout.as_secs()
        ),
    }
    tracing::info!(uptime_s = started.elapsed().as_secs(), "stopped");
    Ok(())
}

/// Registers the endpoints of the API.
fn add_endpoints(
    mounts: &Mounts,
    pipeline: &Pipeline,
    query: &QueryConfig,
    trust_proxy: bool,
    board: HealthBoard,
) -> Result<(), MountError> {
    let accounting = pipeline.accounting();
    let [livez, readyz] = health::mounts(board);
    let endpoints =
        [index::mount(), livez, readyz, audit::mount(accounting.clone()), metrics::mount(accounting.clone())];
    let events = pipeline.store().map(|store| events::mount(store, query, trust_proxy));
    endpoints.into_iter().chain(events).try_for_each(|mount| mounts.add(mount))
}

/// Brings every sink's schema up to date.
///
/// # Errors
/// At the first sink that cannot be prepared.
pub(crate) async fn migrate(config: Config) -> anyhow::Result<()> {
    for configured in config.pipeline.sinks {
        let component = configured.component;
        let key = component.key().to_owned();
        let BuiltSink { sink, .. } = component.build(&BuildContext::standalone(&key)).await?;
        sink.prepare().await.with_context(|| format!("{key}: not migrated"))?;
        sink.close().await.with_context(|| key.clone())?;
        crate::print_line(&format!("{key}: up to date"))?;
    }
    Ok(())
}

/// Prints a first command for a user without a configuration.
fn greet(address: &str) {
    // A closed stderr must not stop the program.
    let _ = writeln!(
        io::stderr(),
        "\n  The Eye accepts events at http://{address}/api/event/ and stores them in eye-data/eye.db\n\n  \
         Send one:\n    curl -H 'Content-Type: application/json' http://{address}/api/event/ -d \
         '{{\"session_id\": \"s1\", \"category\": \"demo\", \"name\": \"hello\", \"data\": {{}}, \"timestamp\": \"{}\"}}'\n  \
         See it:\n    curl http://{address}/api/event/\n",
        eye_core::timestamp::Timestamp::now()
    );
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Exits at the next signal, without waiting for events in flight.
fn exit_at_next_signal(mut signals: Signals) {
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::warn!(signal = name, "exiting at once: events in flight were not acknowledged");
        telemetry::flush_logs();
        process::exit(1);
    });
}
