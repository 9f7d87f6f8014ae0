//! A page as JSON, written in chunks.
//!
//! [`page_body`] streams a large page, so that its text is never in memory as a whole beside its events.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;
use std::{iter, vec};

use axum::body::Body;
use eye_core::budget::Reservation;
use eye_core::event::Event;
use eye_core::store::EventPage;
use futures_util::stream;

use super::include::Include;
use super::links::PageLinks;

/// A chunk is sent once it has this many bytes.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Returns the answer's body. A page of one chunk has a known length, a larger one is streamed. `unsent` is released when
/// the page is sent or the client has disconnected.
pub(super) fn page_body(page: EventPage, links: &PageLinks, include: Include, unsent: Reservation) -> Body {
    let mut chunks = PageChunks::new(page, links, include, unsent);
    let first = chunks.next().unwrap_or_default();
    if chunks.ended {
        Body::from(first)
    } else {
        Body::from_stream(stream::iter(iter::once(first).chain(chunks).map(Ok::<_, Infallible>)))
    }
}

struct PageChunks {
    /// Bytes that are written and not sent yet.
    chunk: Vec<u8>,
    events: vec::IntoIter<Event>,
    include: Include,
    ended: bool,
    _unsent: Reservation,
}

impl PageChunks {
    fn new(page: EventPage, links: &PageLinks, include: Include, unsent: Reservation) -> Self {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + 4096);
        chunk.extend_from_slice(b"{\"count\":");
        write!(chunk, "{}", page.count).expect("a Vec takes everything");
        for (key, link) in [("next", &links.next), ("previous", &links.previous)] {
            push_key(&mut chunk, key);
            match link {
                Some(link) => push_string(&mut chunk, link),
                None => chunk.extend_from_slice(b"null"),
            }
        }
        push_key(&mut chunk, "results");
        chunk.push(b'[');
        Self { chunk, events: page.events.into_iter(), include, ended: false, _unsent: unsent }
    }

    fn push_event(&mut self, event: &Event) {
        let chunk = &mut self.chunk;
        chunk.extend_from_slice(b"{\"session_id\":");
        push_string(chunk, event.session_id());
        push_key(chunk, "timestamp");
        push_plain(chunk, event.timestamp());
        push_key(chunk, "category");
        push_string(chunk, event.category());
        push_key(chunk, "name");
        push_string(chunk, event.name());
        push_key(chunk, "data");
        chunk.extend_from_slice(event.data().as_bytes());
        if self.include.id {
            push_key(chunk, "id");
            push_plain(chunk, event.id());
        }
        if self.include.received_at {
            push_key(chunk, "received_at");
            push_plain(chunk, event.received_at());
        }
        chunk.push(b'}');
    }
}

impl Iterator for PageChunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        while self.chunk.len() < CHUNK_BYTES {
            let Some(event) = self.events.next() else {
                self.chunk.extend_from_slice(b"]}");
                self.ended = true;
                return Some(std::mem::take(&mut self.chunk));
            };
            self.push_event(&event);
            if self.events.len() > 0 {
                self.chunk.push(b',');
            }
        }
        Some(std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES + 4096)))
    }
}

/// Appends a comma and a key. For every key but an object's first.
fn push_key(json: &mut Vec<u8>, key: &str) {
    json.extend_from_slice(b",\"");
    json.extend_from_slice(key.as_bytes());
    json.extend_from_slice(b"\":");
}

fn push_string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a Vec takes everything, and a string is always JSON");
}

/// Appends a string without characters to escape.
fn push_plain(json: &mut Vec<u8>, value: impl Display) {
    write!(json, "\"{value}\"").expect("a Vec takes everything");
}
