//! The transports of The Eye: the queues between sources and sinks.
//!
//! [`memory`] holds events until every sink has them, [`disk`] and [`jetstream`] take custody of them. Each module has one
//! `…Config` type, which is registered with the pipeline.

pub mod disk;
pub mod jetstream;
pub mod memory;
mod record;
