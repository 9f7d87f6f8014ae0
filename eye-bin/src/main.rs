//! The program with the built-in plug-ins.

use std::process::ExitCode;

fn main() -> ExitCode {
    eye::run(&eye::standins::registry())
}
