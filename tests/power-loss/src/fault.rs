//! What a disk does wrong, as a test tells the process that serves it: by a file, a line each.

use std::fs;
use std::path::Path;

const FILE: &str = "faults";

/// What a disk does wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No file can be synced.
    Sync,
    /// Whatever has the byte at `offset` of a file of this name cannot be read.
    Read {
        /// The file's name, in whatever folder.
        file: String,
        /// Where the byte is.
        offset: u64,
    },
}

pub(crate) fn write(folder: &Path, faults: &[Fault]) {
    let line = |fault: &Fault| match fault {
        Fault::Sync => "sync\n".to_owned(),
        Fault::Read { file, offset } => format!("{offset} {file}\n"),
    };
    let unfinished = folder.join("faults.unfinished");
    fs::write(&unfinished, faults.iter().map(line).collect::<String>()).expect("the folder is ours");
    fs::rename(unfinished, folder.join(FILE)).expect("the folder is ours");
}

/// Those of the disk whose folder the process runs in.
pub(crate) fn read() -> Vec<Fault> {
    let fault = |line: &str| match line.split_once(' ') {
        None => Fault::Sync,
        Some((offset, file)) => Fault::Read { file: file.to_owned(), offset: offset.parse().expect("a number") },
    };
    fs::read_to_string(FILE).unwrap_or_default().lines().map(fault).collect()
}
