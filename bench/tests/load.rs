//! The load generator against the bare server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const BENCH: &str = env!("CARGO_BIN_EXE_eye-bench");

struct Bare(Child);

impl Drop for Bare {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_load_tells_what_was_taken_and_what_that_cost() {
    let mut bare = Bare(Command::new(BENCH).arg("bare").stdout(Stdio::piped()).spawn().unwrap());
    let mut address = String::new();
    BufReader::new(bare.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let url = format!("http://{}/api/event/", address.trim());
    let pid = bare.0.id().to_string();
    let load = Command::new(BENCH)
        .args(["load", "--url", &url, "--connections", "4", "--events", "10", "--rate", "1000"])
        .args(["--duration-s", "1", "--warmup-s", "0", "--pid", &pid])
        .output()
        .unwrap();
    let said = String::from_utf8(load.stdout).unwrap();
    assert!(load.status.success(), "{said}{}", String::from_utf8_lossy(&load.stderr));
    let number = |tail: &str| {
        let line = said.lines().find_map(|line| line.strip_suffix(tail));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_else(|| panic!("no{tail}: {said}"))
    };
    // A rate is an upper bound, but for the first request of each connection, and the machine may be busy.
    assert!((1.0..=1040.0).contains(&number(" events acknowledged in all, warm-up included")), "{said}");
    assert!(number(" µs/event") >= 0.0, "{said}");
    assert!(said.contains("its peak memory "), "{said}");
    assert!(!said.contains(" × "), "no errors: {said}");
}
