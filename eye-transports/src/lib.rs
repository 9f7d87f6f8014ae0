//! The transports that come with The Eye.

pub mod disk;
pub mod memory;
