//! The Eye with the plug-ins that come with it.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Each event is allocated by one thread and often freed by another, which is the system's allocator's weakness.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    refuse_huge_pages();
    eye::run(&eye::built_in())
}

/// The allocator asks the system for pages of 2 MiB, most of which would stay empty: a quarter of the memory, for nothing
/// that could be measured. Those that it has by now are few.
#[cfg(target_os = "linux")]
fn refuse_huge_pages() {
    // A system that knows of no huge pages cannot refuse them, and need not.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(not(target_os = "linux"))]
fn refuse_huge_pages() {}
