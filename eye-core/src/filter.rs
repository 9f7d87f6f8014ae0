//! The filter of one sink: which events it gets.

use std::collections::HashSet;

use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer};

use crate::event::Event;

/// The settings that operators write below `[sinks.NAME.filter]`. The default lets every event pass.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SinkFilter {
    /// An event passes only if it matches every list that is given here.
    only: ValueLists,
    /// An event that matches any list given here does not pass.
    except: ValueLists,
}

/// Exact, case-sensitive values of an event's fields.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ValueLists {
    #[serde(deserialize_with = "at_least_one_value")]
    category: Option<HashSet<String>>,
    #[serde(deserialize_with = "at_least_one_value")]
    name: Option<HashSet<String>>,
    #[serde(deserialize_with = "at_least_one_value")]
    origin: Option<HashSet<String>>,
}

/// Refuses an empty list, which would exclude every event or none.
fn at_least_one_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HashSet<String>>, D::Error> {
    let values = HashSet::<String>::deserialize(deserializer)?;
    if values.is_empty() {
        Err(D::Error::invalid_value(Unexpected::Seq, &"at least one value"))
    } else {
        Ok(Some(values))
    }
}

impl ValueLists {
    fn is_empty(&self) -> bool {
        self.category.is_none() && self.name.is_none() && self.origin.is_none()
    }

    /// Returns, for each list that is given, whether it has the event's value.
    fn matches(&self, event: &Event) -> impl Iterator<Item = bool> {
        let lists =
            [(&self.category, event.category()), (&self.name, event.name()), (&self.origin, event.origin().name())];
        lists.into_iter().filter_map(|(list, value)| list.as_ref().map(|list| list.contains(value)))
    }
}

impl SinkFilter {
    /// Returns whether every event passes, without a look at it.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.except.is_empty()
    }

    /// Returns whether the sink gets the event.
    pub fn passes(&self, event: &Event) -> bool {
        self.only.matches(event).all(|matches| matches) && !self.except.matches(event).any(|matches| matches)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testkit::event;

    fn filter(settings: Value) -> SinkFilter {
        serde_json::from_value(settings).unwrap()
    }

    #[test]
    fn only_needs_every_list_and_except_needs_one() {
        // `category 1`, `name 4`, origin `test`.
        let event = event(4);
        let cases = [
            (json!({}), true),
            (json!({"only": {"category": ["category 1"]}}), true),
            (json!({"only": {"category": ["category 1", "other"], "name": ["name 4"], "origin": ["test"]}}), true),
            (json!({"only": {"category": ["category 1"], "name": ["other"]}}), false),
            (json!({"only": {"category": ["Category 1"]}}), false),
            (json!({"except": {"name": ["other"]}}), true),
            (json!({"except": {"name": ["other"], "origin": ["test"]}}), false),
            (json!({"only": {"category": ["category 1"]}, "except": {"name": ["name 4"]}}), false),
        ];
        for (settings, passes) in cases {
            assert_eq!(filter(settings.clone()).passes(&event), passes, "{settings}");
        }
    }

    #[test]
    fn empty_list_is_refused() {
        assert!(serde_json::from_value::<SinkFilter>(json!({"only": {"name": []}})).is_err());
    }
}
