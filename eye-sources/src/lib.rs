//! Where events come from: The Eye's own sources.

mod answer;
pub mod decode;
mod encoding;
#[cfg(test)]
mod fake;
mod handover;
pub mod http;
pub mod nats;
