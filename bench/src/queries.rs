//! Queries on a running program that holds many events, while more arrive.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chrono::{DateTime, SecondsFormat};
use clap::Args;
use serde::Deserialize;

use crate::client::HttpClient;
use crate::events::now_us;
use crate::figures::median;
use crate::process::Killed;

#[derive(Args)]
pub(crate) struct QueriesArgs {
    /// The program that runs, such as http://127.0.0.1:8000
    #[arg(long)]
    url: String,
    /// Events a second that arrive meanwhile
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Over how many days until now the events happened
    #[arg(long, default_value_t = 365)]
    days: u32,
    /// How often each query is asked, each time for something else
    #[arg(long, default_value_t = 100)]
    times: usize,
    /// How many pages are read by their cursors
    #[arg(long, default_value_t = 1000)]
    pages: usize,
}

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

/// Measures every filter and every two of them, then pages by cursor, then large pages.
pub(crate) async fn measure(args: &QueriesArgs) -> Result<()> {
    let _load = Killed(
        Command::new(std::env::current_exe()?)
            .args(["load", "--url", &format!("{}/api/event/", args.url), "--connections", "16"])
            .args(["--rate", &args.rate.to_string(), "--duration-s", "86400"])
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut client = HttpClient::new(&args.url)?;
    let samples = samples(&mut client, args).await?;
    first_pages(&mut client, args, &samples).await?;
    cursors(&mut client, args).await?;
    large_pages(&mut client, args).await
}

/// Events of all ages.
async fn samples(client: &mut HttpClient, args: &QueriesArgs) -> Result<Vec<Sample>> {
    let span_us = i64::from(args.days) * 86_400_000_000;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let instant = DateTime::from_timestamp_micros(now_us() - fastrand::i64(0..span_us)).expect("of this age");
        let instant = instant.to_rfc3339_opts(SecondsFormat::Micros, true);
        let path = format!("/api/event/?limit=10&timestamp_before={instant}");
        samples.extend(get(client, &path).await?.page()?.results);
    }
    ensure!(!samples.is_empty(), "nothing is stored from the last {} days", args.days);
    fastrand::shuffle(&mut samples);
    Ok(samples)
}

async fn first_pages(client: &mut HttpClient, args: &QueriesArgs, samples: &[Sample]) -> Result<()> {
    println!("| first page, filtered by | p50 ms | p99 ms | max ms | median count |\n|---|---:|---:|---:|---:|");
    let singles = FILTERS.map(|filter| vec![filter]);
    let pairs = (0..FILTERS.len()).flat_map(|i| (0..i).map(move |j| vec![FILTERS[j], FILTERS[i]]));
    for filters in std::iter::once(Vec::new()).chain(singles).chain(pairs) {
        let (mut times, mut counts) = (Vec::new(), Vec::new());
        for sample in samples.iter().cycle().take(args.times) {
            let conditions: Vec<String> = filters.iter().map(|filter| condition(filter, sample, &filters)).collect();
            let answer = get(client, &format!("/api/event/?{}", conditions.join("&"))).await?;
            times.push(answer.ms());
            counts.push(answer.page()?.count as f64);
        }
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&mut times, share));
        let count = median(counts).unwrap_or_default();
        let name = if filters.is_empty() { "nothing".to_owned() } else { filters.join(", ") };
        println!("| {name} | {p50:.1} | {p99:.1} | {max:.1} | {count:.0} |");
    }
    Ok(())
}

/// One condition that the sample fulfils. Where both ends of a range are given, it starts up to 30 days before.
fn condition(filter: &str, sample: &Sample, filters: &[&str]) -> String {
    let value = match filter {
        "session_id" => sample.session_id.clone(),
        "category" => sample.category.clone(),
        "name" => sample.name.clone(),
        "timestamp_after" if filters.contains(&"timestamp_before") => {
            let days = chrono::Duration::seconds(fastrand::i64(0..30 * 86_400));
            let end = DateTime::parse_from_rfc3339(&sample.timestamp).unwrap_or_default();
            (end - days).to_utc().to_rfc3339_opts(SecondsFormat::Micros, true)
        }
        _ => sample.timestamp.clone(),
    };
    format!("{filter}={}", value.replace(' ', "%20"))
}

/// Follows `next`.
async fn cursors(client: &mut HttpClient, args: &QueriesArgs) -> Result<()> {
    let mut path = "/api/event/".to_owned();
    let mut times = Vec::new();
    while times.len() < args.pages {
        let answer = get(client, &path).await?;
        times.push(answer.ms());
        let Some(next) = answer.page()?.next else { break };
        // `next` is absolute.
        path = next.find("/api/").map(|start| next[start..].to_owned()).context("`next` leads elsewhere")?;
    }
    let few = times.len().min(20);
    let [first, last] = [&times[..few], &times[times.len() - few..]].map(|times| median(times.to_vec()));
    let [first, last] = [first, last].map(Option::unwrap_or_default);
    println!("\nPages by cursor, medians of {few}: the first {first:.1} ms, up to page {} {last:.1} ms.", times.len());
    Ok(())
}

async fn large_pages(client: &mut HttpClient, args: &QueriesArgs) -> Result<()> {
    let (mut whole, mut body) = (Vec::new(), Vec::new());
    for _ in 0..args.times {
        let answer = get(client, "/api/event/?limit=1000").await?;
        let megabytes = answer.body.len() as f64 / 1e6;
        whole.push(megabytes / answer.elapsed.as_secs_f64());
        body.push(megabytes / (answer.elapsed - answer.first_byte).as_secs_f64().max(1e-6));
    }
    let [whole, body] = [whole, body].map(|rates| median(rates).unwrap_or_default());
    println!("A page of 1,000 events, medians: {whole:.0} MB/s from the request, {body:.0} MB/s from its first byte.");
    Ok(())
}

struct Answer {
    body: Vec<u8>,
    first_byte: Duration,
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
    let (mut body, mut first_byte) = (Vec::new(), None);
    let asked = Instant::now();
    let take = |part: bytes::Bytes| {
        first_byte.get_or_insert_with(|| asked.elapsed());
        body.extend(part);
    };
    let status = client.get(path, take).await.map_err(|error| anyhow!("{path}: {error}"))?;
    let elapsed = asked.elapsed();
    ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(&body));
    Ok(Answer { body, first_byte: first_byte.unwrap_or(elapsed), elapsed })
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
