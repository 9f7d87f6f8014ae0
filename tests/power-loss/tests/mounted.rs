//! The mounted disk as programs see it: syncs, power cuts and clean-up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use eye_power_loss::Disk;

#[test]
#[ignore = "not a test: the process that serves the disk"]
fn power_loss_disk() {
    eye_power_loss::serve();
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// The first start of a disk keeps synced data alone.
#[test]
fn power_cut_loses_unsynced_data() {
    let Some(mut disk) = Disk::mount(1) else { return };
    let path = |name: &str| disk.path().join(name);
    let mut synced = File::create(path("synced")).unwrap();
    synced.write_all(&[b'a'; 300_000]).unwrap();
    synced.sync_data().unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("without its name"), "x").unwrap();
    fs::rename(path("without its name"), path("unsynced")).unwrap();
    fs::remove_file(path("unsynced")).unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    synced.write_all(b"and more").unwrap();
    fs::write(path("late"), "x").unwrap();
    let before: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((before.len(), fs::read(path("synced")).unwrap().len()), (3, 300_008));

    let mounted_at = disk.path();
    disk.cut_power();
    assert!(synced.write_all(b"lost").is_err() && synced.sync_data().is_err(), "the disk is unmounted");
    drop(synced);
    disk.restore_power();
    let mut after: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    after.sort();
    assert_eq!(after, ["folder", "synced"]);
    assert!(fs::read(disk.path().join("synced")).unwrap() == [b'a'; 300_000]);
    drop(disk);
    assert!(!is_mounted(&mounted_at) && !mounted_at.exists());
}

/// The process that the next test kills.
#[test]
#[ignore = "runs until it is killed"]
fn holds_a_disk() {
    let disk = Disk::mount(1).unwrap();
    println!("holds {}", disk.path().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn killed_test_leaves_no_mount() {
    if Disk::mount(1).is_none() {
        return;
    }
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_disk", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines().map_while(Result::ok);
    let path = lines.find_map(|line| line.split_once("holds ").map(|(_, path)| PathBuf::from(path))).unwrap();
    assert!(is_mounted(&path));
    test.kill().unwrap();
    test.wait().unwrap();
    let gone = || !is_mounted(&path) && !path.exists();
    assert!(eye_harness::holds_within(Duration::from_secs(30), gone), "the mount or the folder remains");
}
