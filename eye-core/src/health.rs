//! The health of each component: for readiness reports, and one log line for each change.
//!
//! Every component gets a [`Health`] handle of the program's [`HealthBoard`] when it is built.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time for which an unavailable component is not logged again for another reason.
const OTHER_REASON_AFTER: Duration = Duration::from_secs(30);

/// The states of all components.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard {
    entries: Arc<Mutex<Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    component: Component,
    /// The last reason that was logged, and its time.
    logged: Option<(String, Instant)>,
}

/// One component's handle to report its state.
#[derive(Clone, Debug)]
pub struct Health {
    board: HealthBoard,
    index: usize,
    name: Arc<str>,
}

/// One component and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The key in the configuration, such as `sinks.store`.
    pub name: Arc<str>,
    /// The state.
    pub state: ComponentState,
    /// True if the program can take events while the component is unavailable.
    pub optional: bool,
}

/// The state of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// Not ready for the first time yet.
    Starting,
    /// Working.
    Ready,
    /// Unable to work now; it keeps trying.
    Unavailable {
        /// The reason, for the operator. No secrets.
        reason: String,
    },
}

impl HealthBoard {
    /// Adds a component, in state [`ComponentState::Starting`].
    pub fn component(&self, name: impl Into<Arc<str>>) -> Health {
        self.add(name.into(), false)
    }

    /// Adds a component as [`component`](Self::component) does, without which the program can take events.
    pub fn optional_component(&self, name: impl Into<Arc<str>>) -> Health {
        self.add(name.into(), true)
    }

    fn add(&self, name: Arc<str>, optional: bool) -> Health {
        let mut entries = self.lock();
        let component = Component { name: name.clone(), state: ComponentState::Starting, optional };
        entries.push(Entry { component, logged: None });
        Health { board: self.clone(), index: entries.len() - 1, name }
    }

    /// Returns every component, in the order in which they were added.
    pub fn components(&self) -> Vec<Component> {
        self.lock().iter().map(|entry| entry.component.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Returns the component's key in the configuration, such as `sinks.store`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reports that the component works.
    pub fn ready(&self) {
        if self.change(ComponentState::Ready) {
            tracing::info!(component = self.name(), "ready");
        }
    }

    /// Reports that the component cannot work now. While it stays unavailable, further reasons are shown at once and
    /// logged from time to time: the first one is not always the one that lasts.
    pub fn unavailable(&self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.change(ComponentState::Unavailable { reason: reason.clone() }) {
            tracing::warn!(component = self.name(), reason, "unavailable, trying again");
        }
    }

    /// Sets the state. Returns whether the change is to be logged.
    fn change(&self, state: ComponentState) -> bool {
        let entry = &mut self.board.lock()[self.index];
        let before = std::mem::replace(&mut entry.component.state, state.clone());
        let is_news = match (&state, &entry.logged) {
            (ComponentState::Unavailable { reason }, Some((logged, at)))
                if matches!(before, ComponentState::Unavailable { .. }) =>
            {
                reason != logged && at.elapsed() >= OTHER_REASON_AFTER
            }
            _ => std::mem::discriminant(&before) != std::mem::discriminant(&state),
        };
        if let ComponentState::Unavailable { reason } = state
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
    async fn reason_is_logged_once_and_another_one_later() {
        let health = HealthBoard::default().component("sinks.store");
        let unavailable = |reason: &str| health.change(ComponentState::Unavailable { reason: reason.to_owned() });
        assert_eq!([unavailable("reset"), unavailable("reset"), unavailable("refused")], [true, false, false]);
        tokio::time::advance(OTHER_REASON_AFTER).await;
        assert_eq!([unavailable("reset"), unavailable("refused"), unavailable("reset")], [false, true, false]);
        assert_eq!([health.change(ComponentState::Ready), health.change(ComponentState::Ready)], [true, false]);
        assert_eq!([unavailable("reset"), unavailable("refused")], [true, false]);
    }
}
