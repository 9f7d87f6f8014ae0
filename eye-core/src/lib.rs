//! The core of The Eye: events, the traits of sources, transports and sinks, and the pipeline that runs them.
//!
//! This crate opens no socket and no database, and knows no protocol. Modules depend on earlier ones only, in the order
//! in which ARCHITECTURE.md lists them. Read [`event`], [`source`], [`transport`] and [`sink`] first, then [`writer`] and
//! [`pipeline`].

pub mod accounting;
pub mod ack;
pub mod backoff;
mod batch;
pub mod budget;
pub mod context;
pub mod counters;
pub mod dead_letter;
pub mod error;
pub mod event;
pub mod filter;
pub mod health;
pub mod json;
pub mod mutant;
pub mod pipeline;
pub mod pipeline_config;
pub mod refusals;
pub mod registry;
pub mod sink;
pub mod source;
pub mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod timestamp;
pub mod transport;
pub mod writer;

/// Configuration files, for plug-ins: they need no dependency of their own on `eye-config`.
pub use eye_config as config;
