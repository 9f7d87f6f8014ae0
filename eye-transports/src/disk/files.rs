//! Files and folders for the owner only, written so that they are whole or not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Makes a folder, and those above it, where they are not there, and its name durable: with its folder, a power cut would
/// take all that was synced in it.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    let create = || match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    };
    match create() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_folder(above)?;
            create()?;
        }
        created => created?,
    }
    match sync_folder(above) {
        // Somebody else made our folder in one that we may not look into, and saw to it that it stays.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// How often in a row the disk is asked for what it cannot read, before that counts as damaged: it may be away.
pub(super) const READ_TRIES: u32 = 5;

/// The pause between them.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// What a disk reads as a whole, at most.
const BLOCK_BYTES: u64 = 4096;

/// Whether the disk could not read something that is there: it has a bad sector, or the file system a wrong checksum.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// As `read_exact_at`, but what cannot be read is zeros, a block at a time.
pub(super) fn read_all_that_can_be(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let bytes = buffer.len().min((BLOCK_BYTES - offset % BLOCK_BYTES) as usize);
        let block = buffer.split_off_mut(..bytes).expect("it is as long");
        match file.read_exact_at(block, offset) {
            Err(error) if is_unreadable(&error) => block.fill(0),
            read => read?,
        }
        offset += bytes as u64;
    }
    Ok(())
}

/// A whole file: what cannot be read, several times, is zeros. Blocks for seconds then.
pub(super) fn read_patiently(path: &Path) -> io::Result<Vec<u8>> {
    for _ in 1..READ_TRIES {
        match fs::read(path) {
            Err(error) if is_unreadable(&error) => thread::sleep(READ_PAUSE),
            read => return read,
        }
    }
    tracing::error!(component = "transport", file = %path.display(), "the disk cannot read all of it: the rest is damaged");
    let file = File::open(path)?;
    let mut content = vec![0; file.metadata()?.len() as usize];
    read_all_that_can_be(&file, &mut content, 0)?;
    Ok(content)
}

/// How all files are opened for writing.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a file as a whole, durably, into a folder that is made where it is not there.
pub(super) fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    create_folder(folder)?;
    write_unnamed(folder, name, content)?;
    sync_folder(folder)
}

/// As [`write`], but the folder is there, and the name is durable only once the folder is synced.
pub(super) fn write_unnamed(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut file = options().create(true).truncate(true).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, folder.join(name))
}

/// A file's content with its checksum.
pub(super) fn seal(text: &str) -> String {
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
}

/// The text that was sealed; `None` when the content is damaged.
pub(super) fn unseal(content: &[u8]) -> Option<&str> {
    let (checksum, text) = std::str::from_utf8(content).ok()?.strip_suffix('\n')?.split_once(' ')?;
    (checksum == format!("{:08x}", crc32fast::hash(text.as_bytes()))).then_some(text)
}
