use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request};
use axum::http::HeaderMap;
use axum::routing::{MethodFilter, get, on};
use tower::ServiceExt;

use super::*;

/// A mount that answers with its owner's name.
fn mount(owner: &'static str, path: &'static str, method: Method) -> Mount {
    let filter = MethodFilter::try_from(method.clone()).unwrap();
    Mount::new(owner, path, method, Scope::Public, on(filter, async move || owner))
}

/// Three mounts on one path, and one on another.
fn app() -> Router {
    let mounts = Mounts::default();
    mounts.add(mount("source", "/events/", Method::POST)).unwrap();
    mounts.add(mount("health", "/livez", Method::GET)).unwrap();
    mounts.add(mount("query", "/events/", Method::DELETE)).unwrap();
    mounts.add(mount("query", "/events/", Method::GET)).unwrap();
    mounts.router("See `/`.")
}

async fn ask(app: &Router, method: &str, path: &str) -> (u16, HeaderMap, String) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
}

const ALLOW: &str = "GET, POST, DELETE, HEAD, OPTIONS";

#[tokio::test]
async fn mounts_of_one_path_answer_their_methods() {
    for path in ["/events", "/events/"] {
        for (method, owner) in [("POST", "source"), ("GET", "query"), ("DELETE", "query"), ("HEAD", "")] {
            let (status, headers, body) = ask(&app(), method, path).await;
            assert_eq!((status, body.as_str()), (200, owner), "{method} {path}");
            assert_eq!(headers[header::ALLOW], ALLOW, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn head_keeps_the_headers_of_get() {
    let (_, get, _) = ask(&app(), "GET", "/livez").await;
    let (_, head, body) = ask(&app(), "HEAD", "/livez").await;
    assert_eq!((head, body.as_str()), (get, ""));
}

#[tokio::test]
async fn options_lists_the_methods_of_all_mounts() {
    for (path, allow) in [("/events", ALLOW), ("/events/", ALLOW), ("/livez", "GET, HEAD, OPTIONS")] {
        let (status, headers, body) = ask(&app(), "OPTIONS", path).await;
        assert_eq!(
            (status, &headers[header::ALLOW], body.as_str()),
            (200, &HeaderValue::from_static(allow), ""),
            "{path}"
        );
    }
}

#[tokio::test]
async fn other_methods_get_405_with_allow() {
    for method in ["PUT", "PATCH", "TRACE", "BREW"] {
        let (status, headers, body) = ask(&app(), method, "/events/").await;
        assert_eq!((status, &headers[header::ALLOW]), (405, &HeaderValue::from_static(ALLOW)));
        assert_eq!(body, format!(r#"{{"detail":"{method} is not allowed here; {ALLOW} are."}}"#));
    }
}

#[tokio::test]
async fn a_path_without_get_allows_no_head() {
    let mounts = Mounts::default();
    mounts.add(mount("source", "/events/", Method::POST)).unwrap();
    let (status, headers, _) = ask(&mounts.router(""), "HEAD", "/events/").await;
    assert_eq!((status, &headers[header::ALLOW]), (405, &HeaderValue::from_static("POST, OPTIONS")));
}

#[tokio::test]
async fn unknown_paths_get_404_for_every_method() {
    for (method, path) in [("GET", "/nowhere"), ("POST", "/livez/"), ("OPTIONS", "/"), ("GET", "/events//")] {
        let (status, headers, body) = ask(&app(), method, path).await;
        assert_eq!((status, &headers[header::CONTENT_TYPE]), (404, &HeaderValue::from_static("application/json")));
        assert_eq!(body, format!(r#"{{"detail":"Not found: {path}. See `/`."}}"#), "{method}");
    }
}

#[tokio::test]
async fn a_path_may_have_parameters() {
    let router = get(async |Path(file): Path<String>| file);
    let mounts = Mounts::default();
    mounts.add(Mount::new("page", "/ui/{*file}", Method::GET, Scope::Public, router)).unwrap();
    assert_eq!(ask(&mounts.router(""), "GET", "/ui/a/b.js").await.2, "a/b.js");
}

#[test]
fn taken_method_is_refused_with_both_owners() {
    for (path, shared) in [("/events/", "/events/"), ("/events", "/events")] {
        let mounts = Mounts::default();
        mounts.add(mount("sources.a", "/events/", Method::POST)).unwrap();
        let error = mounts.add(mount("sources.b", path, Method::POST)).unwrap_err();
        let expected = format!("sources.a serves POST {shared} already, so sources.b cannot: remove one of the two");
        assert_eq!(error.to_string(), expected);
        mounts.add(mount("sources.b", path, Method::GET)).unwrap();
    }
}
