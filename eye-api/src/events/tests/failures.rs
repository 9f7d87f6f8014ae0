//! Stores that cannot answer, and the bounds on queries.

use async_trait::async_trait;
use tokio::sync::Notify;

use super::*;

/// A store that answers as its variant says.
enum StubStore {
    Fails(fn() -> StoreError),
    Never,
    WaitsFor { entered: Notify, leave: Notify },
}

#[async_trait]
impl EventStore for StubStore {
    async fn page(&self, _query: EventQuery) -> Result<EventPage, StoreError> {
        match self {
            Self::Fails(error) => Err(error()),
            Self::Never => std::future::pending().await,
            Self::WaitsFor { entered, leave } => {
                entered.notify_one();
                leave.notified().await;
                Ok(EventPage::default())
            }
        }
    }
}

fn config(max_concurrent: u16, timeout_ms: u64) -> QueryConfig {
    QueryConfig { sink: None, max_concurrent, timeout_ms }
}

#[tokio::test]
async fn store_failure_is_answered_without_its_reason() {
    let unavailable = || StoreError::Unavailable { reason: "10.0.0.7 refused".into() };
    let failed = || StoreError::Failed { reason: "syntax at secret".into() };
    let cases = [
        (StubStore::Fails(unavailable), 503, r#"{"detail":"The store is unavailable or too busy. Try again."}"#),
        (
            StubStore::Fails(failed),
            500,
            r#"{"detail":"The store could not answer the query. The server's log says why."}"#,
        ),
        (
            StubStore::Never,
            503,
            r#"{"detail":"The query took too long. Try again, or ask for less with a filter or a smaller `limit`."}"#,
        ),
    ];
    for (store, status, body) in cases {
        let api = app(Arc::new(store), &config(1, 1), false);
        for _again in 0..2 {
            let answer = get(&api, "/api/event/").await;
            assert_eq!((answer.status.as_u16(), answer.text.as_str()), (status, body));
            assert_eq!(answer.headers.get(RETRY_AFTER).is_some(), status == 503);
            assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        }
    }
}

#[tokio::test]
async fn query_above_the_bound_gets_503() {
    let store = Arc::new(StubStore::WaitsFor { entered: Notify::new(), leave: Notify::new() });
    let StubStore::WaitsFor { entered, leave } = &*store else { unreachable!() };
    let api = app(store.clone(), &config(1, 60_000), false);
    let first = tokio::spawn({
        let api = api.clone();
        async move { get(&api, "/api/event/").await }
    });
    entered.notified().await;

    let second = get(&api, "/api/event/").await;
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.text, r#"{"detail":"Too many queries run at once. Try again."}"#);
    assert!(second.headers.contains_key(RETRY_AFTER));
    let invalid = get(&api, "/api/event/?limit=0").await;
    assert_eq!(invalid.status, StatusCode::BAD_REQUEST, "needs no permit");

    leave.notify_one();
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    leave.notify_one();
    assert_eq!(get(&api, "/api/event/").await.status, StatusCode::OK, "the permit is free again");
}

#[tokio::test]
async fn unread_pages_hold_up_only_large_ones() {
    let large = Event::from(EventFields {
        id: EventId::nil(),
        timestamp: Timestamp::MIN,
        received_at: Timestamp::MIN,
        session_id: "s",
        category: "large",
        name: "n",
        data: &format!("\"{}\"", "x".repeat(MAX_PAGE_BYTES)),
        origin: &ORIGIN,
    });
    let api = api(MemoryStore::with([large, event(2)]));
    let ask = |url: &'static str| api.clone().oneshot(Request::get(url).body(Body::empty()).unwrap());

    let mut unread = Vec::new();
    loop {
        let answer = ask("/api/event/?category=large").await.unwrap();
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        unread.push(answer);
        assert!(unread.len() * MAX_PAGE_BYTES <= MAX_UNSENT_BYTES as usize, "no bound");
    }
    assert!(unread.len() >= 4, "several are possible");
    assert_eq!(ask("/api/event/?category=even").await.unwrap().status(), StatusCode::OK);

    unread.pop();
    assert_eq!(ask("/api/event/?category=large").await.unwrap().status(), StatusCode::OK, "a client has disconnected");
}

#[test]
fn configuration_has_defaults_and_refuses_zero() {
    let read = |json: Value| serde_json::from_value::<QueryConfig>(json);
    assert_eq!(read(json!({})).unwrap(), config(16, 30_000));
    assert_eq!(read(json!({ "sink": "store" })).unwrap().sink.as_deref(), Some("store"));
    for key in ["max_concurrent", "timeout_ms"] {
        assert!(read(json!({ key: 1 })).is_ok());
        assert!(read(json!({ key: 0 })).is_err());
    }
}
