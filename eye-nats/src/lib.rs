//! What the NATS source and the JetStream transport share.

pub mod connection;
pub mod consumer;
