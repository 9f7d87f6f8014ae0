//! Faults of a disk. The test passes them to the process that serves the disk in a file with one line per fault.

use std::fs;
use std::path::Path;

const FILE: &str = "faults";

/// A fault of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every sync of a file fails.
    Sync,
    /// Every read of the byte at `offset` of a file with this name fails.
    Read {
        /// The file's name in any folder.
        file: String,
        /// The position of the byte.
        offset: u64,
    },
}

pub(crate) fn write(folder: &Path, faults: &[Fault]) {
    let line = |fault: &Fault| match fault {
        Fault::Sync => "sync\n".to_owned(),
        Fault::Read { file, offset } => format!("{offset} {file}\n"),
    };
    let unfinished = folder.join("faults.unfinished");
    fs::write(&unfinished, faults.iter().map(line).collect::<String>()).expect("the test owns the folder");
    fs::rename(unfinished, folder.join(FILE)).expect("the test owns the folder");
}

/// Reads the faults from the working folder, which is the folder of the disk.
pub(crate) fn read() -> Vec<Fault> {
    let fault = |line: &str| match line.split_once(' ') {
        None => Fault::Sync,
        Some((offset, file)) => Fault::Read { file: file.to_owned(), offset: offset.parse().expect("a number") },
    };
    fs::read_to_string(FILE).unwrap_or_default().lines().map(fault).collect()
}
