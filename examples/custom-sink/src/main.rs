//! The Eye with one more sink: NDJSON files.
//!
//! A program with its own plug-ins needs only this `main` and the plug-ins. It has the command line and the configuration
//! of The Eye, and `type = "ndjson"` is a sink like any other. `docs/custom-sink.md` explains it.
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
