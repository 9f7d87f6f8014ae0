//! The transports that come with The Eye.

pub mod disk;
pub mod jetstream;
pub mod memory;
mod record;
