//! Delivery: events pass from the sources over each durable transport to the stores, and refused events become dead
//! letters.
//!
//! Each module covers one transport, source or command of the built program. The servers are real ones from
//! `eye-harness`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dead_letters;
mod disk;
mod jetstream;
mod nats;
mod sink_settings;
#[path = "../support/mod.rs"]
mod support;
