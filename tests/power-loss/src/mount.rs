//! The FUSE file system over [`Media`]: [`MountedMedia`] answers the requests of the kernel.

use std::ffi::OsStr;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::fault::{self, Fault};
use crate::media::{Content, Media};

/// The duration of a sync, as on a real disk, so that data acknowledged too early is lost.
const SYNC_TAKES: Duration = Duration::from_millis(5);

/// The time that the kernel may cache answers. Nothing else changes the file system.
const TTL: Duration = Duration::from_secs(3600);

const BLOCK_BYTES: u32 = 4096;
const BLOCKS: u64 = (4 << 30) / BLOCK_BYTES as u64;

pub(crate) struct MountedMedia(Mutex<Media>);

impl MountedMedia {
    pub(crate) fn new(media: Media) -> Self {
        Self(Mutex::new(media))
    }

    fn media(&self) -> MutexGuard<'_, Media> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attributes(media: &Media, number: u64) -> Result<FileAttr, Errno> {
    let node = media.get(number).ok_or(Errno::ENOENT)?;
    let time = SystemTime::UNIX_EPOCH;
    Ok(FileAttr {
        ino: INodeNo(number),
        size: node.size_bytes(),
        blocks: node.size_bytes().div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if node.is_folder() { FileType::Directory } else { FileType::RegularFile },
        perm: node.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

fn text(name: &OsStr) -> Result<&str, Errno> {
    // The file with the entries of a folder has one line for each.
    name.to_str().filter(|name| !name.contains('\n')).ok_or(Errno::EINVAL)
}

fn found(exists: io::Result<bool>) -> Result<(), Errno> {
    if exists? { Ok(()) } else { Err(Errno::ENOENT) }
}

impl MountedMedia {
    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let mut media = self.media();
        let number = *media.list(parent.0).get(text(name)?).ok_or(Errno::ENOENT)?;
        attributes(&media, number)
    }

    fn create_node(&self, parent: INodeNo, name: &OsStr, is_folder: bool, mode: u32) -> Result<FileAttr, Errno> {
        let mut media = self.media();
        let number = media.create(parent.0, text(name)?, is_folder, mode as u16 & 0o7777)?;
        attributes(&media, number)
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for MountedMedia {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&self.media(), ino.0) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut media = self.media();
        if let Some(mode) = mode {
            media.set_mode(ino.0, mode as u16 & 0o7777);
        }
        let done = size.map_or(Ok(()), |size| media.truncate(ino.0, size as usize));
        match done.map_err(Errno::from).and_then(|()| attributes(&media, ino.0)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        match self.create_node(parent, name, true, mode) {
            Ok(made) => reply.entry(&TTL, &made, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_node(parent, name, false, mode) {
            Ok(made) => reply.created(&TTL, &made, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, text(name).and_then(|name| found(self.media().remove(parent.0, name))));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.find(parent, name).and_then(|folder| {
            let mut media = self.media();
            if !media.list(folder.ino.0).is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            found(media.remove(parent.0, text(name)?))
        });
        answer(reply, done);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != newparent {
            return reply.error(Errno::EXDEV);
        }
        let names = text(name).and_then(|name| Ok((name, text(newname)?)));
        answer(reply, names.and_then(|(from, to)| found(self.media().rename(parent.0, from, to))));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let media = self.media();
        let is_unreadable = fault::read().iter().any(|fault| match fault {
            Fault::Read { file, offset: bad } => {
                media.is_named(ino.0, file) && (offset..offset + u64::from(size)).contains(bad)
            }
            Fault::Sync => false,
        });
        match media.get(ino.0).map(|node| &node.content) {
            Some(Content::File { bytes, .. }) if !is_unreadable => {
                let start = bytes.len().min(offset as usize);
                reply.data(&bytes[start..bytes.len().min(start + size as usize)]);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.media().write(ino.0, offset as usize, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        sleep(SYNC_TAKES);
        if fault::read().contains(&Fault::Sync) {
            return reply.error(Errno::EIO);
        }
        answer(reply, self.media().sync_file(ino.0).map_err(Errno::from));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        sleep(SYNC_TAKES);
        answer(reply, self.media().sync_folder(ino.0).map_err(Errno::from));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut media = self.media();
        let names: Vec<(String, u64)> = media.list(ino.0).clone().into_iter().collect();
        for (index, (name, number)) in (0..).zip(names).skip(offset as usize) {
            let is_folder = media.get(number).is_some_and(|node| node.is_folder());
            let kind = if is_folder { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(number), index + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}
