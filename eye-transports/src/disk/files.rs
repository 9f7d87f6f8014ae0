//! File operations of the disk queue. Files are readable by their owner alone, and appear whole or not at all.
//!
//! A file is durable only together with its name, so the folder of a new file or folder is synced as well.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Failed reads in a row after which unreadable bytes count as damaged. Until then the disk may be unavailable.
pub(super) const READ_TRIES: u32 = 5;

/// The pause between two tries.
pub(super) const READ_PAUSE: Duration = Duration::from_secs(1);

/// The largest unit in which disks read.
const BLOCK_BYTES: u64 = 4096;

/// Resolves a relative path, for messages.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Creates a folder and its missing parents, durably.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let create = || match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    };
    match create() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_folder(parent)?;
            create()?;
        }
        created => created?,
    }
    match sync_folder(parent) {
        // An administrator created our folder in one that we may not open, and answers for its durability.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Tells whether the disk could not read existing bytes: a bad sector, or a wrong checksum of the file system.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Reads like `read_exact_at`, but fills each unreadable block with zeros.
pub(super) fn read_zeroing_unreadable(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let bytes = buffer.len().min((BLOCK_BYTES - offset % BLOCK_BYTES) as usize);
        let block = buffer.split_off_mut(..bytes).expect("the buffer has as many bytes");
        match file.read_exact_at(block, offset) {
            Err(error) if is_unreadable(&error) => block.fill(0),
            read => read?,
        }
        offset += bytes as u64;
    }
    Ok(())
}

/// Reads a whole file. Unreadable blocks are retried, which blocks for seconds, and then become zeros.
pub(super) fn read_patiently(path: &Path) -> io::Result<Vec<u8>> {
    for _ in 1..READ_TRIES {
        match fs::read(path) {
            Err(error) if is_unreadable(&error) => thread::sleep(READ_PAUSE),
            read => return read,
        }
    }
    tracing::error!(component = "transport", file = %path.display(), "the disk cannot read parts of a file");
    let file = File::open(path)?;
    let mut content = vec![0; file.metadata()?.len() as usize];
    read_zeroing_unreadable(&file, &mut content, 0)?;
    Ok(content)
}

/// Returns the options with which every file is opened for writing.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a whole file durably, and creates its folder if necessary.
pub(super) fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    create_folder(folder)?;
    write_unsynced(folder, name, content)?;
    sync_folder(folder)
}

/// Writes a whole file into an existing folder. The caller makes its name durable with [`sync_folder`].
pub(super) fn write_unsynced(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut file = options().create(true).truncate(true).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(name))
}

/// Adds a checksum to the content of a file.
pub(super) fn seal(content: &[u8]) -> Vec<u8> {
    [checksum(content).as_bytes(), content, b"\n"].concat()
}

/// Returns the content of a sealed file; `None` if it is damaged.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (prefix, content) = sealed.strip_suffix(b"\n")?.split_at_checked(CHECKSUM_BYTES)?;
    (prefix == checksum(content).as_bytes()).then_some(content)
}

/// Bytes of a checksum as text.
const CHECKSUM_BYTES: usize = 9;

fn checksum(content: &[u8]) -> String {
    format!("{:08x} ", crc32fast::hash(content))
}
