//! The runtime that a component is built into. Nothing spawns or connects without it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::health::{Health, HealthBoard};

/// The environment handed to every transport and sink when it is built, and to sources within
/// [`SourceContext`](crate::source::SourceContext).
#[derive(Clone, Debug)]
pub struct BuildContext {
    health: Health,
    shutdown: CancellationToken,
    extensions: Extensions,
}

impl BuildContext {
    /// Creates the context of one component. `health` carries its key; `shutdown` is cancelled when the pipeline stops.
    pub fn new(health: Health, shutdown: CancellationToken, extensions: Extensions) -> Self {
        Self { health, shutdown, extensions }
    }

    /// Creates the context of a component that is built outside of a pipeline: by a command, or by a test.
    pub fn standalone(key: &str) -> Self {
        let health = HealthBoard::default().component(key);
        Self::new(health, CancellationToken::new(), Extensions::default())
    }

    /// Returns the component's key in the configuration, such as `sinks.store`.
    pub fn key(&self) -> &str {
        self.health.name()
    }

    /// Returns the component's entry in the health report.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the token that is cancelled when the pipeline stops.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Returns what the program offers to its components beyond this crate, such as an HTTP listener.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }
}

/// Values by type: the program's offers to its components, of which `eye-core` knows nothing.
///
/// Cloning shares the map.
#[derive(Clone, Default)]
pub struct Extensions(Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>>);

impl Extensions {
    /// Offers a value. A later value of the same type replaces it.
    pub fn insert<T: Clone + Send + Sync + 'static>(&self, value: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(TypeId::of::<T>(), Box::new(value));
    }

    /// Returns a clone of the value of this type, if one is offered.
    pub fn get<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(&TypeId::of::<T>())?.downcast_ref::<T>().cloned()
    }
}

impl std::fmt::Debug for Extensions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extensions").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_found_by_their_type() {
        let extensions = Extensions::default();
        extensions.clone().insert("text");
        extensions.insert(7_u8);
        assert_eq!((extensions.get::<&str>(), extensions.get::<u8>()), (Some("text"), Some(7)));
        assert_eq!(extensions.get::<u16>(), None);
    }
}
