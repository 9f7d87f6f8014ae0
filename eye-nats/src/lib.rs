//! What the NATS source and the JetStream transport share.

pub mod connection;
pub mod consumer;
pub mod dead_letters;
pub mod place;
pub mod pull;
pub mod room;
pub mod settings;
pub mod stream;
