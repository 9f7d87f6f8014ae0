//! The Eye with one sink more: NDJSON files.
//!
//! This is all that a program with plug-ins of its own consists of, besides the plug-ins. It has The Eye's command line
//! and configuration, and `type = "ndjson"` is a sink like any other. `docs/custom-sink.md` walks through it:
//!
//! ```sh
//! cargo run -p custom-sink -- --config examples/custom-sink/eye.toml
//! ```

mod ndjson;

use std::process::ExitCode;

use ndjson::NdjsonConfig;

fn main() -> ExitCode {
    eye::run(&eye::built_in().sink::<NdjsonConfig>())
}
