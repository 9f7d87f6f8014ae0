//! A disk for tests that loses unsynced data on command and can fail to read or sync: [`Disk`].
//!
//! The disk is a FUSE file system. Unsynced data is in the memory of its server process, synced data in files. A power
//! cut kills the server; the next server starts from the files.
//!
//! The server is the test program itself, started again for one ignored test. A test that uses the disk can thus never
//! block its server. Each test program with a [`Disk`] contains this:
//!
//! ```text
//! #[test]
//! #[ignore = "not a test: the process that serves the disk"]
//! fn power_loss_disk() {
//!     eye_power_loss::serve();
//! }
//! ```

mod fault;
mod media;
mod mount;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use eye_harness::{GuardedProcess, temporary_folder};
use fastrand::Rng;

pub use fault::Fault;
use media::Media;
use mount::MountedMedia;

/// The probabilities that data is durable before its sync, for one start of the disk after the other. The first disk
/// keeps synced data alone, the others keep a part of the rest.
const EARLY: [f64; 3] = [0.0, 0.5, 0.9];

/// The message of the server after the mount.
const MOUNTED: &str = "the disk is mounted";

/// The environment variable with the seed. Only the server process has it.
const SEED: &str = "EYE_POWER_LOSS_SEED";

const DEADLINE: Duration = Duration::from_secs(10);

/// A disk that is empty at first, and unmounted when it is dropped or the test is killed.
#[derive(Debug)]
pub struct Disk {
    server: GuardedProcess,
    starts: usize,
}

impl Disk {
    /// Mounts a disk and blocks meanwhile. `seed` determines which unsynced data a power cut loses. Returns `None`,
    /// with a message on stderr, if this user may not mount or the system has no FUSE.
    ///
    /// # Panics
    /// Panics if the mount fails for any other reason.
    pub fn mount(seed: u64) -> Option<Self> {
        if let Err(reason) = can_mount() {
            eprintln!("\n=== SKIPPED: no power cut is tested, because {reason} ===\n");
            return None;
        }
        let program = std::env::current_exe().expect("Linux knows its path");
        let seed = format!("{SEED}={seed}");
        let command = ["env", &seed, &program.display().to_string(), "--exact", "power_loss_disk"].map(str::to_owned);
        let arguments = ["--ignored", "--nocapture"].map(str::to_owned);
        let server = GuardedProcess::new(&temporary_folder("disk"), None, &[&command[..], &arguments[..]].concat());
        let mut disk = Self { server, starts: 0 };
        disk.restore_power();
        Some(disk)
    }

    /// Returns the root folder of the disk.
    pub fn path(&self) -> PathBuf {
        mount_point(self.server.folder())
    }

    /// Loses all unsynced data and unmounts the disk. Operations on open files then fail. Blocks.
    ///
    /// # Panics
    /// Panics if the power is off.
    pub fn cut_power(&mut self) {
        self.server.kill();
    }

    /// Replaces the faults of the disk. They survive power cuts.
    pub fn set_faults(&self, faults: &[Fault]) {
        fault::write(self.server.folder(), faults);
    }

    /// Mounts the disk after [`cut_power`](Self::cut_power). Blocks.
    ///
    /// # Panics
    /// Panics if the power is on, or if the mount fails.
    pub fn restore_power(&mut self) {
        self.server.start();
        self.starts += 1;
        let mounted = || self.server.log().matches(MOUNTED).count() == self.starts;
        let ended = eye_harness::holds_within(DEADLINE, || mounted() || self.server.has_ended());
        assert!(ended && mounted(), "the disk cannot be mounted: {}", self.server.log());
    }
}

/// Returns the reason as an error if this process cannot mount a file system.
fn can_mount() -> Result<(), String> {
    const SYS_ADMIN: u32 = 21;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("/dev/fuse cannot be opened: {error}"))?;
    let status = fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("Linux reports it");
    let rights = u64::from_str_radix(rights.trim(), 16).expect("a hexadecimal number");
    if rights >> SYS_ADMIN & 1 == 1 { Ok(()) } else { Err("this user may not mount".to_owned()) }
}

fn mount_point(folder: &Path) -> PathBuf {
    folder.join("disk")
}

/// Serves the disk until the process is killed if [`Disk::mount`] started it. Otherwise returns at once.
///
/// # Panics
/// Panics if the mount fails.
pub fn serve() {
    let Ok(seed) = std::env::var(SEED) else { return };
    // The guard of the process has created the folder.
    let folder = std::env::current_dir().expect("the working folder exists");
    let at = mount_point(&folder);
    // The killed server before this one has left its mount.
    drop(Command::new("umount").arg("-l").arg(&at).stderr(Stdio::null()).status());
    fs::create_dir_all(&at).expect("the guard owns the folder");
    let starts: u64 = fs::read_to_string("starts").map_or(0, |starts| starts.parse().expect("a number"));
    fs::write("starts", (starts + 1).to_string()).expect("the guard owns the folder");
    let rng = Rng::with_seed(seed.parse::<u64>().expect("a number").wrapping_add(starts));
    let early = EARLY[starts as usize % EARLY.len()];
    let media = Media::open(&folder.join("durable"), early, rng).expect("the guard owns the folder");
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("eye-power-loss".to_owned())];
    // Other operations continue during a sync.
    config.n_threads = Some(4);
    let session = fuser::Session::new(MountedMedia::new(media), &at, &config).expect("this user may mount");
    println!("{MOUNTED}");
    session.run().expect("the disk is served until it is unmounted");
}
