//! A disk that loses on command what was not synced, and fails in other ways: a file system (FUSE) whose server is killed, and with it all that it
//! has in memory. What was synced lies in files, and is what the next server starts from.
//!
//! The server is a process of its own, so that the test that uses the disk cannot hang in it: the test program itself,
//! started again for one test alone. Each test program that uses a [`Disk`] has this:
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

use eye_harness::{Kept, temporary_folder};
use fastrand::Rng;

pub use fault::Fault;
use media::Media;
use mount::Mounted;

/// How likely it is that something is durable before it is synced, in one start of the disk after the other: a disk that
/// has nothing but what was synced, and disks that have some of the rest.
const EARLY: [f64; 3] = [0.0, 0.5, 0.9];

/// What the server says once programs can use it.
const MOUNTED: &str = "the disk is mounted";

/// Tells the process that it is the server. Its value is the seed.
const SEED: &str = "EYE_POWER_LOSS_SEED";

const DEADLINE: Duration = Duration::from_secs(10);

/// A disk, empty at first. It is unmounted when it is dropped, and when the test is killed.
#[derive(Debug)]
pub struct Disk {
    server: Kept,
    starts: usize,
}

impl Disk {
    /// Mounts a disk, whose luck follows from `seed`. Blocks. `None`, with a loud line, where this user may not mount, or
    /// the system has no FUSE.
    ///
    /// # Panics
    /// When it cannot be mounted for any other reason.
    pub fn mount(seed: u64) -> Option<Self> {
        if let Err(reason) = can_mount() {
            eprintln!("\n=== SKIPPED: nothing shows what a power cut costs, for {reason} ===\n");
            return None;
        }
        let program = std::env::current_exe().expect("Linux knows it");
        let seed = format!("{SEED}={seed}");
        let command = ["env", &seed, &program.display().to_string(), "--exact", "power_loss_disk"].map(str::to_owned);
        let arguments = ["--ignored", "--nocapture"].map(str::to_owned);
        let server = Kept::new(&temporary_folder("disk"), None, &[&command[..], &arguments[..]].concat());
        let mut disk = Self { server, starts: 0 };
        disk.restore_power();
        Some(disk)
    }

    /// The folder that lies on the disk.
    pub fn path(&self) -> PathBuf {
        mount_point(self.server.folder())
    }

    /// Everything that was not synced is gone, and so is the disk: who has files of it open gets errors. Blocks.
    ///
    /// # Panics
    /// When it has no power.
    pub fn cut_power(&mut self) {
        self.server.kill();
    }

    /// What it does wrong from now on, over all its starts.
    pub fn set_faults(&self, faults: &[Fault]) {
        fault::write(self.server.folder(), faults);
    }

    /// Mounts what was left by [`cut_power`](Self::cut_power). Blocks.
    ///
    /// # Panics
    /// When it has power, or cannot be mounted.
    pub fn restore_power(&mut self) {
        self.server.start();
        self.starts += 1;
        let mounted = || self.server.log().matches(MOUNTED).count() == self.starts;
        let ended = eye_harness::holds_within(DEADLINE, || mounted() || self.server.has_ended());
        assert!(ended && mounted(), "the disk cannot be mounted: {}", self.server.log());
    }
}

/// Why this process cannot mount a file system of its own.
fn can_mount() -> Result<(), String> {
    const SYS_ADMIN: u32 = 21;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("/dev/fuse cannot be opened: {error}"))?;
    let status = fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("it is there");
    let rights = u64::from_str_radix(rights.trim(), 16).expect("it is a number");
    if rights >> SYS_ADMIN & 1 == 1 { Ok(()) } else { Err("this user may not mount".to_owned()) }
}

fn mount_point(folder: &Path) -> PathBuf {
    folder.join("disk")
}

/// Serves the disk when this process was started for it by [`Disk::mount`], until it is killed; otherwise does nothing.
///
/// # Panics
/// When it cannot be mounted.
pub fn serve() {
    let Ok(seed) = std::env::var(SEED) else { return };
    // The folder that its keeper has made.
    let folder = std::env::current_dir().expect("it is there");
    let at = mount_point(&folder);
    // What the server before this one was killed on.
    drop(Command::new("umount").arg("-l").arg(&at).stderr(Stdio::null()).status());
    fs::create_dir_all(&at).expect("the folder is ours");
    let starts: u64 = fs::read_to_string("starts").map_or(0, |starts| starts.parse().expect("a number"));
    fs::write("starts", (starts + 1).to_string()).expect("the folder is ours");
    let rng = Rng::with_seed(seed.parse::<u64>().expect("a number").wrapping_add(starts));
    let early = EARLY[starts as usize % EARLY.len()];
    let media = Media::open(&folder.join("durable"), early, rng).expect("the folder is ours");
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("eye-power-loss".to_owned())];
    // A sync takes its time, and others go on.
    config.n_threads = Some(4);
    let session = fuser::Session::new(Mounted::new(media), &at, &config).expect("root may mount");
    println!("{MOUNTED}");
    session.run().expect("it is served until it is unmounted");
}
