//! A small disk, to be filled.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use eye_harness::{GuardedProcess, holds_within, temporary_folder};

/// A file system in memory (tmpfs), unmounted at the end, however that comes.
pub(crate) struct SmallDisk(GuardedProcess);

impl SmallDisk {
    /// `None`, with a loud line, where this user may not mount. Blocks.
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
        eprintln!("\n=== SKIPPED: a full disk is not tested, since this user may not mount one ===\n{}", disk.0.log());
        None
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.folder().join("disk")
    }

    /// Takes all the room there is, as another program may.
    pub(crate) fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler()).expect("the disk is ours");
        std::io::copy(&mut std::io::repeat(b'x'), &mut file).expect_err("it gets full");
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}
