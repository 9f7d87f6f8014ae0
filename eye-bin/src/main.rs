//! The Eye with the plug-ins that come with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    eye::run(&eye::built_in())
}
