//! The one HTTP listener and everything that every request has in common.
//!
//! [`Server`](server::Server) accepts connections, bounds their time and memory, and drains them at shutdown. Other crates
//! add their endpoints as a [`Mount`](mount::Mount): a path, methods, a scope and a router. Around every mount this crate
//! sets `Allow`, answers `OPTIONS`, `HEAD` and wrong methods, and writes JSON error bodies. It has no endpoint of its own.
//! Read [`mount`] first.

pub mod config;
mod connection;
mod detach_on_drop;
pub mod mount;
pub mod response;
pub mod server;
mod write_timeout;
