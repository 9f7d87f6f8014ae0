//! The files of a database: the one that has the events, and beside it that of the inbox.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where they are.
#[derive(Clone, Debug)]
pub(in crate::sql) struct Files {
    pub(super) events: PathBuf,
    /// As UTF-8, to be named in a statement.
    pub(super) inbox: String,
}

impl Files {
    /// The inbox's file has the name of the other, with `-inbox` at its end, as SQLite names its logs.
    pub(in crate::sql) fn of(events: &str) -> Self {
        Self { events: PathBuf::from(events), inbox: format!("{events}-inbox") }
    }

    /// Creates those that are missing, and their folders, for the owner only. The inbox's has the rights of the other, as
    /// SQLite gives them to what it puts beside it.
    pub(in crate::sql) fn create(&self) -> io::Result<()> {
        if let Some(folder) = self.events.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mut builder = DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(folder)?;
        }
        create(&self.events)?;
        if create(Path::new(&self.inbox))? {
            std::fs::set_permissions(&self.inbox, self.events.metadata()?.permissions())?;
        }
        make_name_durable(&self.events);
        Ok(())
    }

    pub(super) fn ids(&self) -> FileIds {
        [&self.events, Path::new(&self.inbox)].map(|path| FileId::of(path).ok())
    }
}

/// Whether it had to. A file that is there keeps its rights, and we find out whether they suffice.
fn create(path: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let mut options_to_create = options.clone();
    options_to_create.create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options_to_create, 0o600);
    match options_to_create.open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.open(path).map(|_| false),
        created => created.map(|_| true),
    }
}

/// SQLite syncs what it writes, and the names of its logs, but neither the names of the files nor those of their folders: a
/// power cut would take them, with all that is in them. Not every file system can do it, or lets us; so it does not have
/// to succeed, as with SQLite's own.
fn make_name_durable(path: &Path) {
    #[cfg(unix)]
    for folder in std::path::absolute(path).iter().flat_map(|path| path.ancestors().skip(1)) {
        drop(File::open(folder).and_then(|folder| folder.sync_all()));
    }
}

/// Tells a file from another one at the same path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

/// Of both files, as far as they are there.
pub(super) type FileIds = [Option<FileId>; 2];

impl FileId {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }

    /// Elsewhere a file that is open can be neither removed nor replaced.
    #[cfg(not(unix))]
    fn of(_path: &Path) -> io::Result<Self> {
        Ok(Self(0, 0))
    }
}

/// The files that readers are to read. Connections that were opened before these were there answer from others that are
/// gone.
pub(super) struct ReadFiles {
    files: Files,
    seen: Mutex<(FileIds, Instant)>,
}

impl ReadFiles {
    pub(super) fn new(files: Files) -> Self {
        let seen = Mutex::new((files.ids(), Instant::now()));
        Self { files, seen }
    }

    /// Whether a connection of this age can only have opened the files that are there now.
    pub(super) fn are_read_by(&self, age: Duration) -> bool {
        let now = self.files.ids();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        age < seen.1.elapsed()
    }
}
