//! `next` and `previous`: absolute URLs that keep the caller's parameters.
//!
//! [`PageLinks`] steps by offset if the caller gave one, else by cursor.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Uri};
use eye_core::event::Event;
use eye_core::store::{EventPage, PageStart};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::cursor::{self, Direction};
use super::params::Params;

/// The URLs of a page's neighbours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageLinks {
    pub(super) next: Option<String>,
    pub(super) previous: Option<String>,
}

impl PageLinks {
    /// Makes the links of `page`. `base` is the URL without its query.
    ///
    /// A cursor needs an event, so an empty page by cursor has no links.
    pub(super) fn new(base: &str, params: &Params, page: &EventPage) -> Self {
        let limit = params.query.limit.into();
        if let PageStart::Offset(offset) = params.query.start {
            // Large events may end a page before its limit.
            let end = offset.saturating_add(page.events.len() as u64);
            Self {
                next: page.has_older.then(|| link(base, params, "offset", Some(end.to_string()))),
                // The first page is the one without an offset.
                previous: (offset > 0)
                    .then(|| link(base, params, "offset", (offset > limit).then(|| (offset - limit).to_string()))),
            }
        } else {
            let by_cursor =
                |direction, event: &Event| link(base, params, "cursor", Some(cursor::encode(direction, event.key())));
            let last = page.events.last().filter(|_| page.has_older);
            let first = page.events.first().filter(|_| page.has_newer);
            Self {
                next: last.map(|event| by_cursor(Direction::Older, event)),
                previous: first.map(|event| by_cursor(Direction::Newer, event)),
            }
        }
    }
}

/// Returns `base` with the caller's parameters sorted by name, the limit that was applied, and `start` set to `value` or
/// left out.
fn link(base: &str, params: &Params, start: &str, value: Option<String>) -> String {
    let limit = params.query.limit.to_string();
    let mut query: BTreeMap<&str, &str> = params.given.iter().map(|(name, value)| (*name, value.as_str())).collect();
    query.insert("limit", &limit);
    match &value {
        Some(value) => query.insert(start, value),
        None => query.remove(start),
    };
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    format!("{base}?{}", query.join("&"))
}

/// Encodes a value as Python's `urlencode` does: a space becomes `+`; letters, digits and `_.-~` stay.
fn encode(value: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b' ');
    utf8_percent_encode(value, ENCODED).to_string().replace(' ', "+")
}

/// Returns the URL of the request without its query, or the path alone if the request names no valid host.
pub(super) fn base_url(uri: &Uri, headers: &HeaderMap, trust_proxy: bool) -> String {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = |name| header(name).filter(|_| trust_proxy).and_then(|list| list.split(',').next()).map(str::trim);
    let authority = uri.authority().map(|authority| authority.as_str());
    let host =
        [forwarded("x-forwarded-host"), authority, header("host")].into_iter().flatten().find(|host| is_host(host));
    let scheme = match forwarded("x-forwarded-proto") {
        Some(proto) if proto.eq_ignore_ascii_case("https") => "https",
        _ => "http",
    };
    match host {
        Some(host) => format!("{scheme}://{host}{}", uri.path()),
        None => uri.path().to_owned(),
    }
}

/// Accepts names, addresses and ports, and no character that ends the authority of a URL or its user part.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}
