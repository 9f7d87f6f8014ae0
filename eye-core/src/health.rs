//! How each component is: for `/readyz`, and one log line for each change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The states of all components.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard {
    components: Arc<Mutex<Vec<Component>>>,
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
        let mut components = self.lock();
        components.push(Component { name: name.clone(), state: State::Starting, may_be_away });
        Health { board: self.clone(), index: components.len() - 1, name }
    }

    /// Every component, in the order they were added.
    pub fn components(&self) -> Vec<Component> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Component>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The component cannot work now. Further reasons while it stays away are shown, but not logged again.
    pub fn unavailable(&self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.change(State::Unavailable { reason: reason.clone() }) {
            tracing::warn!(component = self.name(), reason, "unavailable, trying again");
        }
    }

    /// Sets the state; whether it is one of another kind than before.
    fn change(&self, state: State) -> bool {
        let mut components = self.board.lock();
        let before = std::mem::replace(&mut components[self.index].state, state.clone());
        std::mem::discriminant(&before) != std::mem::discriminant(&state)
    }
}
