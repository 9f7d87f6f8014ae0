//! Queries on a database with many events, while more events arrive.
//!
//! [`measure`] fills a database, or uses a running program, and prints the latencies of first pages, of pages by cursor
//! and of large pages. It fails when the load could not keep its rate, because the figures would mean nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, SecondsFormat};
use clap::Args;
use eye_harness::Eye;
use serde::Deserialize;

use crate::client::HttpConnection;
use crate::database::DatabaseKind;
use crate::direct::FillArgs;
use crate::environment::MeasurementEnvironment;
use crate::events::{SessionPattern, now_us};
use crate::numbers::{median, quantile, target_note, thousands};
use crate::process::KillOnDrop;
use crate::servers::{BenchDatabase, DatabaseServers, ServersArgs};
use crate::settings::ProgramArg;

/// Arguments of the command `queries`.
#[derive(Args)]
pub(crate) struct QueriesArgs {
    /// Kind of the database to create and fill
    #[arg(required_unless_present = "url", conflicts_with = "url")]
    kind: Option<DatabaseKind>,
    /// URL of a running program to query instead, such as http://127.0.0.1:8000
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    program: ProgramArg,
    #[command(flatten)]
    servers: ServersArgs,
    #[command(flatten)]
    fill: FillArgs,
    /// Sessions of the events
    #[arg(long, value_enum, default_value = "come-and-go")]
    sessions: SessionPattern,
    #[command(flatten)]
    options: QueryOptions,
}

/// The load during the queries, and the number of queries.
#[derive(Args)]
pub(crate) struct QueryOptions {
    /// Rate at which events arrive during the queries, in events/s
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Number of times that each query is sent, each time with other values; fewer when they take longer than 10 s
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Number of the page to follow cursors to
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    pages: u32,
}

/// Longest time for one kind of query.
const MAX_DURATION: Duration = Duration::from_secs(10);

/// Target for the 99th percentile of a first page with its count.
const MAX_P99_MS: f64 = 20.0;
/// Target for a later page as a multiple of the first page. A tenth is within the noise.
const MAX_OF_PAGE_1: f64 = 1.1;
/// Target for a page of 1,000 events.
const MIN_MB_PER_S: f64 = 50.0;
/// Smallest share of the load's rate that makes a valid measurement.
const MIN_ARRIVED: f64 = 0.95;

/// Values of a stored event for the filters.
#[derive(Deserialize)]
struct SampledEvent {
    session_id: String,
    category: String,
    name: String,
    timestamp: String,
}

/// One page of a response.
#[derive(Deserialize)]
struct ResultPage {
    count: u64,
    next: Option<String>,
    results: Vec<SampledEvent>,
}

/// The documented filters.
const FILTERS: [&str; 5] = ["session_id", "category", "name", "timestamp_after", "timestamp_before"];

/// Runs the command `queries`.
pub(crate) async fn measure(args: &QueriesArgs) -> Result<()> {
    let (fill, options) = (&args.fill, &args.options);
    if let Some(url) = &args.url {
        println!("{}; {url}.\n", MeasurementEnvironment::without_databases());
        return measure_queries(url, options, fill.days).await;
    }
    let (kind, program) = (args.kind.context("name a database or --url")?, args.program.path()?);
    let servers = DatabaseServers::new(&args.servers.innodb_buffer_pool_size);
    println!("{}.\n", MeasurementEnvironment::with_databases([kind], &servers, &program).await?);
    let database = servers.create(kind, &program)?;
    database.fill(fill, args.sessions, &program).await?;
    println!("{} events of {} days, sessions: {}", thousands(fill.events as f64), fill.days, args.sessions);
    measure_database(&database, &program, options, fill.days).await
}

/// Starts `program` on a filled database and measures queries.
pub(crate) async fn measure_database(
    database: &BenchDatabase<'_>,
    program: &Path,
    options: &QueryOptions,
    days: u32,
) -> Result<()> {
    let eye = Eye::start(program, &database.config());
    eye.wait_ready().await;
    println!("\nQueries on {}, while {} events/s arrive:\n", database.kind, options.rate);
    measure_queries(&eye.url(""), options, days).await
}

/// Measures queries by each filter and each pair of filters, then pages by cursor, then large pages.
async fn measure_queries(url: &str, options: &QueryOptions, days: u32) -> Result<()> {
    let mut load = KillOnDrop(
        Command::new(std::env::current_exe()?)
            .args(["load", "--url", &format!("{url}/api/event/"), "--connections", "16"])
            .args(["--rate", &options.rate.to_string(), "--duration-s", "86400"])
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut client = HttpConnection::new(url)?;
    let samples = samples(&mut client, days).await?;
    let (started, before) = (Instant::now(), stored(&mut client).await?);
    first_pages(&mut client, options, &samples, days).await?;
    cursors(&mut client, options).await?;
    large_pages(&mut client, options).await?;
    let arrived = (stored(&mut client).await? - before) as f64 / started.elapsed().as_secs_f64();
    println!("Meanwhile {} events/s arrived.\n", thousands(arrived));
    ensure!(load.0.try_wait()?.is_none(), "the load generator has ended: the figures were not measured under load");
    let wanted = f64::from(options.rate) * MIN_ARRIVED;
    ensure!(
        arrived >= wanted,
        "only {arrived:.0} of {} events/s arrived: the figures were not measured under this load",
        options.rate
    );
    Ok(())
}

/// Returns the number of stored events.
async fn stored(client: &mut HttpConnection) -> Result<u64> {
    Ok(get(client, "/api/event/?limit=1").await?.page()?.count)
}

/// Returns stored events of all ages, in random order.
async fn samples(client: &mut HttpConnection, days: u32) -> Result<Vec<SampledEvent>> {
    let span_us = i64::from(days) * 86_400_000_000;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let instant =
            DateTime::from_timestamp_micros(now_us() - fastrand::i64(0..span_us)).expect("a timestamp of this age");
        let instant = instant.to_rfc3339_opts(SecondsFormat::Micros, true);
        let path = format!("/api/event/?limit=10&timestamp_before={instant}");
        samples.extend(get(client, &path).await?.page()?.results);
    }
    ensure!(!samples.is_empty(), "the last {days} days have no events");
    fastrand::shuffle(&mut samples);
    Ok(samples)
}

/// Measures first pages by each filter and each pair of filters.
async fn first_pages(
    client: &mut HttpConnection,
    options: &QueryOptions,
    samples: &[SampledEvent],
    days: u32,
) -> Result<()> {
    println!(
        "| first page, filtered by | p50 ms | p99 ms | max ms | median count | asked |\n|---|---:|---:|---:|---:|---:|"
    );
    let singles = FILTERS.map(|filter| vec![filter]);
    let pairs = (0..FILTERS.len()).flat_map(|i| (0..i).map(move |j| vec![FILTERS[j], FILTERS[i]]));
    for filters in std::iter::once(Vec::new()).chain(singles).chain(pairs) {
        let (mut times, mut counts) = (Vec::new(), Vec::new());
        let started = Instant::now();
        for sample in samples.iter().cycle().take(options.times as usize) {
            if started.elapsed() > MAX_DURATION {
                break;
            }
            let conditions: Vec<String> =
                filters.iter().map(|filter| condition(filter, sample, &filters, days)).collect();
            let answer = get(client, &format!("/api/event/?{}", conditions.join("&"))).await?;
            times.push(answer.ms);
            counts.push(answer.page()?.count as f64);
        }
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut times, share));
        let count = median(counts).unwrap_or_default();
        let name = if filters.is_empty() { "nothing".to_owned() } else { filters.join(", ") };
        let bound = target_note("≤", MAX_P99_MS, p99 <= MAX_P99_MS);
        let (count, asked) = (thousands(count), times.len());
        println!("| {name} | {p50:.1} | {p99:.1}{bound} | {max:.1} | {count} | {asked} |");
    }
    Ok(())
}

/// Returns one condition that matches the sample. A range with two ends covers up to 30 days.
fn condition(filter: &str, sample: &SampledEvent, filters: &[&str], days: u32) -> String {
    let value = match filter {
        "session_id" => sample.session_id.clone(),
        "category" => sample.category.clone(),
        "name" => sample.name.clone(),
        "timestamp_after" if filters.contains(&"timestamp_before") => {
            let days = chrono::Duration::seconds(fastrand::i64(0..i64::from(days.min(30)) * 86_400));
            let end = DateTime::parse_from_rfc3339(&sample.timestamp).unwrap_or_default();
            (end - days).to_utc().to_rfc3339_opts(SecondsFormat::Micros, true)
        }
        _ => sample.timestamp.clone(),
    };
    format!("{filter}={}", value.replace(' ', "%20"))
}

/// Follows `next` to the last page, then measures the first page and the last page in turns.
async fn cursors(client: &mut HttpConnection, options: &QueryOptions) -> Result<()> {
    let first = "/api/event/".to_owned();
    let (mut last, mut page) = (first.clone(), 1);
    while page < options.pages {
        let Some(next) = get(client, &last).await?.page()?.next else { break };
        // `next` is an absolute URL.
        last = next.find("/api/").map(|start| next[start..].to_owned()).context("`next` leads to another path")?;
        page += 1;
    }
    let [mut first_ms, mut last_ms] = [const { Vec::new() }; 2];
    let started = Instant::now();
    while first_ms.len() < options.times as usize && started.elapsed() < MAX_DURATION {
        first_ms.push(get(client, &first).await?.ms);
        last_ms.push(get(client, &last).await?.ms);
    }
    let [first_ms, last_ms] = [first_ms, last_ms].map(|times| median(times).unwrap_or_default());
    let is_met = last_ms <= first_ms * MAX_OF_PAGE_1;
    println!(
        "\nBy cursor, medians: page 1 {first_ms:.2} ms, page {} {last_ms:.2} ms{}.",
        thousands(f64::from(page)),
        if is_met { "" } else { " (no slower: **missed**)" },
    );
    Ok(())
}

/// Measures pages of 1,000 events.
async fn large_pages(client: &mut HttpConnection, options: &QueryOptions) -> Result<()> {
    let mut rates = Vec::new();
    let started = Instant::now();
    while rates.len() < options.times as usize && started.elapsed() < MAX_DURATION {
        let answer = get(client, "/api/event/?limit=1000").await?;
        rates.push(answer.body.len() as f64 / 1000.0 / answer.ms);
    }
    let rate = median(rates).unwrap_or_default();
    let bound = target_note("≥", MIN_MB_PER_S, rate >= MIN_MB_PER_S);
    println!("A page of 1,000 events, from the request to its end, median: {rate:.0} MB/s{bound}.");
    Ok(())
}

/// A response, with the milliseconds from the request to its end.
struct TimedResponse {
    body: Vec<u8>,
    ms: f64,
}

impl TimedResponse {
    fn page(&self) -> Result<ResultPage> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

async fn get(client: &mut HttpConnection, path: &str) -> Result<TimedResponse> {
    let mut body = Vec::new();
    let started = Instant::now();
    let status = client.get(path, |part| body.extend(part)).await.with_context(|| path.to_owned())?;
    let ms = started.elapsed().as_secs_f64() * 1000.0;
    ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(&body));
    Ok(TimedResponse { body, ms })
}
