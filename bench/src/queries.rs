//! Queries on a program that holds many events, while more arrive.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chrono::{DateTime, SecondsFormat};
use clap::Args;
use eye_harness::Eye;
use serde::Deserialize;

use crate::ProgramArg;
use crate::client::HttpClient;
use crate::database::{Kind, Servers, ServersArgs, Store};
use crate::direct::FillWith;
use crate::events::{Sessions, now_us};
use crate::figures::median;
use crate::origin::Origin;
use crate::process::Killed;
use crate::report::{against, whole};

#[derive(Args)]
pub(crate) struct QueriesArgs {
    /// The database to make and to fill
    #[arg(required_unless_present = "url", conflicts_with = "url")]
    kind: Option<Kind>,
    /// A program that runs already, such as http://127.0.0.1:8000, to be asked instead
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    program: ProgramArg,
    #[command(flatten)]
    servers: ServersArgs,
    #[command(flatten)]
    fill: FillWith,
    #[arg(long, value_enum, default_value = "come-and-go")]
    sessions: Sessions,
    #[command(flatten)]
    questions: Questions,
}

#[derive(Args)]
pub(crate) struct Questions {
    /// Events a second that arrive while it is asked
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How often each query is asked, each time for something else; less often when that takes longer than 10 s
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// To which page cursors are followed
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    pages: u32,
}

/// A query is asked for so long.
const LONGEST: Duration = Duration::from_secs(10);

/// Of a first page with its count.
const MAX_P99_MS: f64 = 20.0;
/// How many times as long as page 1 a later one may take. They are the same when it is within the noise.
const MAX_OF_PAGE_1: f64 = 1.1;
/// Of a page of 1,000 events.
const MIN_MB_PER_S: f64 = 50.0;
/// What of the events that were to arrive must have arrived, or it was not measured under this load.
const MIN_ARRIVED: f64 = 0.95;

/// What filters ask for.
#[derive(Deserialize)]
struct Sample {
    session_id: String,
    category: String,
    name: String,
    timestamp: String,
}

#[derive(Deserialize)]
struct Page {
    count: u64,
    next: Option<String>,
    results: Vec<Sample>,
}

/// The documented filters.
const FILTERS: [&str; 5] = ["session_id", "category", "name", "timestamp_after", "timestamp_before"];

pub(crate) async fn measure(args: &QueriesArgs) -> Result<()> {
    let (fill, questions) = (&args.fill, &args.questions);
    if let Some(url) = &args.url {
        println!("{}; {url}.\n", Origin::here());
        return ask(url, questions, fill.days).await;
    }
    let (kind, program) = (args.kind.context("a database, or --url")?, args.program.path()?);
    let servers = Servers::new(&args.servers);
    println!("{}.\n", Origin::of([kind], &servers, &program).await?);
    let store = servers.create(kind, &program)?;
    store.fill(fill, args.sessions, &program).await?;
    println!("{} events of {} days, sessions: {}", whole(fill.events as f64), fill.days, args.sessions);
    ask_store(&store, &program, questions, fill.days).await
}

/// Starts `program` on what is stored, and asks it.
pub(crate) async fn ask_store(store: &Store<'_>, program: &Path, questions: &Questions, days: u32) -> Result<()> {
    let eye = Eye::start(program, &store.config());
    eye.wait_ready().await;
    println!("\nQueries on {}, while {} events/s arrive:\n", store.kind, questions.rate);
    ask(&eye.url(""), questions, days).await
}

/// Measures every filter and every two of them, then pages by cursor, then large pages.
async fn ask(url: &str, questions: &Questions, days: u32) -> Result<()> {
    let mut load = Killed(
        Command::new(std::env::current_exe()?)
            .args(["load", "--url", &format!("{url}/api/event/"), "--connections", "16"])
            .args(["--rate", &questions.rate.to_string(), "--duration-s", "86400"])
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut client = HttpClient::new(url)?;
    let samples = samples(&mut client, days).await?;
    let (started, before) = (Instant::now(), stored(&mut client).await?);
    first_pages(&mut client, questions, &samples, days).await?;
    cursors(&mut client, questions).await?;
    large_pages(&mut client, questions).await?;
    let arrived = (stored(&mut client).await? - before) as f64 / started.elapsed().as_secs_f64();
    println!("Meanwhile {} events/s arrived.\n", whole(arrived));
    ensure!(load.0.try_wait()?.is_none(), "what sends events has ended: nothing of this was measured under load");
    let wanted = f64::from(questions.rate) * MIN_ARRIVED;
    ensure!(arrived >= wanted, "{arrived:.0} events/s arrived instead of {}: this is no answer", questions.rate);
    Ok(())
}

/// How many events there are.
async fn stored(client: &mut HttpClient) -> Result<u64> {
    Ok(get(client, "/api/event/?limit=1").await?.page()?.count)
}

/// Events of all ages.
async fn samples(client: &mut HttpClient, days: u32) -> Result<Vec<Sample>> {
    let span_us = i64::from(days) * 86_400_000_000;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let instant = DateTime::from_timestamp_micros(now_us() - fastrand::i64(0..span_us)).expect("of this age");
        let instant = instant.to_rfc3339_opts(SecondsFormat::Micros, true);
        let path = format!("/api/event/?limit=10&timestamp_before={instant}");
        samples.extend(get(client, &path).await?.page()?.results);
    }
    ensure!(!samples.is_empty(), "nothing is stored from the last {days} days");
    fastrand::shuffle(&mut samples);
    Ok(samples)
}

async fn first_pages(client: &mut HttpClient, questions: &Questions, samples: &[Sample], days: u32) -> Result<()> {
    println!(
        "| first page, filtered by | p50 ms | p99 ms | max ms | median count | asked |\n|---|---:|---:|---:|---:|---:|"
    );
    let singles = FILTERS.map(|filter| vec![filter]);
    let pairs = (0..FILTERS.len()).flat_map(|i| (0..i).map(move |j| vec![FILTERS[j], FILTERS[i]]));
    for filters in std::iter::once(Vec::new()).chain(singles).chain(pairs) {
        let (mut times, mut counts) = (Vec::new(), Vec::new());
        let started = Instant::now();
        for sample in samples.iter().cycle().take(questions.times as usize) {
            if started.elapsed() > LONGEST {
                break;
            }
            let conditions: Vec<String> =
                filters.iter().map(|filter| condition(filter, sample, &filters, days)).collect();
            let answer = get(client, &format!("/api/event/?{}", conditions.join("&"))).await?;
            times.push(answer.ms());
            counts.push(answer.page()?.count as f64);
        }
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut times, share));
        let count = median(counts).unwrap_or_default();
        let name = if filters.is_empty() { "nothing".to_owned() } else { filters.join(", ") };
        let bound = against("≤", MAX_P99_MS, p99 <= MAX_P99_MS);
        let (count, asked) = (whole(count), times.len());
        println!("| {name} | {p50:.1} | {p99:.1}{bound} | {max:.1} | {count} | {asked} |");
    }
    Ok(())
}

/// One condition that the sample fulfils. Where both ends of a range are given, it starts up to 30 of the days before.
fn condition(filter: &str, sample: &Sample, filters: &[&str], days: u32) -> String {
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

/// Follows `next`, then asks for the first page and the last one in turns.
async fn cursors(client: &mut HttpClient, questions: &Questions) -> Result<()> {
    let first = "/api/event/".to_owned();
    let (mut last, mut page) = (first.clone(), 1);
    while page < questions.pages {
        let Some(next) = get(client, &last).await?.page()?.next else { break };
        // `next` is absolute.
        last = next.find("/api/").map(|start| next[start..].to_owned()).context("`next` leads elsewhere")?;
        page += 1;
    }
    let [mut first_ms, mut last_ms] = [const { Vec::new() }; 2];
    let started = Instant::now();
    while first_ms.len() < questions.times as usize && started.elapsed() < LONGEST {
        first_ms.push(get(client, &first).await?.ms());
        last_ms.push(get(client, &last).await?.ms());
    }
    let [first_ms, last_ms] = [first_ms, last_ms].map(|times| median(times).unwrap_or_default());
    let is_as_fast = last_ms <= first_ms * MAX_OF_PAGE_1;
    println!(
        "\nBy cursor, medians: page 1 {first_ms:.2} ms, page {} {last_ms:.2} ms{}.",
        whole(f64::from(page)),
        if is_as_fast { "" } else { " (no slower: **missed**)" },
    );
    Ok(())
}

async fn large_pages(client: &mut HttpClient, questions: &Questions) -> Result<()> {
    let mut rates = Vec::new();
    let started = Instant::now();
    while rates.len() < questions.times as usize && started.elapsed() < LONGEST {
        let answer = get(client, "/api/event/?limit=1000").await?;
        rates.push(answer.body.len() as f64 / 1e6 / answer.elapsed.as_secs_f64());
    }
    let rate = median(rates).unwrap_or_default();
    let bound = against("≥", MIN_MB_PER_S, rate >= MIN_MB_PER_S);
    println!("A page of 1,000 events, from the request to its end, median: {rate:.0} MB/s{bound}.");
    Ok(())
}

struct Answer {
    body: Vec<u8>,
    elapsed: Duration,
}

impl Answer {
    fn ms(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1000.0
    }

    fn page(&self) -> Result<Page> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

async fn get(client: &mut HttpClient, path: &str) -> Result<Answer> {
    let mut body = Vec::new();
    let asked = Instant::now();
    let status = client.get(path, |part| body.extend(part)).await.map_err(|error| anyhow!("{path}: {error}"))?;
    let elapsed = asked.elapsed();
    ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(&body));
    Ok(Answer { body, elapsed })
}

/// The least value that so large a share of all does not exceed.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_values() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&mut values, share)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
