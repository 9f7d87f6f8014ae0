//! Paths and methods, health checks, and the answer at the root.

use eye_harness::Eye;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, JSON, Page, named, post, send, store};

on_every_database! {
    trailing_slash_makes_no_difference
    head_is_get_without_a_body
    other_methods_answer_405_with_allow
    unknown_paths_answer_404
    health_paths_show_the_state
    root_names_the_api
}

const EVENT_METHODS: &str = "GET, POST, HEAD, OPTIONS";

async fn request(eye: &Eye, method: &str, path: &str) -> Answer {
    send(eye.client().request(method.parse::<Method>().unwrap(), eye.url(path))).await
}

async fn trailing_slash_makes_no_difference(eye: &Eye) {
    for path in ["/api/event", "/api/event/"] {
        let request = eye.client().post(eye.url(path)).header("content-type", JSON).body(named(path));
        let answer = send(request).await;
        assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#), "{path}");
    }
    let [with, without] = [request(eye, "GET", "/api/event/").await, request(eye, "GET", "/api/event").await];
    assert_eq!(with.json::<Page>().count, 2);
    assert_eq!((with.status, with.text), (without.status, without.text));
}

async fn head_is_get_without_a_body(eye: &Eye) {
    store(eye, &[named("a")]).await;
    for path in ["/api/event/", "/api/event", "/api/event/?limit=abc", "/", "/livez", "/readyz"] {
        let [get, head] = [request(eye, "GET", path).await, request(eye, "HEAD", path).await];
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{path}");
        for header in ["content-type", "content-length", "allow", "vary"] {
            assert_eq!(head.header(header), get.header(header), "{path}: {header}");
        }
    }
}

async fn other_methods_answer_405_with_allow(eye: &Eye) {
    let paths = [("/api/event/", EVENT_METHODS), ("/api/event", EVENT_METHODS), ("/livez", "GET, HEAD, OPTIONS")];
    for (path, allow) in paths {
        let options = request(eye, "OPTIONS", path).await;
        assert_eq!((options.status, options.header("allow")), (200, allow), "{path}");
        for method in ["PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
            let refused = request(eye, method, path).await;
            assert_eq!((refused.status, refused.header("allow")), (405, allow), "{method} {path}");
            assert_eq!(
                refused.json::<Value>(),
                json!({"detail": format!("{method} is not allowed here; {allow} are.")})
            );
            assert_eq!(refused.header("content-type"), "application/json");
        }
    }
    assert_eq!(request(eye, "POST", "/livez").await.status, 405);
}

async fn unknown_paths_answer_404(eye: &Eye) {
    for path in ["/nowhere", "/api", "/api/", "/api/events/", "/api/event/1", "/api/event//", "/API/EVENT/"] {
        for method in ["GET", "POST", "OPTIONS"] {
            let answer = request(eye, method, path).await;
            assert_eq!((answer.status, answer.header("content-type")), (404, "application/json"), "{method} {path}");
            let expected = json!({"detail": format!("Not found: {path}. Events are at /api/event/.")});
            assert_eq!(answer.json::<Value>(), expected);
        }
    }
}

async fn health_paths_show_the_state(eye: &Eye) {
    let live = request(eye, "GET", "/livez").await;
    assert_eq!((live.status, live.text.as_str()), (200, r#"{"status":"ok"}"#));
    let ready = request(eye, "GET", "/readyz").await;
    assert_eq!((ready.status, ready.header("content-type")), (200, "application/json"));
    let ready: Value = ready.json();
    assert_eq!(ready["status"], "ok");
    let components = ready["components"].as_array().unwrap();
    for name in ["sources.web", "sinks.store"] {
        assert!(components.contains(&json!({"name": name, "state": "ready"})), "{components:?}");
    }
}

async fn root_names_the_api(eye: &Eye) {
    let root = request(eye, "GET", "/").await;
    assert_eq!((root.status, root.header("content-type")), (200, "application/json"));
    assert!(root.text.contains("POST /api/event/") && root.text.contains("GET /api/event/"), "{}", root.text);
    assert_eq!(post(eye, JSON, "{}").await.status, 400, "the events have their own path");
}
