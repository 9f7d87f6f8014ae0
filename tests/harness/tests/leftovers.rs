//! Servers, folders and shared memory disappear with their test, even if it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use eye_harness::{DatabaseServer, MariaDb, Postgres, eventually};

/// Counts the processes that work in `folder`, by the links in `/proc`.
fn processes_in(folder: &Path) -> usize {
    let processes = fs::read_dir("/proc").expect("Linux has /proc").flatten();
    // PostgreSQL and MariaDB work in their data folder. Unreadable links are skipped.
    processes
        .filter_map(|process| fs::read_link(process.path().join("cwd")).ok())
        .filter(|cwd| cwd.starts_with(folder))
        .count()
}

#[test]
fn dropped_server_leaves_nothing() {
    for server in [Postgres::start(), MariaDb::start()] {
        let folder = server.folder();
        assert!(processes_in(&folder) >= 2, "the guard and the server");
        drop(server);
        assert_eq!(processes_in(&folder), 0);
        assert!(!folder.exists());
    }
}

/// Returns key and ID of PostgreSQL's segment of shared memory, in the format of the system's list.
fn shared_memory(server: &DatabaseServer) -> String {
    let file = fs::read_to_string(server.folder().join("data/postmaster.pid")).expect("the server runs");
    let numbers: Vec<u64> = file.lines().nth(6).expect("7 lines").split_whitespace().flat_map(str::parse).collect();
    format!("{:>10} {:>10} ", numbers[0] as u32 as i32, numbers[1])
}

#[test]
fn killed_postgres_leaves_no_shared_memory() {
    let server = Postgres::start();
    let segment = shared_memory(&server);
    let exists = || fs::read_to_string("/proc/sysvipc/shm").expect("Linux has /proc").contains(&segment);
    assert!(exists(), "{segment}");
    server.kill();
    drop(server);
    assert!(!exists(), "{segment}");
}

/// The process that the next test kills.
#[test]
#[ignore = "runs until it is killed"]
fn holds_servers() {
    let paused = Postgres::start();
    paused.pause();
    for server in [&paused, Postgres::shared(), MariaDb::shared()] {
        println!("holds {}", server.folder().display());
    }
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn killed_test_leaves_nothing() {
    let mut test = Command::new(std::env::current_exe().expect("Linux knows its path"))
        .args(["--exact", "holds_servers", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test starts");
    let lines = BufReader::new(test.stdout.take().expect("stdout is piped")).lines().map_while(Result::ok);
    let held = lines.filter_map(|line| line.split_once("holds ").map(|(_, folder)| PathBuf::from(folder)));
    let folders: Vec<PathBuf> = held.filter(|folder| folder.is_absolute()).take(3).collect();
    assert!(folders.len() == 3 && folders.iter().all(|folder| processes_in(folder) >= 2), "{folders:?}");

    test.kill().expect("it is a child process");
    test.wait().expect("it is a child process");

    eventually("no process and no folder left", Duration::from_secs(30), async || {
        folders.iter().all(|folder| processes_in(folder) == 0 && !folder.exists())
    })
    .await;
}
