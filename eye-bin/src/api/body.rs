//! A page as JSON, written piece by piece: a large page does not lie in memory a second time.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;
use std::{iter, vec};

use axum::body::Body;
use eye_core::event::Event;
use eye_core::store::EventPage;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::links::Links;

/// The keys that a result has besides its five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Include {
    pub(super) id: bool,
    pub(super) received_at: bool,
}

/// A piece is handed on once it has so many bytes.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// The answer's body. A page that is one piece has a known length, a larger one is streamed. `room` is given back once
/// the page is sent, or its client is gone.
pub(super) fn page_body(page: EventPage, links: &Links, include: Include, room: OwnedSemaphorePermit) -> Body {
    let mut pieces = Pieces::new(page, links, include, room);
    let first = pieces.next().unwrap_or_default();
    if pieces.ended {
        Body::from(first)
    } else {
        Body::from_stream(stream::iter(iter::once(first).chain(pieces).map(Ok::<_, Infallible>)))
    }
}

struct Pieces {
    /// What is written, but not handed on yet.
    piece: Vec<u8>,
    events: vec::IntoIter<Event>,
    include: Include,
    ended: bool,
    _room: OwnedSemaphorePermit,
}

impl Pieces {
    fn new(page: EventPage, links: &Links, include: Include, room: OwnedSemaphorePermit) -> Self {
        let mut piece = Vec::with_capacity(PIECE_BYTES + 4096);
        piece.extend_from_slice(b"{\"count\":");
        write!(piece, "{}", page.count).expect("a Vec takes everything");
        for (key, link) in [("next", &links.next), ("previous", &links.previous)] {
            push_key(&mut piece, key);
            match link {
                Some(link) => push_string(&mut piece, link),
                None => piece.extend_from_slice(b"null"),
            }
        }
        push_key(&mut piece, "results");
        piece.push(b'[');
        Self { piece, events: page.events.into_iter(), include, ended: false, _room: room }
    }

    fn push_event(&mut self, event: &Event) {
        let piece = &mut self.piece;
        piece.extend_from_slice(b"{\"session_id\":");
        push_string(piece, event.session_id());
        push_key(piece, "timestamp");
        push_plain(piece, event.timestamp());
        push_key(piece, "category");
        push_string(piece, event.category());
        push_key(piece, "name");
        push_string(piece, event.name());
        push_key(piece, "data");
        piece.extend_from_slice(event.data().as_bytes());
        if self.include.id {
            push_key(piece, "id");
            push_plain(piece, event.id());
        }
        if self.include.received_at {
            push_key(piece, "received_at");
            push_plain(piece, event.received_at());
        }
        piece.push(b'}');
    }
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        while self.piece.len() < PIECE_BYTES {
            let Some(event) = self.events.next() else {
                self.piece.extend_from_slice(b"]}");
                self.ended = true;
                return Some(std::mem::take(&mut self.piece));
            };
            self.push_event(&event);
            if self.events.len() > 0 {
                self.piece.push(b',');
            }
        }
        Some(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES + 4096)))
    }
}

/// Any key but the first of its object.
fn push_key(json: &mut Vec<u8>, key: &str) {
    json.extend_from_slice(b",\"");
    json.extend_from_slice(key.as_bytes());
    json.extend_from_slice(b"\":");
}

fn push_string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a Vec takes everything, and a string is always JSON");
}

/// What has nothing to escape.
fn push_plain(json: &mut Vec<u8>, value: impl Display) {
    write!(json, "\"{value}\"").expect("a Vec takes everything");
}
