//! The transports that come with The Eye.

pub mod memory;
