//! The files of a database: the main one, and beside it the staging file, which exists while the program runs.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The paths of both files.
#[derive(Clone, Debug)]
pub(in crate::sql) struct SqliteFiles {
    pub(super) main: PathBuf,
    /// UTF-8, because a statement names it.
    pub(super) staging: String,
}

impl SqliteFiles {
    /// Derives the staging file from the main one by `-staging` at its end, as SQLite names its logs.
    pub(in crate::sql) fn new(main: &str) -> Self {
        Self { main: PathBuf::from(main), staging: format!("{main}-staging") }
    }

    /// Creates the main file and its folders where they are missing, for the owner only.
    pub(in crate::sql) fn create(&self) -> io::Result<()> {
        if let Some(folder) = self.main.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mut builder = DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(folder)?;
        }
        match create_for_owner(&self.main) {
            // The file keeps its rights. Opening it tells if they suffice.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                drop(OpenOptions::new().read(true).write(true).open(&self.main)?);
            }
            created => drop(created?),
        }
        sync_folders(&self.main);
        Ok(())
    }

    pub(super) fn has_staging(&self) -> bool {
        Path::new(&self.staging).exists()
    }

    /// Creates the staging file with the rights of the main file, unless another process did so just now.
    pub(super) fn create_staging(&self) -> io::Result<()> {
        match create_for_owner(Path::new(&self.staging)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            created => created?.set_permissions(self.main.metadata()?.permissions())?,
        }
        sync_folders(&self.main);
        Ok(())
    }

    pub(super) fn ids(&self) -> FileIds {
        [&self.main, Path::new(&self.staging)].map(|path| FileId::of(path).ok())
    }
}

fn create_for_owner(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes a file's name and those of its folders durable: SQLite syncs what it writes and the names of its logs alone.
/// Not every file system supports that, so an error is ignored, as SQLite does.
fn sync_folders(path: &Path) {
    #[cfg(unix)]
    for folder in std::path::absolute(path).iter().flat_map(|path| path.ancestors().skip(1)) {
        drop(File::open(folder).and_then(|folder| folder.sync_all()));
    }
}

/// The identity of a file, whatever its path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

/// The identities of the main and of the staging file. `None` is missing.
pub(super) type FileIds = [Option<FileId>; 2];

impl FileId {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }

    /// Elsewhere an open file can be neither removed nor replaced.
    #[cfg(not(unix))]
    fn of(_path: &Path) -> io::Result<Self> {
        Ok(Self(0, 0))
    }
}

/// The files that read connections must have opened. A connection older than a file answers from one that is gone.
pub(super) struct ReadFiles {
    files: SqliteFiles,
    seen: Mutex<(FileIds, Instant)>,
}

impl ReadFiles {
    pub(super) fn new(files: SqliteFiles) -> Self {
        let seen = Mutex::new((files.ids(), Instant::now()));
        Self { files, seen }
    }

    /// Returns true when a connection of this age has opened the present files.
    pub(super) fn are_open_since(&self, age: Duration) -> bool {
        let now = self.files.ids();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        age < seen.1.elapsed()
    }
}
