//! The Eye with one more sink, which writes NDJSON files.
//!
//! A program with its own plug-ins consists of these plug-ins and this file. It has The Eye's command line and
//! configuration, and `type = "ndjson"` selects the sink as any other. `docs/custom-sink.md` explains each part.
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
