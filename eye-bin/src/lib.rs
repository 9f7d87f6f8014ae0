//! The program, as a library: what `main.rs` runs, and what the tests look into.

pub mod api;
