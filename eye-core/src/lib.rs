//! The house of The Eye: events, and the traits of what takes, carries and stores them. Opens no socket and no database.

pub mod accounts;
pub mod ack;
pub mod batch;
pub mod dead_letter;
pub mod event;
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
