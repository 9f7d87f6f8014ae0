//! Files and folders for the owner only, written so that they are whole or not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

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
