//! The Eye with the plug-ins that come with it.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Each event is allocated by one thread and often freed by another, which is the system's allocator's weakness.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    eye::run(&eye::built_in())
}
