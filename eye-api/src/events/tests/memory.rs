//! A correct store in memory.

use std::sync::Mutex;

use async_trait::async_trait;
use eye_core::event::Event;
use eye_core::store::{EventFilter, EventStore, PageStart};

use super::*;

/// Newest first.
#[derive(Default)]
pub(super) struct MemoryStore {
    pub(super) events: Mutex<Vec<Event>>,
}

impl MemoryStore {
    pub(super) fn with(events: impl IntoIterator<Item = Event>) -> Arc<Self> {
        let store = Self::default();
        events.into_iter().for_each(|event| store.insert(event));
        Arc::new(store)
    }

    pub(super) fn insert(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        let at = events.partition_point(|other| other.key() > event.key());
        events.insert(at, event);
    }
}

#[async_trait]
impl EventStore for MemoryStore {
    async fn page(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        let events = self.events.lock().unwrap();
        let matching: Vec<&Event> = events.iter().filter(|event| matches(&query.filter, event)).collect();
        let limit = query.limit as usize;
        let start = match query.start {
            PageStart::Newest => 0,
            PageStart::Offset(offset) => usize::try_from(offset).unwrap().min(matching.len()),
            PageStart::OlderThan(key) => matching.partition_point(|event| event.key() >= key),
            PageStart::NewerThan(key) => matching.partition_point(|event| event.key() > key).saturating_sub(limit),
        };
        let end = match query.start {
            PageStart::NewerThan(key) => matching.partition_point(|event| event.key() > key),
            _ => (start + limit).min(matching.len()),
        };
        Ok(EventPage {
            count: matching.len() as u64,
            events: matching[start..end].iter().map(|&event| event.clone()).collect(),
            has_older: end < matching.len(),
            has_newer: start > 0,
        })
    }
}

fn matches(filter: &EventFilter, event: &Event) -> bool {
    filter.session_id.as_ref().is_none_or(|wanted| wanted == event.session_id())
        && filter.category.as_ref().is_none_or(|wanted| wanted == event.category())
        && filter.name.as_ref().is_none_or(|wanted| wanted == event.name())
        && filter.timestamp_after.is_none_or(|bound| event.timestamp() >= bound)
        && filter.timestamp_before.is_none_or(|bound| event.timestamp() <= bound)
}
