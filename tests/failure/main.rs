//! Failure: databases, disks, servers and the program itself break under load, and no acknowledged event is lost.
//!
//! `reliability` is the largest part: an oracle in a process of its own judges each trial. `scripts/soak` runs
//! `reliability`, `power_loss` and `disk_full` for many rounds (`EYE_TEST_ROUNDS`). `docs/reliability.md` explains
//! them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod disk_full;
mod faults;
mod power_loss;
mod reliability;
#[path = "../support/mod.rs"]
mod support;

/// The entry point of the process that serves a lossy disk; see [`eye_power_loss::Disk`].
#[test]
#[ignore = "not a test: the process that serves the disk"]
fn power_loss_disk() {
    eye_power_loss::serve();
}
