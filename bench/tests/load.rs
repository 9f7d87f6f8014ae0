//! The commands `load` and `bare` as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const BENCH: &str = env!("CARGO_BIN_EXE_eye-bench");

/// A bare server that is killed on drop.
struct BareServer(Child);

impl Drop for BareServer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn load_prints_acknowledged_events_and_process_usage() {
    let mut bare = BareServer(Command::new(BENCH).arg("bare").stdout(Stdio::piped()).spawn().unwrap());
    let mut address = String::new();
    BufReader::new(bare.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let url = format!("http://{}/api/event/", address.trim());
    let pid = bare.0.id().to_string();
    let load = Command::new(BENCH)
        .args(["load", "--url", &url, "--connections", "4", "--events", "10", "--rate", "1000"])
        .args(["--duration-s", "1", "--warmup-s", "0", "--pid", &pid])
        .output()
        .unwrap();
    let output = String::from_utf8(load.stdout).unwrap();
    assert!(load.status.success(), "{output}{}", String::from_utf8_lossy(&load.stderr));
    let number = |tail: &str| {
        let line = output.lines().find_map(|line| line.strip_suffix(tail));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no{tail}: {output}"))
    };
    // The first request of each connection exceeds the rate. On a busy machine, fewer events may arrive.
    assert!((1.0..=1040.0).contains(&number(" events acknowledged in total, including the warm-up")), "{output}");
    assert!(number(" µs/event") >= 0.0, "{output}");
    assert!(output.contains("process: peak memory "), "{output}");
    assert!(!output.contains(" × "), "the load had errors: {output}");
}
