//! Trials under the oracle's load: the program or a server is killed, cut off, slow or unavailable.
//!
//! After each fault, [`trial::Trial::check`] compares the answers to producers with the database. `docs/reliability.md`
//! explains the trials.
mod trial;

mod clients;
mod database;
mod kill;
mod nats;
mod poison;
