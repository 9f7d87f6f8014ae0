//! The Eye with its built-in plug-ins.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Events are often freed by another thread than the one that allocated them, which is slow with glibc's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    refuse_huge_pages();
    eye::run(&eye::built_in())
}

/// Disables transparent huge pages for the process.
///
/// mimalloc asks for pages of 2 MiB, which stay mostly empty: they took a quarter of the memory and no measurable time.
#[cfg(target_os = "linux")]
fn refuse_huge_pages() {
    // A kernel without huge pages returns an error and needs no setting.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(not(target_os = "linux"))]
fn refuse_huge_pages() {}
