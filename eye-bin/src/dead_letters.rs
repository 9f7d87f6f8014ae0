//! `eye dead-letters`: lists, shows, replays and deletes dead letters.
//!
//! [`DeadLetterStores`] holds the store of every component that has one. The commands work beside a running program, and
//! without one, except for replay.

mod replay;

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::iter;

use anyhow::{Context, bail};
use eye_core::dead_letter::{DeadLetter, DeadLetterStore};
use eye_core::json::{JsonText, Scanner};
use eye_core::pipeline_config::PipelineConfig;
use eye_core::timestamp::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use self::replay::Replay;
use crate::cli::{DeadLettersCommand, Selection};
use crate::config::Config;
use crate::print_line;
use crate::running_program::RunningProgram;

/// Executes the command.
///
/// # Errors
/// Fails if a dead letter is missing or stays; the log names each one.
pub(crate) async fn run(config: Config, command: DeadLettersCommand) -> anyhow::Result<()> {
    let stores = DeadLetterStores::new(&config.pipeline);
    match command {
        DeadLettersCommand::List => ignore_closed_pipe(stores.list().await),
        DeadLettersCommand::Show { ids } => ignore_closed_pipe(stores.show(&ids).await),
        DeadLettersCommand::Replay { selection, url } => {
            let replay = Replay::new(RunningProgram::new(url.as_deref(), &config.server)?);
            let mut tally = Tally::default();
            let done = stores.each(&selection, &mut tally, async |store, letter| replay.one(store, letter).await).await;
            tally.report("replayed", done)
        }
        DeadLettersCommand::Delete { selection } => {
            let mut tally = Tally::default();
            let delete = async |store: &NamedStore, letter: DeadLetter| store.delete(&letter.id).await;
            let done = stores.each(&selection, &mut tally, delete).await;
            tally.report("deleted", done)
        }
    }
}

/// Ignores a closed pipe: a reader such as `head` has read enough.
fn ignore_closed_pipe(result: anyhow::Result<()>) -> anyhow::Result<()> {
    let is_closed = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    match result {
        Err(error) if error.downcast_ref().is_some_and(is_closed) => Ok(()),
        result => result,
    }
}

/// The dead-letter store of one component.
struct NamedStore {
    /// The component's key in the configuration.
    key: String,
    letters: Box<dyn DeadLetterStore>,
}

impl NamedStore {
    /// Returns the id of a dead letter on the command line.
    fn full_id(&self, id: &str) -> String {
        format!("{}/{id}", self.key)
    }

    /// Deletes a dead letter. Returns true even if it was deleted before.
    async fn delete(&self, id: &str) -> anyhow::Result<bool> {
        self.letters.delete(id).await.with_context(|| self.full_id(id))?;
        Ok(true)
    }
}

/// The dead-letter stores of all components.
struct DeadLetterStores(Vec<NamedStore>);

impl DeadLetterStores {
    fn new(pipeline: &PipelineConfig) -> Self {
        let transport = &pipeline.transport;
        let sources = pipeline.sources.iter().map(|source| (source.key(), source.dead_letters()));
        let stores: Vec<_> = iter::once((transport.key(), transport.dead_letters()))
            .chain(sources)
            .filter_map(|(key, letters)| Some(NamedStore { key: key.to_owned(), letters: letters? }))
            .collect();
        if stores.is_empty() {
            tracing::info!(
                transport = transport.type_name(),
                "no component of this configuration stores dead letters: producers are told what is refused"
            );
        }
        Self(stores)
    }

    async fn list(&self) -> anyhow::Result<()> {
        let line = async |store: &NamedStore, letter| print(&OutputLine::summary(store, &letter));
        self.walk(line).await
    }

    async fn show(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut tally = Tally::default();
        for id in ids {
            match self.get(id).await? {
                Some((store, letter)) => print(&OutputLine::whole(store, &letter))?,
                None => tally.add_missing(id),
            }
        }
        tally.result()
    }

    /// Applies `work` to each selected dead letter and counts the results: true for done, false for left. Stops at an error.
    async fn each(
        &self,
        selection: &Selection,
        tally: &mut Tally,
        mut work: impl AsyncFnMut(&NamedStore, DeadLetter) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        for id in &selection.ids {
            match self.get(id).await? {
                Some((store, letter)) => tally.add(work(store, letter).await?),
                None => tally.add_missing(id),
            }
        }
        if !selection.all {
            return Ok(());
        }
        // A replayed event that is refused again becomes a new dead letter. Without this bound, the walk would not end.
        let started = Timestamp::now();
        self.walk(async |store, letter| {
            match letter.time <= started {
                true => tally.add(work(store, letter).await?),
                false => tally.later += 1,
            }
            Ok(())
        })
        .await
    }

    /// Calls `work` with every dead letter, store by store, oldest first.
    async fn walk(
        &self,
        mut work: impl AsyncFnMut(&NamedStore, DeadLetter) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for store in &self.0 {
            let mut after: Option<String> = None;
            loop {
                let page = store.letters.page(after.as_deref()).await.with_context(|| store.key.clone())?;
                let Some(last) = page.last() else { break };
                after = Some(last.id.clone());
                for letter in page {
                    work(store, letter).await?;
                }
            }
        }
        Ok(())
    }

    async fn get(&self, full_id: &str) -> anyhow::Result<Option<(&NamedStore, DeadLetter)>> {
        let Some((key, id)) = full_id.split_once('/') else { return Ok(None) };
        let Some(store) = self.0.iter().find(|store| store.key == key) else { return Ok(None) };
        let letter = store.letters.get(id).await.with_context(|| full_id.to_owned())?;
        Ok(letter.map(|letter| (store, letter)))
    }
}

/// Counts of the selected dead letters by result.
#[derive(Default)]
struct Tally {
    done: usize,
    left: usize,
    missing: usize,
    /// Refused after the command had started.
    later: usize,
}

impl Tally {
    fn add(&mut self, done: bool) {
        *(if done { &mut self.done } else { &mut self.left }) += 1;
    }

    fn add_missing(&mut self, id: &str) {
        tracing::warn!(id, "no such dead letter; `eye dead-letters list` shows all");
        self.missing += 1;
    }

    fn result(&self) -> anyhow::Result<()> {
        match (self.left, self.missing) {
            (0, 0) => Ok(()),
            (left, missing) => bail!("not all dead letters were handled: {left} stay, {missing} were not found"),
        }
    }

    /// Logs the counts, also after an early end, and returns the overall result.
    fn report(&self, done: &str, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        tracing::info!(count = self.done, came_later = self.later, "{done}");
        ended.and_then(|()| self.result())
    }
}

fn print(line: &OutputLine<'_>) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(line).context("texts and numbers are JSON")?)
}

/// A line of output for one dead letter.
#[derive(Serialize)]
struct OutputLine<'a> {
    id: String,
    time: Timestamp,
    refused_by: &'a str,
    reason: &'a str,
    #[serde(flatten)]
    payload: OutputPayload<'a>,
}

/// The refused event or message.
#[derive(Serialize)]
#[serde(untagged)]
enum OutputPayload<'a> {
    Summary(EventSummary<'a>),
    Json { payload: Box<RawValue> },
    Text { payload_text: Cow<'a, str> },
}

impl<'a> OutputLine<'a> {
    fn summary(store: &NamedStore, letter: &'a DeadLetter) -> Self {
        Self::new(store, letter, OutputPayload::Summary(EventSummary::of(&letter.payload)))
    }

    fn whole(store: &NamedStore, letter: &'a DeadLetter) -> Self {
        let shown = match json(&letter.payload) {
            Some(payload) => OutputPayload::Json { payload },
            None => OutputPayload::Text { payload_text: String::from_utf8_lossy(&letter.payload) },
        };
        Self::new(store, letter, shown)
    }

    fn new(store: &NamedStore, letter: &'a DeadLetter, shown: OutputPayload<'a>) -> Self {
        let DeadLetter { id, refused_by, reason, time, .. } = letter;
        Self { id: store.full_id(id), time: *time, refused_by, reason, payload: shown }
    }
}

/// The fields that identify an event. Empty if the payload is not exactly one event.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct EventSummary<'a> {
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    category: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    name: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a RawValue>,
}

impl<'a> EventSummary<'a> {
    fn of(payload: &'a [u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_default()
    }
}

fn text_or_number<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    Ok(Some(value)
        .filter(|value| value.get().starts_with(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])))
}

/// Returns a single JSON value with its tokens unchanged and without the white space between them.
fn json(payload: &[u8]) -> Option<Box<RawValue>> {
    std::str::from_utf8(payload).ok()?;
    let text = JsonText::new(payload);
    let mut scanner = Scanner::new(&text);
    scanner.skip_white_space();
    let value = scanner.value().ok()?;
    scanner.skip_white_space();
    let tokens = scanner.copied()[value.tokens].to_owned();
    RawValue::from_string(tokens).ok().filter(|_| scanner.peek().is_none())
}

#[cfg(test)]
mod tests;
