//! The sources of The Eye: HTTP and NATS.
//!
//! All sources share the way of a body: [`decode`] turns it into events, the ingestor publishes them, and a verdict says
//! what the producer is told. A source adds the protocol.

pub mod decode;
mod encoding;
#[cfg(test)]
mod fake;
pub mod http;
mod ingestor;
pub mod nats;
mod verdict;
