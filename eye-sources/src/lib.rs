//! Where events come from: The Eye's own sources.

mod answer;
pub mod decode;
mod encoding;
pub mod http;
