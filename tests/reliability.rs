//! The built program and real servers, of which one is killed, cut off, slow or away: what producers were told is true
//! of the database, as an oracle in a process of its own says. `docs/reliability.md` explains it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/trial.rs"]
mod trial;

#[path = "reliability/clients.rs"]
mod clients;
#[path = "reliability/database.rs"]
mod database;
#[path = "reliability/kill.rs"]
mod kill;
#[path = "reliability/nats.rs"]
mod nats;
#[path = "reliability/poison.rs"]
mod poison;
