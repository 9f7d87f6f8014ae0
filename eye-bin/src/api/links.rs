//! `next` and `previous`: absolute URLs that keep the caller's parameters.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::http::{HeaderMap, Uri};
use eye_core::event::Event;
use eye_core::store::{EventPage, PageStart};

use super::cursor::{self, Direction};
use super::params::Params;

/// The neighbours of a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) next: Option<String>,
    pub(super) previous: Option<String>,
}

impl Links {
    /// By offset when the caller gave one, otherwise by cursor; a cursor needs an event, so an empty page leads nowhere.
    /// `base` is the URL without its query.
    pub(super) fn new(base: &str, params: &Params, page: &EventPage) -> Self {
        let limit = params.query.limit.into();
        if let PageStart::Offset(offset) = params.query.start {
            // A page may be shorter than asked for: large events fill it earlier.
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

/// The caller's parameters sorted by name, with the limit that was applied and the place where the other page starts.
fn link(base: &str, params: &Params, place: &str, value: Option<String>) -> String {
    let limit = params.query.limit.to_string();
    let mut query: BTreeMap<&str, &str> = params.given.iter().map(|(name, value)| (*name, value.as_str())).collect();
    query.insert("limit", &limit);
    match &value {
        Some(value) => query.insert(place, value),
        None => query.remove(place),
    };
    let mut link = base.to_owned();
    for (index, (name, value)) in query.into_iter().enumerate() {
        link.push(if index == 0 { '?' } else { '&' });
        link.push_str(name);
        link.push('=');
        push_encoded(&mut link, value);
    }
    link
}

/// As Python's `urlencode`: a space becomes `+`; letters, digits and `_.-~` stay.
fn push_encoded(link: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b' ' => link.push('+'),
            b'_' | b'.' | b'-' | b'~' => link.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => link.push(byte.into()),
            _ => write!(link, "%{byte:02X}").expect("a String takes everything"),
        }
    }
}

/// The URL of the request without its query; the path alone when the request names no usable host.
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

/// Names, addresses and ports; nothing that could end the authority of a URL or begin its user part.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}
