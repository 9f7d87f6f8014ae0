//! Writer settings and filters of single sinks: each sink gets its own events, and the accounting balances.

use eye_harness::eventually;
use serde_json::{Value, json};

use crate::support::store::{Kind, Store};
use crate::support::{DISK, HANG, audit, new_event, readyz, start_ready, until_stored};

/// Settings of a second sink that leaves out one name, and of the first one that gets nothing else.
fn filters(other: &Store) -> String {
    format!(
        "sinks.store.filter.only.name = [\"kept\"]\nsinks.store.writer.max_events = 1\n\
         sinks.other.type = \"sqlite\"\nsinks.other.url = \"{}\"\nsinks.other.filter.except.name = [\"kept\"]\n\
         sinks.other.writer.max_wait_ms = 20\nquery.sink = \"store\"\n",
        other.url
    )
}

async fn names(store: &Store) -> Vec<String> {
    store.sql("SELECT name FROM event ORDER BY name").await
}

#[tokio::test(flavor = "multi_thread")]
async fn filtered_events_reach_only_their_sink() {
    for transport in ["", DISK] {
        let (store, other) = (Store::new(Kind::Sqlite), Store::new(Kind::Sqlite));
        let eye = start_ready(&store, &format!("{transport}\n{}", filters(&other))).await;
        let is_ready = async || {
            let (_, body) = readyz(&eye).await;
            let components = body["components"].as_array().unwrap();
            components.iter().all(|component| component["state"] == "ready")
        };
        eventually("both sinks have their tables", HANG, is_ready).await;
        let events: Value = ["kept", "left", "kept", "right"].map(new_event).into_iter().collect();
        assert_eq!(eye.post(events).await.0, 201);
        until_stored(&store, 2).await;
        until_stored(&other, 2).await;
        assert_eq!(
            (names(&store).await, names(&other).await),
            (vec!["kept".to_owned(); 2], vec!["left".to_owned(), "right".to_owned()])
        );
        audit("two filtered sinks", &eye).await;
        let (_, report) = eye.get("/audit").await;
        for sink in ["store", "other"] {
            let counts = &report["sinks"][sink];
            assert_eq!((&counts["filtered"], &counts["delivered"]), (&json!(2), &json!(2)), "{report}");
        }
    }
}
