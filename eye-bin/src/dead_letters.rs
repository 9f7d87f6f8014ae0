//! `eye dead-letters`: what was refused for good after it had been acknowledged, seen and sent again by its operator.

mod replay;

use std::borrow::Cow;
use std::io::{self, ErrorKind};

use anyhow::{Context, bail};
use eye_core::config::PipelineConfig;
use eye_core::dead_letter::{DeadLetter, DeadLetters};
use eye_core::json::{JsonText, Scanner};
use eye_core::timestamp::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use self::replay::Replay;
use crate::cli::{DeadLettersCommand, Which};
use crate::config::Config;
use crate::running_program::RunningProgram;
use crate::say;

/// Does what the command says.
///
/// # Errors
/// When something could not be done: what, is logged.
pub(crate) async fn run(config: Config, command: DeadLettersCommand) -> anyhow::Result<()> {
    let keepers = Keepers::new(&config.pipeline);
    match command {
        DeadLettersCommand::List => quietly(keepers.list().await),
        DeadLettersCommand::Show { ids } => quietly(keepers.show(&ids).await),
        DeadLettersCommand::Replay { which, url } => {
            let replay = Replay::new(RunningProgram::new(url.as_deref(), &config.server)?);
            let mut tally = Tally::default();
            let done = keepers.each(&which, &mut tally, async |keeper, letter| replay.one(keeper, letter).await).await;
            tally.report("replayed", done)
        }
        DeadLettersCommand::Delete { which } => {
            let mut tally = Tally::default();
            let delete = async |keeper: &Keeper, letter: DeadLetter| keeper.delete(&letter.id).await;
            let done = keepers.each(&which, &mut tally, delete).await;
            tally.report("deleted", done)
        }
    }
}

/// Who has read enough closes the pipe; that is no failure.
fn quietly(result: anyhow::Result<()>) -> anyhow::Result<()> {
    let is_closed = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    match result {
        Err(error) if error.downcast_ref().is_some_and(is_closed) => Ok(()),
        result => result,
    }
}

/// A component that keeps dead letters.
struct Keeper {
    /// Its key in the configuration.
    key: String,
    letters: Box<dyn DeadLetters>,
}

impl Keeper {
    /// What names a dead letter on the command line.
    fn full_id(&self, id: &str) -> String {
        format!("{}/{id}", self.key)
    }

    /// True: also where somebody else was quicker, it is gone.
    async fn delete(&self, id: &str) -> anyhow::Result<bool> {
        self.letters.delete(id).await.with_context(|| self.full_id(id))?;
        Ok(true)
    }
}

/// Every component that keeps dead letters.
struct Keepers(Vec<Keeper>);

impl Keepers {
    fn new(pipeline: &PipelineConfig) -> Self {
        let transport = &pipeline.transport;
        let kept = [(transport.key(), transport.dead_letters())];
        let kept = kept.into_iter().chain(pipeline.sources.iter().map(|source| (source.key(), source.dead_letters())));
        let keepers: Vec<_> =
            kept.filter_map(|(key, letters)| Some(Keeper { key: key.to_owned(), letters: letters? })).collect();
        if keepers.is_empty() {
            tracing::info!(
                transport = transport.type_name(),
                "nothing keeps dead letters with this configuration: producers are told what is refused"
            );
        }
        Self(keepers)
    }

    async fn list(&self) -> anyhow::Result<()> {
        let line = async |keeper: &Keeper, letter| print(&Line::listed(keeper, &letter));
        self.walk(line).await
    }

    async fn show(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut tally = Tally::default();
        for id in ids {
            match self.get(id).await? {
                Some((keeper, letter)) => print(&Line::whole(keeper, &letter))?,
                None => tally.is_missing(id),
            }
        }
        tally.result()
    }

    /// Does something with each of these, and counts: true means done, false that it stays, and an error ends it.
    async fn each(
        &self,
        which: &Which,
        tally: &mut Tally,
        mut work: impl AsyncFnMut(&Keeper, DeadLetter) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        for id in &which.ids {
            match self.get(id).await? {
                Some((keeper, letter)) => tally.count(work(keeper, letter).await?),
                None => tally.is_missing(id),
            }
        }
        if !which.all {
            return Ok(());
        }
        // What is refused again comes back as a new one; without this, it would be tried for ever.
        let started = Timestamp::now();
        self.walk(async |keeper, letter| {
            match letter.time <= started {
                true => tally.count(work(keeper, letter).await?),
                false => tally.later += 1,
            }
            Ok(())
        })
        .await
    }

    /// Calls `work` with every dead letter, keeper by keeper, the oldest first.
    async fn walk(&self, mut work: impl AsyncFnMut(&Keeper, DeadLetter) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for keeper in &self.0 {
            let mut after: Option<String> = None;
            loop {
                let page = keeper.letters.page(after.as_deref()).await.with_context(|| keeper.key.clone())?;
                let Some(last) = page.last() else { break };
                after = Some(last.id.clone());
                for letter in page {
                    work(keeper, letter).await?;
                }
            }
        }
        Ok(())
    }

    async fn get(&self, full_id: &str) -> anyhow::Result<Option<(&Keeper, DeadLetter)>> {
        let Some((key, id)) = full_id.split_once('/') else { return Ok(None) };
        let Some(keeper) = self.0.iter().find(|keeper| keeper.key == key) else { return Ok(None) };
        let letter = keeper.letters.get(id).await.with_context(|| full_id.to_owned())?;
        Ok(letter.map(|letter| (keeper, letter)))
    }
}

/// What became of those that were named.
#[derive(Default)]
struct Tally {
    done: usize,
    left: usize,
    missing: usize,
    /// Refused after the command was started.
    later: usize,
}

impl Tally {
    fn count(&mut self, done: bool) {
        *(if done { &mut self.done } else { &mut self.left }) += 1;
    }

    fn is_missing(&mut self, id: &str) {
        tracing::warn!(id, "no such dead letter; `eye dead-letters list` shows those that there are");
        self.missing += 1;
    }

    fn result(&self) -> anyhow::Result<()> {
        match (self.left, self.missing) {
            (0, 0) => Ok(()),
            (left, missing) => bail!("not all was done: {left} stay, {missing} were not found"),
        }
    }

    /// A last word on what was done, also before it ended early.
    fn report(&self, done: &str, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        tracing::info!(count = self.done, came_later = self.later, "{done}");
        ended.and_then(|()| self.result())
    }
}

fn print(line: &Line<'_>) -> anyhow::Result<()> {
    say(&serde_json::to_string(line).context("texts and numbers are JSON")?)
}

/// A dead letter on stdout.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    time: Timestamp,
    refused_by: &'a str,
    reason: &'a str,
    #[serde(flatten)]
    what: What<'a>,
}

/// What was refused.
#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Listed(Recognised<'a>),
    Json { payload: Box<RawValue> },
    Text { payload_text: Cow<'a, str> },
}

impl<'a> Line<'a> {
    fn listed(keeper: &Keeper, letter: &'a DeadLetter) -> Self {
        Self::new(keeper, letter, What::Listed(Recognised::of(&letter.payload)))
    }

    fn whole(keeper: &Keeper, letter: &'a DeadLetter) -> Self {
        let what = match json(&letter.payload) {
            Some(payload) => What::Json { payload },
            None => What::Text { payload_text: String::from_utf8_lossy(&letter.payload) },
        };
        Self::new(keeper, letter, what)
    }

    fn new(keeper: &Keeper, letter: &'a DeadLetter, what: What<'a>) -> Self {
        let DeadLetter { id, refused_by, reason, time, .. } = letter;
        Self { id: keeper.full_id(id), time: *time, refused_by, reason, what }
    }
}

/// What helps to recognise an event; nothing, where there is none or several.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Recognised<'a> {
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    category: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    name: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a RawValue>,
}

impl<'a> Recognised<'a> {
    fn of(payload: &'a [u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_default()
    }
}

fn text_or_number<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    Ok(Some(value)
        .filter(|value| value.get().starts_with(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])))
}

/// The tokens of a single JSON value as they are, without the line breaks between them.
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
