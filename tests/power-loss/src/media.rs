//! The contents of the disk in memory, and the durable part of them in files: [`Media`].
//!
//! Programs see the contents in memory. The durable part is below a folder: `blocks/N` holds the bytes of file N, and
//! `names/N` the entries of folder N, one per line. A sync of a folder makes its names durable, a sync of a file its
//! bytes. As on a real disk, some writes become durable earlier by chance: blocks in any order, names in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// The number of the root folder.
pub(crate) const ROOT: u64 = 1;

/// The unit that a disk writes atomically.
const BLOCK_BYTES: usize = 512;

pub(crate) struct Media {
    durable: PathBuf,
    nodes: HashMap<u64, Node>,
    next: u64,
    rng: Rng,
    /// The probability that a write becomes durable before its sync.
    early: f64,
}

pub(crate) struct Node {
    pub(crate) mode: u16,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Folder(BTreeMap<String, u64>),
    File {
        bytes: Vec<u8>,
        /// The blocks written since their last sync.
        unsynced: BTreeSet<usize>,
    },
}

impl Node {
    fn new(is_folder: bool, mode: u16) -> Self {
        let content = match is_folder {
            true => Content::Folder(BTreeMap::new()),
            false => Content::File { bytes: Vec::new(), unsynced: BTreeSet::new() },
        };
        Self { mode, content }
    }

    pub(crate) fn is_folder(&self) -> bool {
        matches!(self.content, Content::Folder(_))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.content {
            Content::Folder(_) => 0,
            Content::File { bytes, .. } => bytes.len() as u64,
        }
    }
}

impl Media {
    /// Loads the contents from the folder `durable`, which is created if it does not exist.
    pub(crate) fn open(durable: &Path, early: f64, rng: Rng) -> io::Result<Self> {
        fs::create_dir_all(durable.join("blocks"))?;
        fs::create_dir_all(durable.join("names"))?;
        let mut media = Self { durable: durable.to_owned(), nodes: HashMap::new(), next: ROOT + 1, rng, early };
        media.load(ROOT, Node::new(true, 0o755))?;
        for file in fs::read_dir(durable.join("blocks"))? {
            let file = file?;
            let number = file.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_none_or(|number| !media.nodes.contains_key(&number)) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(media)
    }

    fn load(&mut self, number: u64, mut node: Node) -> io::Result<()> {
        self.next = self.next.max(number + 1);
        match &mut node.content {
            Content::File { bytes, .. } => *bytes = or_empty(fs::read(self.blocks(number)))?,
            Content::Folder(names) => {
                for line in or_empty(fs::read_to_string(self.names(number)))?.lines() {
                    let mut fields = line.splitn(4, ' ');
                    let mut field = || fields.next().expect("this module wrote the line");
                    let (child, mode) = (field().parse().expect("a number"), field().parse().expect("a number"));
                    let is_folder = field() == "folder";
                    names.insert(field().to_owned(), child);
                    self.load(child, Node::new(is_folder, mode))?;
                }
            }
        }
        self.nodes.insert(number, node);
        Ok(())
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    /// Returns true if a folder contains the file under this name.
    pub(crate) fn is_named(&self, file: u64, name: &str) -> bool {
        let contains = |node: &Node| matches!(&node.content, Content::Folder(names) if names.get(name) == Some(&file));
        self.nodes.values().any(contains)
    }

    pub(crate) fn set_mode(&mut self, number: u64, mode: u16) {
        self.nodes.get_mut(&number).expect("it is open").mode = mode;
    }

    /// Returns the entries of a folder.
    pub(crate) fn list(&mut self, folder: u64) -> &mut BTreeMap<String, u64> {
        match &mut self.nodes.get_mut(&folder).expect("it is open").content {
            Content::Folder(names) => names,
            Content::File { .. } => panic!("{folder} is a file"),
        }
    }

    pub(crate) fn create(&mut self, folder: u64, name: &str, is_folder: bool, mode: u16) -> io::Result<u64> {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node::new(is_folder, mode));
        self.list(folder).insert(name.to_owned(), number);
        self.names_changed(folder)?;
        Ok(number)
    }

    /// Removes a name, and returns false if there is none. Open files remain usable.
    pub(crate) fn remove(&mut self, folder: u64, name: &str) -> io::Result<bool> {
        let existed = self.list(folder).remove(name).is_some();
        self.names_changed(folder)?;
        Ok(existed)
    }

    /// Renames an entry within one folder, which is all that programs need. Returns false if there is no such name.
    pub(crate) fn rename(&mut self, folder: u64, from: &str, to: &str) -> io::Result<bool> {
        let names = self.list(folder);
        let Some(number) = names.remove(from) else { return Ok(false) };
        names.insert(to.to_owned(), number);
        self.names_changed(folder)?;
        Ok(true)
    }

    pub(crate) fn write(&mut self, file: u64, offset: usize, data: &[u8]) -> io::Result<()> {
        let (bytes, unsynced) = self.file(file);
        let end = offset + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(data);
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        unsynced.extend(blocks.clone());
        let early = blocks.filter(|_| self.is_early()).collect();
        self.make_durable(file, early)
    }

    pub(crate) fn truncate(&mut self, file: u64, size: usize) -> io::Result<()> {
        let (bytes, unsynced) = self.file(file);
        let end = bytes.len().max(size);
        bytes.resize(size, 0);
        // Old bytes must not reappear beside bytes that are written there later.
        unsynced.extend(size / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        if self.is_early() { self.sync_file(file) } else { Ok(()) }
    }

    pub(crate) fn sync_file(&mut self, file: u64) -> io::Result<()> {
        let (bytes, unsynced) = self.file(file);
        let (size, all) = (bytes.len() as u64, std::mem::take(unsynced));
        self.make_durable(file, all)?;
        self.open_blocks(file)?.set_len(size)
    }

    pub(crate) fn sync_folder(&mut self, folder: u64) -> io::Result<()> {
        let mut lines = String::new();
        for (name, child) in self.list(folder).clone() {
            let node = &self.nodes[&child];
            let kind = if node.is_folder() { "folder" } else { "file" };
            lines.push_str(&format!("{child} {} {kind} {name}\n", node.mode));
        }
        // A rename is atomic: a kill of this process leaves the old or the new version.
        let unfinished = self.durable.join("unfinished");
        fs::write(&unfinished, lines)?;
        fs::rename(unfinished, self.names(folder))
    }

    fn names_changed(&mut self, folder: u64) -> io::Result<()> {
        if self.is_early() { self.sync_folder(folder) } else { Ok(()) }
    }

    fn is_early(&mut self) -> bool {
        self.rng.f64() < self.early
    }

    /// Makes these blocks of a file durable, as far as the file has them.
    fn make_durable(&mut self, file: u64, blocks: BTreeSet<usize>) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let durable = self.open_blocks(file)?;
        let (bytes, unsynced) = self.file(file);
        for block in blocks {
            let block_bytes = block * BLOCK_BYTES..bytes.len().min((block + 1) * BLOCK_BYTES);
            if let Some(content) = bytes.get(block_bytes.clone()) {
                durable.write_all_at(content, block_bytes.start as u64)?;
            }
            unsynced.remove(&block);
        }
        Ok(())
    }

    fn file(&mut self, file: u64) -> (&mut Vec<u8>, &mut BTreeSet<usize>) {
        match &mut self.nodes.get_mut(&file).expect("it is open").content {
            Content::File { bytes, unsynced } => (bytes, unsynced),
            Content::Folder(_) => panic!("{file} is a folder"),
        }
    }

    fn open_blocks(&self, file: u64) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).open(self.blocks(file))
    }

    fn blocks(&self, file: u64) -> PathBuf {
        self.durable.join("blocks").join(file.to_string())
    }

    fn names(&self, folder: u64) -> PathBuf {
        self.durable.join("names").join(folder.to_string())
    }
}

/// Returns empty contents for a file or folder that was created and never synced.
fn or_empty<T: Default>(read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Opens a disk on which this share of the writes becomes durable early.
    fn open(folder: &Path, early: f64) -> Media {
        Media::open(folder, early, Rng::with_seed(7)).unwrap()
    }

    fn content(media: &mut Media, name: &str) -> Option<Vec<u8>> {
        let number = *media.list(ROOT).get(name)?;
        Some(media.file(number).0.clone())
    }

    #[test]
    fn only_what_was_synced_outlives_a_cut() {
        let folder = tempfile::tempdir().unwrap();
        let mut media = open(folder.path(), 0.0);
        let file = media.create(ROOT, "a", false, 0o600).unwrap();
        media.write(file, 0, b"synced").unwrap();
        media.sync_file(file).unwrap();
        assert_eq!(content(&mut open(folder.path(), 0.0), "a"), None, "its name is not durable");

        let mut media = open(folder.path(), 0.0);
        let file = media.create(ROOT, "a", false, 0o600).unwrap();
        media.sync_folder(ROOT).unwrap();
        assert_eq!(content(&mut open(folder.path(), 0.0), "a").unwrap(), b"", "its name alone is durable");
        media.write(file, 0, b"synced").unwrap();
        media.sync_file(file).unwrap();
        media.write(file, 0, b"lost, and longer").unwrap();
        assert_eq!(content(&mut media, "a").unwrap(), b"lost, and longer");
        assert_eq!(content(&mut open(folder.path(), 0.0), "a").unwrap(), b"synced");
    }

    #[test]
    fn removal_and_rename_are_durable_after_a_sync() {
        let folder = tempfile::tempdir().unwrap();
        let mut media = open(folder.path(), 0.0);
        for name in ["a", "b"] {
            let file = media.create(ROOT, name, false, 0o600).unwrap();
            media.write(file, 0, name.as_bytes()).unwrap();
            media.sync_file(file).unwrap();
        }
        media.sync_folder(ROOT).unwrap();
        assert!(media.rename(ROOT, "a", "b").unwrap());
        let mut cut = open(folder.path(), 0.0);
        assert_eq!((content(&mut cut, "a").unwrap(), content(&mut cut, "b").unwrap()), (b"a".to_vec(), b"b".to_vec()));
        media.sync_folder(ROOT).unwrap();
        let mut cut = open(folder.path(), 0.0);
        assert_eq!((content(&mut cut, "a"), content(&mut cut, "b").unwrap()), (None, b"a".to_vec()));
        assert!(media.remove(ROOT, "b").unwrap());
        assert!(content(&mut open(folder.path(), 0.0), "b").is_some());
        media.sync_folder(ROOT).unwrap();
        assert_eq!(content(&mut open(folder.path(), 0.0), "b"), None);
    }

    #[test]
    fn truncated_bytes_stay_gone_under_later_writes() {
        let folder = tempfile::tempdir().unwrap();
        let mut media = open(folder.path(), 0.0);
        let file = media.create(ROOT, "a", false, 0o600).unwrap();
        media.write(file, 0, &[1; 5000]).unwrap();
        media.sync_file(file).unwrap();
        media.sync_folder(ROOT).unwrap();
        media.truncate(file, 100).unwrap();
        media.write(file, 4000, &[2; 10]).unwrap();
        media.sync_file(file).unwrap();
        let expected = [vec![1; 100], vec![0; 3900], vec![2; 10]].concat();
        assert_eq!(content(&mut open(folder.path(), 0.0), "a").unwrap(), expected);
    }

    #[test]
    fn blocks_become_durable_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut media = open(folder.path(), 0.5);
        let file = media.create(ROOT, "a", false, 0o600).unwrap();
        media.sync_folder(ROOT).unwrap();
        media.write(file, 0, &[1; 512 * 100]).unwrap();
        let kept = content(&mut open(folder.path(), 0.0), "a").unwrap();
        let blocks = kept.chunks(512).filter(|block| block.iter().all(|byte| *byte == 1)).count();
        assert!((20..80).contains(&blocks), "{blocks}");
    }
}
