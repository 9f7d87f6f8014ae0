//! A small disk that tests fill: [`SmallDisk`].

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use eye_harness::{GuardedProcess, holds_within, temporary_folder};

/// A file system in memory (tmpfs), unmounted when it is dropped or the test is killed.
pub(crate) struct SmallDisk(GuardedProcess);

impl SmallDisk {
    /// Mounts a disk and blocks meanwhile. Returns `None`, with a message on stderr, if this user may not mount.
    pub(crate) fn mount(megabytes: usize) -> Option<Self> {
        let script = format!("mkdir disk && mount -t tmpfs -o size={megabytes}m eye-test disk && exec sleep infinity");
        let command = ["sh", "-c", &script].map(str::to_owned);
        let mut disk = Self(GuardedProcess::new(&temporary_folder("small-disk"), None, &command));
        disk.0.start();
        let is_mounted = || {
            let mounts = fs::read_to_string("/proc/self/mounts").expect("Linux has /proc");
            mounts.lines().any(|line| line.split(' ').nth(1) == disk.path().to_str())
        };
        let ended = holds_within(Duration::from_secs(10), || is_mounted() || disk.0.has_ended());
        if ended && is_mounted() {
            return Some(disk);
        }
        eprintln!("\n=== SKIPPED: no full disk is tested, because this user may not mount one ===\n{}", disk.0.log());
        None
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.folder().join("disk")
    }

    /// Uses all free space, as another program may.
    pub(crate) fn fill(&self) {
        let mut file =
            OpenOptions::new().create(true).append(true).open(self.filler()).expect("the test owns the disk");
        std::io::copy(&mut std::io::repeat(b'x'), &mut file).expect_err("the disk becomes full");
    }

    /// Frees the space of [`fill`](Self::fill).
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).expect("the disk was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}
