//! How each component is: for `/readyz`, and one log line for each change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a component that stays away is silent before another reason is logged.
const OTHER_REASON_AFTER: Duration = Duration::from_secs(30);

/// The states of all components.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard {
    entries: Arc<Mutex<Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    component: Component,
    /// The last reason that was logged, and when.
    logged: Option<(String, Instant)>,
}

/// One component's place on the board.
#[derive(Clone, Debug)]
pub struct Health {
    board: HealthBoard,
    index: usize,
    name: Arc<str>,
}

/// One component and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Kind and name as in the configuration, such as `sinks.store`.
    pub name: Arc<str>,
    /// How it is.
    pub state: State,
    /// Whether the program can take events without it.
    pub may_be_away: bool,
}

/// How a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ready yet, for the first time.
    Starting,
    /// At work.
    Ready,
    /// Cannot work now; it keeps trying.
    Unavailable {
        /// Why, for the operator. No secrets.
        reason: String,
    },
}

impl HealthBoard {
    /// Adds a component; it is [`State::Starting`].
    pub fn component(&self, name: impl Into<Arc<str>>) -> Health {
        self.add(name.into(), false)
    }

    /// Adds a component without which the program can take events; otherwise as [`component`](Self::component).
    pub fn component_that_may_be_away(&self, name: impl Into<Arc<str>>) -> Health {
        self.add(name.into(), true)
    }

    fn add(&self, name: Arc<str>, may_be_away: bool) -> Health {
        let mut entries = self.lock();
        let component = Component { name: name.clone(), state: State::Starting, may_be_away };
        entries.push(Entry { component, logged: None });
        Health { board: self.clone(), index: entries.len() - 1, name }
    }

    /// Every component, in the order they were added.
    pub fn components(&self) -> Vec<Component> {
        self.lock().iter().map(|entry| entry.component.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Kind and name of the component, such as `sinks.store`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The component is at work.
    pub fn ready(&self) {
        if self.change(State::Ready) {
            tracing::info!(component = self.name(), "ready");
        }
    }

    /// The component cannot work now. While it stays away, further reasons are shown at once, and logged now and then: the
    /// first one is not always the one that lasts.
    pub fn unavailable(&self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.change(State::Unavailable { reason: reason.clone() }) {
            tracing::warn!(component = self.name(), reason, "unavailable, trying again");
        }
    }

    /// Sets the state; whether that is to be logged.
    fn change(&self, state: State) -> bool {
        let entry = &mut self.board.lock()[self.index];
        let before = std::mem::replace(&mut entry.component.state, state.clone());
        let is_news = match (&state, &entry.logged) {
            (State::Unavailable { reason }, Some((logged, at))) if matches!(before, State::Unavailable { .. }) => {
                reason != logged && at.elapsed() >= OTHER_REASON_AFTER
            }
            _ => std::mem::discriminant(&before) != std::mem::discriminant(&state),
        };
        if let State::Unavailable { reason } = state
            && is_news
        {
            entry.logged = Some((reason, Instant::now()));
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_logged_once_and_another_one_now_and_then() {
        let health = HealthBoard::default().component("sinks.store");
        let away = |reason: &str| health.change(State::Unavailable { reason: reason.to_owned() });
        assert_eq!([away("reset"), away("reset"), away("refused")], [true, false, false]);
        tokio::time::advance(OTHER_REASON_AFTER).await;
        assert_eq!([away("reset"), away("refused"), away("reset")], [false, true, false]);
        assert_eq!([health.change(State::Ready), health.change(State::Ready)], [true, false]);
        assert_eq!([away("reset"), away("refused")], [true, false]);
    }
}
