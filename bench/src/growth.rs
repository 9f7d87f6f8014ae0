//! What it costs that many events are stored already.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::database::{Db, Servers, ServersArgs};
use crate::direct::FillWith;
use crate::events::JSON_BYTES;
use crate::figures::median;
use crate::origin::Origin;
use crate::queries::{self, Questions};
use crate::report::{against, whole};
use crate::rows::Settings;
use crate::{RunArgs, measure};

/// What ingest into the filled table is to reach of that into an empty one.
const MIN_OF_EMPTY: f64 = 0.7;

#[derive(Args)]
pub(crate) struct GrowthArgs {
    /// `all`, or names such as sqlite-16x100
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    servers: ServersArgs,
    #[command(flatten)]
    fill: FillWith,
    /// Also asks the queries of each filled database, before rows are measured into it
    #[arg(long)]
    queries: bool,
    #[command(flatten)]
    questions: Questions,
}

/// Each row into an empty table and into one that was filled, in turns. A database is filled once, for all of its rows.
pub(crate) async fn measure(args: &GrowthArgs) -> Result<()> {
    let rows = measure::named(&args.names)?;
    let settings = args.run.settings()?;
    let Settings { program, sessions, duration, .. } = &settings;
    let kinds: BTreeSet<_> = rows.iter().map(|row| row.kind).collect();
    let servers = Servers::new(&args.servers);
    let origin = Origin::of(kinds.iter().copied(), &servers, program).await?;
    println!("{origin}. Sessions: {sessions}; {} runs of {} s.\n", args.run.runs, duration.as_secs());
    let mut table = HEADER.to_owned();
    for kind in kinds {
        let store = servers.create(kind, program)?;
        store.fill(&args.fill, *sessions, program).await?;
        let before = Db::open(&store.url).await?.count(0).await?;
        let bytes = store.size_bytes().await? as f64 / before as f64;
        if args.queries {
            queries::ask_store(&store, program, &args.questions, args.fill.days).await?;
        }
        for row in rows.iter().filter(|row| row.kind == kind) {
            let [mut empty, mut filled, mut ratios, mut ready_ms] = [const { Vec::new() }; 4];
            for run in 1..=args.run.runs {
                let first = row.run(&servers, &settings).await.with_context(|| row.name)?;
                let second = row.run_into(&store, &settings).await.with_context(|| row.name)?;
                for counts in [&first.counts, &second.counts] {
                    ensure!(counts.lost == 0 && counts.too_many == 0, "{}: {counts:?}", row.name);
                }
                let (before, after) = (first.events_per_s, second.events_per_s);
                eprintln!("{run}/{} {:<16} {before:>8.0} events/s, filled {after:>8.0}", args.run.runs, row.name);
                empty.push(before);
                filled.push(after);
                ratios.push(after / before);
                ready_ms.push(second.ready_ms);
            }
            let [empty, filled, ratio, ready_ms] =
                [empty, filled, ratios, ready_ms].map(|values| median(values).unwrap_or_default());
            table += &format!(
                "| {} | {} | {} | {ratio:.2}{} | {ready_ms:.0} | {} | {bytes:.0} | {JSON_BYTES} |\n",
                row.name,
                whole(empty),
                whole(filled),
                against("≥", MIN_OF_EMPTY, ratio >= MIN_OF_EMPTY),
                whole(before as f64),
            );
        }
    }
    println!("{table}");
    Ok(())
}

const HEADER: &str = "\
| row | empty, events/s | filled, events/s | of empty | filled, ready ms | stored before | bytes on the disk/event | bytes of JSON/event |
|---|---:|---:|---:|---:|---:|---:|---:|
";
