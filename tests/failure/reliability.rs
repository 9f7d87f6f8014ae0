//! The built program and real servers, of which one is killed, cut off, slow or away: what producers were told is true
//! of the database, as an oracle in a process of its own says. `docs/reliability.md` explains it.
mod trial;

mod clients;
mod database;
mod kill;
mod nats;
mod poison;
