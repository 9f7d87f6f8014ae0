//! The NATS client that the NATS source and the JetStream transport share.
//!
//! Read [`consumer::Consumer`] first: the loop that takes messages from a durable consumer and settles them. The other modules
//! connect, and provide the stream, the consumer and the stream of dead letters with the required settings.

pub mod capacity;
pub mod connection;
pub mod consumer;
pub mod dead_letters;
pub mod durable;
pub mod position;
mod pull;
pub mod settings;
pub mod stream;
