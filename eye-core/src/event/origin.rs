//! The sender of an event.

use std::net::IpAddr;

/// The longest name of an origin, in bytes.
pub const MAX_ORIGIN_BYTES: usize = 64;

/// The sender of an event: shared by all events of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    name: Box<str>,
    client: Option<IpAddr>,
}

impl Origin {
    /// Creates an origin. A name longer than [`MAX_ORIGIN_BYTES`] is cut at a character boundary.
    pub fn new(name: &str, client: Option<IpAddr>) -> Self {
        Self { name: name[..name.floor_char_boundary(MAX_ORIGIN_BYTES)].into(), client }
    }

    /// Returns the name of the producer's key, or of the source. It is stored with the event.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the client's address, for logs and limits. It is never stored, so events read back have none.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }
}
