//! Where events come from: The Eye's own sources.

pub mod decode;
